"""`/v1/completions`: prompts continued, or a blank before a suffix filled."""

from collections.abc import Iterator, Sequence
from typing import Any

from glm_dist.inference import Delta
from glm_dist.serve.asking import Answers, Reply
from glm_dist.serve.context import Context
from glm_dist.serve.keys import Caller
from glm_dist.serve.prompts import Completion
from glm_dist.serve.protocol import CompletionRequest
from glm_dist.serve.replies import Answer, Echo, Frame, Offsets, joined


async def complete(context: Context, body: CompletionRequest, caller: Caller) -> Reply:
    """The reply to a completion request."""
    asked = context.prompts.of_completion(body)
    frame = Frame("text_completion", context.name, "cmpl")
    telling = _Telling(context, body, asked, await _echoes(context, asked, caller))
    requests = [one.request for one in asked if one.request is not None]
    if body.stream and requests:
        return await context.asker.events(
            requests,
            caller,
            lambda place, delta: [telling.part(place, delta)],
            frame,
            options=body.stream_options,
            first=telling.echoed() if body.echo else (),
        )
    answers, usage = await context.asker.answers(requests, caller)
    return {**frame.of(list(telling.choices(answers))), "usage": usage}


class _Telling:
    """Choices of one reply, whole or by parts."""

    def __init__(
        self,
        context: Context,
        body: CompletionRequest,
        asked: Sequence[Completion],
        echoes: dict[int, Echo],
    ) -> None:
        self._names, self._body, self._asked, self._echoes = context.names, body, asked, echoes
        self._offsets = {
            index: context.names.offsets() for index in range(len(asked) * body.num_samples)
        }

    def choices(self, answers: Answers) -> Iterator[dict[str, Any]]:
        """All choices, whole."""
        for number, one in enumerate(self._asked):
            for sample, answer in enumerate(self._best(number, answers)):
                index = number * self._body.num_samples + sample
                text = one.text.shown if self._body.echo else ""
                parts: list[Answer | Delta | Echo] = [answer]
                if number in self._echoes:
                    parts = [self._echoes[number], answer]
                yield self._choice(index, text + answer.text, parts, answer.finish_reason)

    def echoed(self) -> Iterator[dict[str, Any]]:
        """The prompts, as first parts of their choices."""
        for number, one in enumerate(self._asked):
            for sample in range(self._body.num_samples):
                parts = [self._echoes[number]] if number in self._echoes else []
                yield self._choice(
                    number * self._body.num_samples + sample, one.text.shown, parts, None
                )

    def part(self, number: int, delta: Delta) -> dict[str, Any]:
        """What a delta adds to its choice."""
        index = number * self._body.num_samples + delta.sample
        parts = [delta] if delta.tokens else []
        return self._choice(index, delta.text, parts, delta.finish_reason)

    def _choice(
        self,
        index: int,
        text: str,
        parts: Sequence[Answer | Delta | Echo],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None and parts:
            offsets: Offsets = self._offsets[index]
            logprobs = joined(
                [
                    self._names.completion_logprobs(part, self._body.logprobs, offsets)
                    for part in parts
                ]
            )
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _best(self, number: int, answers: Answers) -> list[Answer]:
        """As many answers as are wanted, of more the likeliest by their mean log-probability."""
        found = [answer for (place, _, _), answer in sorted(answers.items()) if place == number]
        if not found:
            return [Answer(finish_reason="length")] * self._body.num_samples
        if len(found) > self._body.num_samples:
            found.sort(key=lambda answer: -sum(answer.logprobs) / max(1, len(answer.logprobs)))
        return found[: self._body.num_samples]


async def _echoes(context: Context, asked: Sequence[Completion], caller: Caller) -> dict[int, Echo]:
    """Log-probabilities of the prompts' own tokens by prompt, where they are wanted."""
    wanted = [(number, one.scoring) for number, one in enumerate(asked) if one.scoring is not None]
    if not wanted:
        return {}
    scores, _ = await context.asker.scores([scoring for _, scoring in wanted], caller)
    return {
        number: Echo.of(asked[number].text.tokens, score.options[0])
        for (number, _), score in zip(wanted, scores, strict=True)
    }
