"""`/v1/chat/completions`: the next turn of a dialogue, which may call a tool."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from glm_dist.inference import Delta, Request, ScoreRequest
from glm_dist.serve.asking import Reply
from glm_dist.serve.chat_protocol import ChatRequest, ChosenTool, Messages, plain_messages
from glm_dist.serve.context import Context
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import Caller
from glm_dist.serve.prompts import new_id
from glm_dist.serve.replies import Answer, Frame
from glm_dist.serve.templates import ChatTemplate
from glm_dist.serve.tools import Said, TurnReader, new_call_id


async def chat(
    context: Context, template: ChatTemplate | None, body: ChatRequest, caller: Caller
) -> Reply:
    """The reply to a chat request."""
    _check(context, body)
    dialogue = _Dialogue(context, template, body)
    called = await dialogue.chosen_tool(caller)
    request = dialogue.request(called)
    telling = _Telling(context, body, dialogue, called)
    if body.stream:
        return await context.asker.events(
            [request],
            caller,
            lambda _, delta: telling.parts(delta),
            Frame("chat.completion.chunk", context.name, "chatcmpl"),
            options=body.stream_options,
            first=telling.openings(),
        )
    answers, usage = await context.asker.answers([request], caller)
    frame = Frame("chat.completion", context.name, "chatcmpl")
    choices = [telling.choice(sample, answer) for (_, sample, _), answer in sorted(answers.items())]
    return {**frame.of(choices), "usage": usage}


def chat_tokens(
    context: Context,
    template: ChatTemplate | None,
    messages: Messages,
    tools: list[dict[str, Any]],
    **options: Any,
) -> list[int]:
    """Ids of a dialogue, as the model reads it.

    Raises:
        ApiError: 400 where the model has no layout for it.
    """
    if template is None:
        raise ApiError(
            400, "messages: this model has no chat template; use /v1/completions", param="messages"
        )
    prompts = context.prompts
    prompts.checks.count("messages", len(messages), prompts.limits.max_messages)
    most = context.settings.max_position_embeddings * prompts.limits.bytes_per_token
    return template.tokens(plain_messages(messages), tools, max_bytes=most, **options)


class _Dialogue:
    """One dialogue, and what may come next."""

    def __init__(self, context: Context, template: ChatTemplate | None, body: ChatRequest) -> None:
        self._context, self._template, self._body = context, template, body
        self._tools = body.offered_tools
        self.names = [tool["name"] for tool in self._tools]
        self.layout = template.name if template else ""

    async def chosen_tool(self, caller: Caller) -> str | None:
        """The tool that has to be called; of several the model takes the likeliest."""
        choice = self._body.tool_choice
        if isinstance(choice, ChosenTool):
            return choice.function.name
        if choice != "required":
            return None
        if len(self.names) == 1:
            return self.names[0]
        part_a, place, start = self._part_a(None)
        options = [self._context.tokenizer.encode(f"{name}\n").tolist() for name in self.names]
        request = ScoreRequest(new_id(), part_a, place, options, scores_end=False, start=start)
        [scores], _ = await self._context.asker.scores([request], caller)
        totals = [option.total for option in scores.options]
        return self.names[totals.index(max(totals))]

    def request(self, called: str | None) -> Request:
        """What the engine is asked."""
        body, prompts = self._body, self._context.prompts
        part_a, place, start = self._part_a(called)
        prompts.checks.length(len(part_a), "messages")
        sampling = body.sampling(
            body.longest or prompts.room(len(part_a), place),
            (body.top_logprobs or 0) if body.logprobs else None,
            **self._form(called),
        )
        blanks = [prompts.blank(sampling, place, body.seed, start)]
        return Request(new_id(), part_a, blanks, body.num_samples, beams=body.beams)

    def _form(self, called: str | None) -> dict[str, Any]:
        """Arguments of a call keep to their schema; ChatGLM3's are Python, which none describes."""
        if called is None or self.layout == "chatglm3":
            return {}
        return {"json_schema": json.dumps(self._body.arguments_of(called))}

    def _part_a(self, called: str | None) -> tuple[list[int], int, int | None]:
        """Part A, the place of the turn in it, and what the turn begins with if not `<sop>`."""
        tokens = self._tokens(called)
        if tokens[-1] == self._context.tokenizer.special.gmask:
            return tokens, len(tokens) - 1, None
        return tokens[:-1], len(tokens) - 2, tokens[-1]

    def _tokens(self, called: str | None) -> list[int]:
        body = self._body
        is_continued = bool(body.continue_final_message)
        return chat_tokens(
            self._context,
            self._template,
            body.messages,
            self._tools,
            add_generation_prompt=not is_continued and body.add_generation_prompt is not False,
            called=called,
            values=body.chat_template_kwargs,
        )


