"""A model's answers to the questions of a task: generated, compared or labelled, many at a time.

What serves a task answers by the same lines, so that its answers are those that were scored.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from glm_dist.errors import ModelError
from glm_dist.inference import (
    AnyRequest,
    BeamSettings,
    Blank,
    Delta,
    Engine,
    EngineLimits,
    Failure,
    Labelled,
    LabelRequest,
    Output,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
)
from glm_dist.inference.admission import room
from glm_dist.model import GLM, ModelSettings
from glm_dist.tasks import Answer, Question, Reply, Task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import DecodingSettings
from glm_dist.tokenizer import Tokenizer

NUM_RUNNING = 32
"""Answers generated at a time."""
OF_BEAMS = {"num_beams", "length_penalty"}
"""Of how a task decodes what says how beams are searched."""
QUESTIONS_AT_A_TIME = 256
"""Questions that wait in the engine together; bounds what is kept of them."""


class Answerer:
    """Answers a task's examples with one model."""

    def __init__(self, model: GLM, tokenizer: Tokenizer, task: Task[Any]) -> None:
        self._model, self._tokenizer, self._task = model.eval(), tokenizer, task

    def answer(self, examples: Sequence[Example]) -> list[Answer]:
        """One answer for each example.

        Raises:
            ModelError: when the model's numbers are not finite.
        """
        asked = [self._task.questions(example) for example in examples]
        replies = iter(self._replies([question for questions in asked for question in questions]))
        return [
            self._task.answer(example, [next(replies) for _ in questions])
            for example, questions in zip(examples, asked, strict=True)
        ]

    def _replies(self, questions: Sequence[Question]) -> list[Reply]:
        settings = self._model.settings
        requests = [
            request_of(str(number), question, self._task, settings)
            for number, question in enumerate(questions)
        ]
        engine = Engine(self._model, self._tokenizer, _limits(requests))
        return [
            reply
            for start in range(0, len(requests), QUESTIONS_AT_A_TIME)
            for reply in _answered(engine, requests[start : start + QUESTIONS_AT_A_TIME])
        ]


def request_of(
    name: str, question: Question, task: Task[Any], settings: ModelSettings
) -> AnyRequest:
    """How a question is put to an engine of a model with these settings, under this name."""
    tokens = question.tokens.tolist()
    if settings.head.is_classifier:
        return LabelRequest(name, tokens, question.places)
    if question.options:
        options = [option.tolist() for option in question.options]
        return ScoreRequest(name, tokens, question.places[0], options)
    decoding = question.decoding or task.decoding
    blanks = [
        Blank(place, _sampling(decoding, room(len(tokens), place, settings)))
        for place in question.places
    ]
    return Request(name, tokens, blanks, beams=_beams(decoding))


def reply_of(request: AnyRequest, outputs: Iterable[Output]) -> Reply:
    """What all outputs of a request say to its question.

    Raises:
        ModelError: when the model's numbers are not finite.
    """
    texts = [""] * len(request.blanks) if isinstance(request, Request) else []
    for output in outputs:
        if isinstance(output, Failure):
            raise ModelError(f"example {output.request_id}: {output.message}")
        if isinstance(output, Scores):
            return Reply(scores=np.array([[one.total for one in output.options]]))
        if isinstance(output, Labelled):
            return Reply(scores=np.array(output.scores))
        assert isinstance(output, Delta)
        texts[output.blank] += output.text
    return Reply(tuple(texts))


def _sampling(decoding: DecodingSettings, longest: int) -> SamplingSettings:
    """As the task decodes, as far as the model's positions reach."""
    max_tokens = max(1, min(longest, decoding.max_tokens))
    values = decoding.model_dump(exclude=OF_BEAMS)
    return SamplingSettings(**{**values, "max_tokens": max_tokens})


def _beams(decoding: DecodingSettings) -> BeamSettings | None:
    return BeamSettings(**decoding.model_dump(include=OF_BEAMS)) if decoding.num_beams > 1 else None


def _answered(engine: Engine, requests: Sequence[AnyRequest]) -> list[Reply]:
    outputs: dict[str, list[Output]] = {request.id: [] for request in requests}
    for output in engine.generate(requests):
        outputs[output.request_id].append(output)
    return [reply_of(request, outputs[request.id]) for request in requests]


def _limits(requests: Sequence[AnyRequest]) -> EngineLimits:
    """A cache for the answers that run at a time, and room for all that wait."""
    needed, most = [64], 1
    for request in requests:
        answer = 0
        if isinstance(request, Request):
            beams = 1 if request.beams is None else request.beams.num_beams
            answer = beams * sum(blank.sampling.max_tokens for blank in request.blanks)
            most = max(most, beams)
        elif isinstance(request, ScoreRequest):
            answer = sum(len(option) + 1 for option in request.options)
            most = max(most, len(request.options))
        needed.append(len(request.tokens) + answer + 64)
    longest = sorted(needed)[-NUM_RUNNING:]
    return EngineLimits(
        max_running=NUM_RUNNING,
        max_waiting=QUESTIONS_AT_A_TIME * most + most,
        cache_tokens=sum(longest) + 16 * NUM_RUNNING * most,
    )
