"""`/infill` as llama.cpp's server has it, which plug-ins of editors speak.

What stands before and behind the cursor is a text with one blank; the shape of question and answer
is all that differs from `/v1/infill`.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field

from glm_dist.inference import Delta, Request
from glm_dist.serve.asking import Reply, chained, merged
from glm_dist.serve.context import Context
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import Caller
from glm_dist.serve.parts import Part, listed
from glm_dist.serve.protocol import BlankOptions, InfillRequest, Sampled, Segment
from glm_dist.serve.replies import event

DEFAULT_TOKENS = 64


class ExtraFile(Part):
    """Another file of the project, for the model to know."""

    filename: str = Field("", max_length=1024)
    text: str


class EditorRequest(Sampled):
    """`/infill`: what stands around the cursor."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraFile], listed(64)] | None = None
    prompt: str | None = None
    """What was typed already, behind the prefix."""
    n_predict: int | None = Field(None, ge=-1, lt=1 << 31)
    """Longest answer; 64 where it is not given, or -1."""


async def fill_at_cursor(context: Context, body: EditorRequest, caller: Caller) -> Reply:
    """The text between prefix and suffix, in llama.cpp's shape."""
    request = _request(context, body)
    if body.stream:
        begun = _events(context, request, caller)
        return chained(await anext(begun), begun)
    answers, usage = await context.asker.answers([request], caller)
    [answer] = answers.values()
    counts = {
        "tokens_evaluated": usage["prompt_tokens"],
        "tokens_predicted": usage["completion_tokens"],
    }
    return {"content": answer.text, **_end(context, answer.finish_reason), **counts}


def _request(context: Context, body: EditorRequest) -> Request:
    if body.num_samples > 1:
        raise ApiError(400, "n: one answer goes to an editor", param="n")
    if body.n_predict == 0:
        raise ApiError(400, "n_predict: 0 asks for nothing", param="n_predict")
    files = "".join(f"{extra.filename}\n{extra.text}\n" for extra in body.input_extra or [])
    before = Segment(text=files + body.input_prefix + (body.prompt or ""))
    segments = [before, Segment(blank=BlankOptions()), Segment(text=body.input_suffix)]
    longest = DEFAULT_TOKENS if body.n_predict in (None, -1) else body.n_predict
    shared = body.model_dump(include=set(Sampled.model_fields), exclude_none=True, by_alias=True)
    asked = InfillRequest(**shared, segments=segments, max_tokens=longest)
    return context.prompts.of_infill(asked).request


async def _events(context: Context, request: Request, caller: Caller) -> AsyncIterator[str]:
    async with context.asker.asking([request], caller) as streams:
        try:
            async for _, delta in merged(streams):
                assert isinstance(delta, Delta)
                is_end = delta.finish_reason is not None
                end = _end(context, delta.finish_reason) if is_end else {"stop": False}
                yield event({"content": delta.text, **end})
        except ApiError as error:
            yield event(error.body)


def _end(context: Context, finish_reason: str | None) -> dict[str, Any]:
    kind = "limit" if finish_reason == "length" else "eos"
    return {"stop": True, "stop_type": kind, "model": context.name, "truncated": False}
