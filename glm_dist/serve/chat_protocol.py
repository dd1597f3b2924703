"""The bodies of dialogues: turns, tools and what is asked of the next turn.

It stands apart as the one place that names OpenAI's fields of chat.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from glm_dist.inference.requests import MAX_LOGPROBS
from glm_dist.serve.errors import ApiError
from glm_dist.serve.parts import Body, Part, listed
from glm_dist.serve.protocol import Sampled

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ContentPart(Part):
    """A part of a message; this model reads text."""

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Part):
    """What the assistant called."""

    name: Name
    arguments: str
    """JSON, as text."""


class ToolCall(Part):
    """A call that the assistant made in an earlier turn."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Part):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], listed(256, least=1)] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: Annotated[list[ToolCall], listed(128)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)

    @property
    def text(self) -> str:
        """What it says.

        Raises:
            ApiError: 400 where a part is no text, or there is nothing.
        """
        if self.content is None:
            if self.role != "assistant":
                raise ApiError(
                    400, f"messages: a {self.role} says nothing; give content", param="messages"
                )
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(_texts(self.content))


class FunctionDefinition(Part):
    """What may be called."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class Tool(Part):
    """A function that the model may ask the client to call."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Part):
    """The name of a function."""

    name: Name


class ChosenTool(Part):
    """The tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


Messages = Annotated[list[Message], listed(4096, least=1)]


class ChatRequest(Sampled):
    """`/v1/chat/completions`."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "chat_template": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Messages
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    """Wins over max_tokens."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], listed(128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    """False leaves the assistant's role out; only continue_final_message does without."""
    continue_final_message: bool | None = None
    """Goes on with the last turn, which is the assistant's."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Values for the model's own template."""

    @property
    def longest(self) -> int | None:
        """Tokens wanted at most; null for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens

    def arguments_of(self, name: str) -> dict[str, Any]:
        """JSON schema of a tool's arguments, which are an object."""
        tools = self.tools or []
        function = next(tool.function for tool in tools if tool.function.name == name)
        return {"type": "object", **(function.parameters or {})}

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """Definitions that the model is shown."""
        if self.tool_choice == "none":
            return []
        tools = self.tools or []
        if isinstance(self.tool_choice, ChosenTool):
            name = self.tool_choice.function.name
            tools = [tool for tool in tools if tool.function.name == name]
            if not tools:
                raise ApiError(
                    400, f"tool_choice: {name} is not among the tools", param="tool_choice"
                )
        if self.tool_choice == "required" and not tools:
            raise ApiError(400, "tool_choice: required, and there are no tools", param="tools")
        return [tool.function.model_dump(exclude_none=True) for tool in tools]


class TokenizeRequest(Body):
    """`/tokenize`: a text, or a dialogue as the model reads it."""

    prompt: str | None = None
    messages: Messages | None = None
    tools: Annotated[list[Tool], listed(128)] | None = None
    add_special_tokens: bool | None = None
    """Whether what stands around a prompt is there too."""


def _texts(parts: list[ContentPart]) -> Iterator[str]:
    for part in parts:
        if part.type not in ("text", "refusal") or (part.text or part.refusal) is None:
            raise ApiError(
                400,
                f"messages: this model reads text, and a part is {part.type!r}",
                param="messages",
            )
        yield part.text or part.refusal or ""


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Turns as templates read them: text, and the arguments of calls as values where they are.

    Raises:
        ApiError: 400 where a part is no text.
    """
    return [
        {
            "role": message.role,
            "content": message.text,
            "name": message.name,
            "tool_calls": [
                {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
                for call in message.tool_calls or []
            ],
        }
        for message in messages
    ]


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