class _Telling:
    """Choices of one reply, whole or by parts."""

    def __init__(
        self, context: Context, body: ChatRequest, dialogue: _Dialogue, called: str | None
    ) -> None:
        self._names, self._body = context.names, body
        self._readers = [
            TurnReader(dialogue.names, dialogue.layout, called) for _ in range(body.num_samples)
        ]

    def choice(self, sample: int, answer: Answer) -> dict[str, Any]:
        """A whole turn."""
        reader = self._readers[sample]
        said = reader.read(answer.text, is_end=True)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if reader.has_called:
            message |= {"content": None, "tool_calls": _calls(said)}
        return {
            "index": sample,
            "message": message,
            "logprobs": self._names.chat_logprobs(answer) if self._body.logprobs else None,
            "finish_reason": _finish(reader, answer.finish_reason),
        }

    def openings(self) -> Iterator[dict[str, Any]]:
        """Whose turn it is, for each sample."""
        for sample in range(self._body.num_samples):
            yield _part(sample, {"role": "assistant", "content": ""})

    def parts(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """What came, and the end in a part of its own."""
        reader = self._readers[delta.sample]
        said = reader.read(delta.text, is_end=delta.finish_reason is not None)
        parts = [_part(delta.sample, _delta(one)) for one in said]
        if self._body.logprobs and delta.tokens:
            parts = parts or [_part(delta.sample, {})]
            parts[0]["logprobs"] = self._names.chat_logprobs(delta)
        yield from parts
        if delta.finish_reason:
            yield _part(delta.sample, {}, _finish(reader, delta.finish_reason))


def _check(context: Context, body: ChatRequest) -> None:
    context.prompts.checks.sampled(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: asks for logprobs: true", param="top_logprobs")
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise ApiError(
                400,
                "continue_final_message: cannot go with add_generation_prompt",
                param="continue_final_message",
            )
        if body.messages[-1].role != "assistant":
            raise ApiError(
                400,
                "continue_final_message: the last message has to be the assistant's",
                param="continue_final_message",
            )
    if body.constraint and body.offered_tools:
        raise ApiError(
            400,
            "tools: a turn that may call one has no other form; give tool_choice none, or leave "
            "the form of the answer open",
            param="tools",
        )


def _part(sample: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": sample, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _delta(said: Said) -> dict[str, Any]:
    if said.text:
        return {"content": said.text}
    if said.called is not None:
        function = {"name": said.called, "arguments": ""}
        call = {"index": 0, "id": new_call_id(), "type": "function", "function": function}
        return {"tool_calls": [call]}
    return {"tool_calls": [{"index": 0, "function": {"arguments": said.arguments}}]}


def _calls(said: Sequence[Said]) -> list[dict[str, Any]]:
    name = next(one.called for one in said if one.called is not None)
    arguments = "".join(one.arguments for one in said)
    return [
        {
            "id": new_call_id(),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
    ]


def _finish(reader: TurnReader, finish_reason: str | None) -> str | None:
    """A turn that calls ends for that, if it came to its end."""
    return "tool_calls" if reader.has_called and finish_reason == "stop" else finish_reason
