"""The bodies of requests, checked by type; what they ask for is checked where it is known.

It stands apart as the one place that names OpenAI's fields.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glm_dist.inference.requests import MAX_LOGPROBS, SamplingSettings
from glm_dist.serve.errors import ApiError

Token = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """Fields that are unknown are kept aside, and named in a header of the reply."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of the fields that no rule knows."""
        return sorted(self.model_extra or {})


class StreamOptions(BaseModel):
    """What a stream says beside its text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampled(Body):
    """What all generating requests share."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Token] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_samples(self) -> int:
        """Answers to one prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, max_tokens: int, num_logprobs: int | None) -> SamplingSettings:
        """How one blank is filled; OpenAI's temperature is 1 where none is given."""
        temperature = 1.0 if self.temperature is None else self.temperature
        given = {
            "top_p": self.top_p,
            "top_k": max(0, self.top_k) if self.top_k is not None else None,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "stop_tokens": tuple(self.stop_token_ids or ()),
            "num_logprobs": num_logprobs,
        }
        known = {name: value for name, value in given.items() if value is not None}
        return SamplingSettings(
            max_tokens=max_tokens,
            temperature=temperature,
            stop=self.stops,
            logit_bias=self._biases(),
            **known,
        )

    def _biases(self) -> dict[int, float]:
        wrong = [key for key in self.logit_bias or {} if not key.lstrip("-").isdigit()]
        if wrong:
            raise ApiError(
                400, f"logit_bias: {wrong[:5]} are no token ids; keys are ids", param="logit_bias"
            )
        return {int(key): value for key, value in (self.logit_bias or {}).items()}


class CompletionRequest(Sampled):
    """`/v1/completions`."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1)


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a dialogue."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """What it says."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        wrong = {part.type for part in self.content if part.type != "text"}
        if wrong:
            raise ApiError(
                400,
                f"messages: this model reads text, and a part is {min(wrong)!r}",
                param="messages",
            )
        return "".join(part.text or "" for part in self.content)


class ChatRequest(Sampled):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class InfillRequest(Sampled):
    """`/v1/infill`: a text with any number of blanks."""

    input: str = Field(min_length=1)
    max_tokens: int = Field(32, ge=1)
    order: Literal["left_to_right", "independent"] = "left_to_right"
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class ClassifyRequest(Body):
    """`/v1/classify`: which of some texts stands best at the mask."""

    input: str | list[str]
    labels: list[str] = Field(min_length=2)
    template: str = "{input} [MASK]"
    normalise_length: bool = False


class EmbeddingRequest(Body):
    """`/v1/embeddings`."""

    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class TokenizeRequest(Body):
    """`/tokenize`."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(Body):
    """`/detokenize`."""

    tokens: list[Token]
