"""A model's answers to the questions of a task: generated, compared or labelled, many at a time.

What serves a task answers by the same lines, so that its answers are those that were scored.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from glm_dist.errors import ModelError
from glm_dist.inference import (
    Blank,
    Delta,
    Engine,
    EngineLimits,
    Failure,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
)
from glm_dist.inference.admission import room
from glm_dist.model import GLM, Batch
from glm_dist.tasks import Answer, Question, Reply, Task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import DecodingSettings
from glm_dist.tokenizer import Tokenizer

NUM_RUNNING = 32
"""Answers generated at a time."""
QUESTIONS_AT_A_TIME = 256
"""Questions that wait in the engine together; bounds what is kept of them."""
LABELLED_TOKENS = 4096
"""Tokens of one forward pass where a head labels, padding included."""


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
        if self._model.settings.head.is_classifier:
            return self._label(questions)
        requests = [self._request(str(n), question) for n, question in enumerate(questions)]
        engine = Engine(self._model, self._tokenizer, _limits(requests))
        return [
            reply
            for start in range(0, len(requests), QUESTIONS_AT_A_TIME)
            for reply in _replies_of(engine, requests[start : start + QUESTIONS_AT_A_TIME])
        ]

    def _request(self, name: str, question: Question) -> Request | ScoreRequest:
        tokens = question.tokens.tolist()
        if question.options:
            options = [option.tolist() for option in question.options]
            return ScoreRequest(name, tokens, question.places[0], options)
        return Request(
            name,
            tokens,
            [Blank(place, self._sampling(len(tokens), place)) for place in question.places],
        )

    def _sampling(self, num_tokens: int, place: int) -> SamplingSettings:
        """As the task decodes, as far as the model's positions reach."""
        decoding: DecodingSettings = self._task.decoding
        longest = room(num_tokens, place, self._model.settings)
        return SamplingSettings(
            **{**decoding.model_dump(), "max_tokens": max(1, min(longest, decoding.max_tokens))}
        )

    @torch.inference_mode()
    def _label(self, questions: Sequence[Question]) -> list[Reply]:
        """Log-probabilities of the head's labels at the places asked about."""
        replies: list[Reply] = [Reply()] * len(questions)
        device = next(self._model.parameters()).device
        for numbers in _batches([len(question.tokens) for question in questions]):
            batch = _lay([questions[number] for number in numbers], self._tokenizer.special.pad)
            scores = self._model(*batch.to(device)).label_scores
            logs = scores.log_softmax(-1).float().cpu().numpy()
            for row, number in enumerate(numbers):
                replies[number] = Reply(scores=logs[row, list(questions[number].places)])
        return replies


def _replies_of(engine: Engine, requests: Sequence[Request | ScoreRequest]) -> list[Reply]:
    texts = {
        request.id: [""] * len(request.blanks)
        for request in requests
        if isinstance(request, Request)
    }
    scores: dict[str, np.ndarray] = {}
    for output in engine.generate(requests):
        if isinstance(output, Failure):
            raise ModelError(f"example {output.request_id}: {output.message}")
        if isinstance(output, Delta):
            texts[output.request_id][output.blank] += output.text
        elif isinstance(output, Scores):
            scores[output.request_id] = np.array([[one.total for one in output.options]])
    return [
        Reply(scores=scores[request.id])
        if request.id in scores
        else Reply(tuple(texts[request.id]))
        for request in requests
    ]


def _limits(requests: Sequence[Request | ScoreRequest]) -> EngineLimits:
    """A cache for the answers that run at a time, and room for all that wait."""
    needed, most = [64], 1
    for request in requests:
        if isinstance(request, Request):
            answer = sum(blank.sampling.max_tokens for blank in request.blanks)
        else:
            answer = sum(len(option) + 1 for option in request.options)
            most = max(most, len(request.options))
        needed.append(len(request.tokens) + answer + 64)
    longest = sorted(needed)[-NUM_RUNNING:]
    return EngineLimits(
        max_running=NUM_RUNNING,
        max_waiting=QUESTIONS_AT_A_TIME * most + most,
        cache_tokens=sum(longest) + 16 * NUM_RUNNING * most,
    )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of about one length that go through the model together."""
    batch: list[int] = []
    for number in np.argsort(lengths, kind="stable").tolist():
        if batch and lengths[number] * (len(batch) + 1) > LABELLED_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _lay(questions: Sequence[Question], pad: int) -> Batch:
    """One question a row, filled up to the longest."""
    shape = (len(questions), max(len(question.tokens) for question in questions))
    fields = {name: torch.zeros(shape, dtype=torch.int32) for name in Batch._fields}
    fields["tokens"].fill_(pad)
    for row, question in enumerate(questions):
        length = len(question.tokens)
        fields["tokens"][row, :length] = torch.from_numpy(question.tokens.astype(np.int32))
        fields["position_ids"][row, :length] = torch.arange(length, dtype=torch.int32)
        fields["segment_ids"][row, :length] = 1
        fields["prefix_ends"][row, :length] = length
        fields["loss_mask"][row, list(question.places)] = 1
    return Batch(**fields)
