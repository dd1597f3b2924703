"""`/v1/tasks/{name}`: fields of examples in, and what the tuned model answers, as it was scored.

It stands apart as the endpoint whose prompts and answers are the task's own, down to its decoding.
"""

from functools import reduce
from itertools import chain
from typing import Any

from glm_dist.errors import DataError
from glm_dist.evaluate.answers import reply_of, request_of
from glm_dist.evaluate.occlusion import falls, parts_of, without
from glm_dist.serve.context import Context
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import Caller
from glm_dist.serve.prompts import new_id
from glm_dist.serve.replies import added
from glm_dist.serve.task_protocol import ClassifyRequest, TaskRequest
from glm_dist.tasks import Answer, Question, Reply, Task
from glm_dist.tasks.classification import Classification
from glm_dist.tasks.examples import Example
from glm_dist.tasks.mixture import Mixture

ANSWERS_AT_ONCE = 32
"""Of an explanation, so that it leaves room for others."""


def describe_task(task: Task[Any]) -> dict[str, Any]:
    """What a client needs to know to ask: kind, fields and labels; of a mixture those of each."""
    settings = task.settings
    needed = [name for name in settings.fields if name in settings.asked_fields]
    parts = task.parts if isinstance(task, Mixture) else {}
    tasks = {name: describe_task(part) for name, part in parts.items()}
    return {
        "kind": settings.kind,
        "fields": needed,
        "optional_fields": [name for name in settings.asked_fields if name not in needed],
        "labels": list(task.labels),
        **({"tasks": tasks} if tasks else {}),
    }


async def answer(
    context: Context, task: Task[Any] | None, body: TaskRequest, caller: Caller
) -> dict[str, Any]:
    """The task's answer to each input."""
    if task is None:
        raise ApiError(
            404,
            f"model: {context.name} was tuned for no task; ask one that jobs/finetune.py has made",
            param="model",
        )
    inputs = [body.input] if isinstance(body.input, dict) else body.input
    context.prompts.checks.count("input", len(inputs), context.prompts.limits.max_prompts)
    examples = [_example(task, values, number) for number, values in enumerate(inputs)]
    one = task.part(examples[0]) if isinstance(task, Mixture) else task
    if body.explain:
        _check_explained(one, len(inputs))
    answers, usage = await _answers(context, task, examples, caller)
    data = [
        {"index": number, **task.told(example, answer)}
        for number, (example, answer) in enumerate(zip(examples, answers, strict=True))
    ]
    if body.explain:
        chosen = one.labels.index(answers[0].value)
        question = _questions(one, examples[0])[0]
        data[0]["explanation"], more = await _explained(context, one, question, chosen, caller)
        usage = added(usage, more)
    kind = task.settings.kind
    return {"object": "list", "model": context.name, "task": kind, "data": data, "usage": usage}


async def classify(
    context: Context, task: Task[Any] | None, body: ClassifyRequest, caller: Caller
) -> dict[str, Any]:
    """`/v1/classify` by the labels that a model has learnt."""
    if not isinstance(task, Classification):
        raise ApiError(
            400,
            f"labels: {context.name} has learnt none that exclude each other; say which there are"
            + ("" if task is None else f", or ask for its own task at /v1/tasks/{context.name}"),
            param="labels",
        )
    texts = [body.input] if isinstance(body.input, str) else body.input
    inputs: list[Any] = [{"text": text} for text in texts]
    reply = await answer(context, task, TaskRequest(input=inputs), caller)
    for one in reply["data"]:
        one["label"] = one.pop("value")
    return reply


def _example(task: Task[Any], values: dict[str, Any], number: int) -> Example:
    place = f"input {number}"
    try:
        return task.ask(values, place)
    except ValueError as error:
        raise ApiError(400, f"{place}: {error}", param="input") from None


async def _answers(
    context: Context, task: Task[Any], examples: list[Example], caller: Caller
) -> tuple[list[Answer], dict[str, Any]]:
    asked = [_questions(task, example) for example in examples]
    found, usage = await _replies(context, task, list(chain.from_iterable(asked)), caller)
    replies = iter(found)
    answers = [
        task.answer(example, [next(replies) for _ in questions])
        for example, questions in zip(examples, asked, strict=True)
    ]
    return answers, usage


async def _replies(
    context: Context, task: Task[Any], questions: list[Question], caller: Caller
) -> tuple[list[Reply], dict[str, Any]]:
    requests = [request_of(new_id(), one, task, context.settings) for one in questions]
    outputs, usage = await context.asker.outputs(requests, caller)
    return list(map(reply_of, requests, outputs)), usage


def _check_explained(task: Task[Any], count: int) -> None:
    if not isinstance(task, Classification):
        kind = task.settings.kind
        raise ApiError(
            400, f"explain: {kind} chooses among no labels; leave it out", param="explain"
        )
    if count > 1:
        raise ApiError(
            400, f"explain: got {count} inputs; give one, as each word is a question", param="input"
        )


async def _explained(
    context: Context, task: Task[Any], question: Question, chosen: int, caller: Caller
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each word adds, and what that took; of several patterns by the first."""
    tokenizer = context.tokenizer
    parts = parts_of(question.tokens, tokenizer)
    asked = [question, *(without(question, part, tokenizer.special.mask) for part in parts)]
    at_once = max(1, ANSWERS_AT_ONCE // max(1, len(question.options)))
    found = [
        await _replies(context, task, asked[start : start + at_once], caller)
        for start in range(0, len(asked), at_once)
    ]
    whole, *masked = chain.from_iterable(replies for replies, _ in found)
    told = [
        {"text": part.text, "fall": fall}
        for part, fall in zip(parts, falls(whole, masked, chosen), strict=True)
    ]
    return told, reduce(added, (usage for _, usage in found))


def _questions(task: Task[Any], example: Example) -> list[Question]:
    try:
        return task.questions(example)
    except DataError as error:
        raise ApiError(400, str(error), param="input") from None
