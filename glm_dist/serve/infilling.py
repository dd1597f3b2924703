"""`/v1/infill`: a text with any number of blanks, each filled under options of its own."""

from collections.abc import Sequence
from typing import Any

from glm_dist.inference import Delta
from glm_dist.serve.asking import Reply
from glm_dist.serve.context import Context
from glm_dist.serve.keys import Caller
from glm_dist.serve.prompts import Infill
from glm_dist.serve.protocol import InfillRequest
from glm_dist.serve.replies import Answer, Frame


async def infill(context: Context, body: InfillRequest, caller: Caller) -> Reply:
    """The reply to an infill request."""
    asked = context.prompts.of_infill(body)
    telling = _Telling(context, body, asked)
    if body.stream:
        return await context.asker.events(
            [asked.request],
            caller,
            lambda _, delta: [telling.part(delta)],
            Frame("infill.chunk", context.name, "infill"),
            options=body.stream_options,
        )
    answers, usage = await context.asker.answers([asked.request], caller)
    choices = []
    for sample in range(body.num_samples):
        by_place = {
            asked.order[blank]: answer
            for (_, number, blank), answer in answers.items()
            if number == sample
        }
        # A beam search may find fewer answers than are wanted.
        if len(by_place) == len(asked.options):
            filled = telling.filled([by_place[i] for i in sorted(by_place)])
            choices.append({"index": sample, **filled})
    frame = Frame("infill", context.name, "infill")
    return {**frame.of(choices), "usage": usage}


class _Telling:
    """Choices of one reply, whole or by parts."""

    def __init__(self, context: Context, body: InfillRequest, asked: Infill) -> None:
        self._names, self._asked = context.names, asked
        self._has_logprobs = body.logprobs is not None

    def part(self, delta: Delta) -> dict[str, Any]:
        """What a delta adds to its blank."""
        index = self._asked.order[delta.blank]
        part: dict[str, Any] = {
            "index": delta.sample,
            "blank_index": index,
            "delta": {"text": delta.text},
            "finish_reason": delta.finish_reason,
        }
        if self._asked.options[index].id is not None:
            part["blank_id"] = self._asked.options[index].id
        if self._has_logprobs and delta.tokens:
            part["logprobs"] = self._names.chat_logprobs(delta)
        return part

    def filled(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The text with its blanks filled, and where each lies in it."""
        text, blanks = "", []
        for piece in self._asked.pieces:
            if isinstance(piece, str):
                text += piece
            else:
                blanks.append(self._blank(piece, len(text), answers[piece]))
                text += answers[piece].text
        return {"text": text, "blanks": blanks}

    def _blank(self, index: int, start: int, answer: Answer) -> dict[str, Any]:
        options = self._asked.options[index]
        blank: dict[str, Any] = {
            "id": options.id,
            "index": index,
            "type": options.type,
            "start": start,
            "end": start + len(answer.text),
            "text": answer.text,
            "finish_reason": answer.finish_reason,
        }
        if self._has_logprobs:
            blank["logprobs"] = self._names.chat_logprobs(answer)
        return blank
