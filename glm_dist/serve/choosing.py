"""`/v1/classify`, `/v1/decisions` and `/v1/score`: given answers weighed instead of new ones made.

They stand apart as those whose replies are numbers: log-likelihoods of texts at a mask, and the
probabilities that follow where only these texts can be.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from glm_dist.inference import OptionScore
from glm_dist.serve.context import Context
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import Caller
from glm_dist.serve.replies import Frame, finite
from glm_dist.serve.task_protocol import (
    ChoiceQuestion,
    ClassifyRequest,
    DecisionRequest,
    InputItem,
    InputPart,
    Predicate,
    Question,
    ScoreRequest,
)


async def classify(
    context: Context, body: ClassifyRequest, labels: Sequence[str], caller: Caller
) -> dict[str, Any]:
    """Probabilities of the labels for each text; they add up to 1."""
    prompts = context.prompts
    texts = [body.input] if isinstance(body.input, str) else body.input
    prompts.checks.count("input", len(texts), prompts.limits.max_prompts)
    _check_distinct(labels, "labels")
    requests = [
        prompts.of_options(body.template, {"input": text}, labels, "labels") for text in texts
    ]
    found, usage = await context.asker.scores(requests, caller)
    data = []
    for place, scores in enumerate(found):
        values = _values(scores.options, body.normalise_length)
        shares = _shares(values)
        data.append(
            {
                "index": place,
                "label": labels[int(shares.argmax())],
                "probs": dict(zip(labels, shares.tolist(), strict=True)),
                "logprobs": dict(zip(labels, map(finite, values), strict=True)),
            }
        )
    return {"object": "list", "model": context.name, "data": data, "usage": usage}


async def score(context: Context, body: ScoreRequest, caller: Caller) -> dict[str, Any]:
    """Log-likelihood of each second text behind its first one."""
    firsts = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise ApiError(
            400,
            f"text_2: holds {len(seconds)} texts to {len(firsts)} of text_1; give as many, or one "
            "text_1",
            param="text_2",
        )
    prompts = context.prompts
    prompts.checks.count("text_2", len(seconds), prompts.limits.max_prompts)
    requests = [prompts.of_score(*pair) for pair in zip(firsts, seconds, strict=True)]
    found, usage = await context.asker.scores(requests, caller)
    frame = Frame("list", context.name, "score").of([])
    del frame["choices"]
    data = [
        {
            "index": place,
            "object": "score",
            "score": finite(_values(scores.options, body.normalise_length)[0]),
            "is_greedy": scores.options[0].is_greedy,
            "num_tokens": len(scores.options[0].logprobs),
        }
        for place, scores in enumerate(found)
    ]
    return {**frame, "data": data, "usage": usage}


async def decide(context: Context, body: DecisionRequest, caller: Caller) -> dict[str, Any]:
    """An answer to each question, in their order."""
    prompts = context.prompts
    prompts.checks.count("questions", len(body.questions), prompts.limits.max_questions)
    given = _read_input(body)
    requests = []
    for question in body.questions:
        values = {"input": given, "question": _read_question(question)}
        options = _options(question, body.predicates)
        _check_distinct(options, "questions")
        requests.append(prompts.of_options(body.template, values, options, "questions"))
    found, usage = await context.asker.scores(requests, caller)
    answers = [
        _answer(question, _shares(_values(scores.options, is_mean=False)))
        for question, scores in zip(body.questions, found, strict=True)
    ]
    return {"model": context.name, "answers": answers, "usage": _usage(usage)}


def _answer(question: Question, shares: np.ndarray) -> dict[str, Any]:
    best, confidence = int(shares.argmax()), float(shares.max())
    answer: dict[str, Any] = {"type": question.type, "name": question.name}
    if isinstance(question, Predicate):
        return {**answer, "probability": float(shares[0])}
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        return {
            **answer,
            "choice": values[best],
            "confidence": confidence,
            "probabilities": [
                {"value": value, "probability": float(share)}
                for value, share in zip(values, shares, strict=True)
            ],
        }
    return {
        **answer,
        "score": float(shares @ np.arange(len(shares))),
        "confidence": confidence,
        "probabilities": [
            {"label": level.label, "value": value, "probability": float(shares[value])}
            for value, level in enumerate(question.levels)
        ],
    }


def _options(question: Question, predicates: list[str]) -> list[str]:
    """What can stand at the mask."""
    if isinstance(question, Predicate):
        return predicates
    if isinstance(question, ChoiceQuestion):
        return [_written(choice.value) for choice in question.choices]
    return [level.label for level in question.levels]


def _read_question(question: Question) -> str:
    """The question, and what its answers mean where that is said."""
    lines = [_read_parts(question.instructions, "questions")]
    if isinstance(question, ChoiceQuestion):
        meanings = [(_written(choice.value), choice.description) for choice in question.choices]
    elif isinstance(question, Predicate):
        meanings = []
    else:
        meanings = [(level.label, level.description) for level in question.levels]
    return "\n".join([*lines, *(f"{name}: {text}" for name, text in meanings if text)])


def _read_input(body: DecisionRequest) -> str:
    if isinstance(body.input, str):
        return body.input
    return "\n".join(_read_item(item) for item in body.input)


def _read_item(item: InputItem) -> str:
    if item.type == "message":
        if item.role is None or item.content is None:
            raise ApiError(400, "input: a message has role and content", param="input")
        return f"{item.role}: {_read_parts(item.content, 'input')}"
    if item.type in ("function_call", "custom_tool_call"):
        return f"{item.name}: {item.arguments or item.input or ''}"
    return _read_parts(item.output or "", "input")


def _read_parts(parts: str | Sequence[InputPart], param: str) -> str:
    if isinstance(parts, str):
        return parts
    wrong = {part.type for part in parts} - {"input_text", "output_text", "input_json", "refusal"}
    if wrong:
        raise ApiError(
            400, f"{param}: this model reads text, and a part is {min(wrong)!r}", param=param
        )
    return "\n".join(
        json.dumps(part.data, ensure_ascii=False)
        if part.type == "input_json"
        else part.text or part.refusal or ""
        for part in parts
    )


def _written(value: str | bool) -> str:
    """A boolean as JSON has it."""
    return value if isinstance(value, str) else str(value).lower()


def _check_distinct(labels: Sequence[str], param: str) -> None:
    if len(set(labels)) < len(labels):
        raise ApiError(400, f"{param}: two answers are the same text", param=param)
    if "" in labels:
        raise ApiError(400, f"{param}: an answer is an empty text", param=param)


def _values(options: Sequence[OptionScore], is_mean: bool) -> list[float]:
    """Log-likelihood of each option, or its mean over tokens."""
    return [option.total / (len(option.logprobs) if is_mean else 1) for option in options]


def _shares(values: Sequence[float]) -> np.ndarray:
    """Probabilities of values that are log-likelihoods, where nothing else can be."""
    shifted = np.array(values) - max(values)
    shares = np.exp(np.nan_to_num(shifted, nan=0.0))
    return shares / shares.sum()


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Tokens as `/v1/decisions` names them."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
