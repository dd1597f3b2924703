"""The shapes of replies, for the description of the interface and for whoever reads it.

They are not used to build replies: those are dictionaries, and a test holds them against these.
"""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class ErrorObject(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """A failure."""

    error: ErrorObject


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens that a reply took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Reply(BaseModel):
    """What most replies share."""

    id: str
    object: str
    created: int
    model: str


class CompletionLogprobs(BaseModel):
    """Log-probabilities by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionReply(Reply):
    """Of `/v1/completions`."""

    choices: list[CompletionChoice]
    usage: Usage


class Alternative(BaseModel):
    """A token, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token that was taken, and those it was taken from."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Log-probabilities by token."""

    content: list[TokenLogprob]
    refusal: None


class Function(BaseModel):
    """What is called."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A tool that the client is asked to call."""

    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One turn."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatReply(Reply):
    """Of `/v1/chat/completions`."""

    choices: list[ChatChoice]
    usage: Usage


class FilledBlank(BaseModel):
    """What stands in a blank, and where in the text, in characters."""

    id: str | None
    index: int
    type: Literal["[MASK]", "[sMASK]", "[gMASK]"]
    start: int
    end: int
    text: str
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class InfillChoice(BaseModel):
    """A text with all its blanks filled."""

    index: int
    text: str
    blanks: list[FilledBlank]


class InfillReply(Reply):
    """Of `/v1/infill`."""

    choices: list[InfillChoice]
    usage: Usage


class EditorReply(BaseModel):
    """Of `/infill`, as llama.cpp's server answers."""

    content: str
    stop: Literal[True]
    stop_type: Literal["eos", "limit"]
    model: str
    truncated: bool
    tokens_evaluated: int
    tokens_predicted: int


class Classified(BaseModel):
    """The label of a text."""

    index: int
    label: str
    probs: dict[str, float]
    logprobs: dict[str, float] | None = None
    """Of labels that the request names."""


class ClassifyReply(BaseModel):
    """Of `/v1/classify`."""

    object: Literal["list"]
    model: str
    data: list[Classified]
    usage: Usage


class Spoken(BaseModel):
    """A word of an input, in its order, or some neighbouring ones."""

    text: str
    fall: float
    """How far the log odds of the label fall when it is masked; below 0 it speaks against it."""


class Answered(BaseModel):
    """What a task makes of one input."""

    index: int
    value: Any
    """A label, tags, a text or a list of them, as the task's scores are made of."""
    probs: dict[str, float] | None = None
    """Of all labels, where the task has some."""
    spans: list[dict[str, Any]] | None = None
    """start, end, kind and text, where tags spell spans; counted in tokens."""
    tokens: list[str] | None = None
    """What the tags belong to."""
    explanation: list[Spoken] | None = None
    """Where asked for."""


class TaskReply(BaseModel):
    """Of `/v1/tasks/{name}`."""

    object: Literal["list"]
    model: str
    task: str
    data: list[Answered]
    usage: Usage


class Scored(BaseModel):
    """How likely a text is."""

    index: int
    object: Literal["score"]
    score: float
    is_greedy: bool
    num_tokens: int


class ScoreReply(Reply):
    """Of `/v1/score`."""

    data: list[Scored]
    usage: Usage


class DecisionReply(BaseModel):
    """Of `/v1/decisions`; OpenAI's client has the shapes of the answers."""

    model: str
    answers: list[dict[str, Any]]
    usage: dict[str, Any]


class Vector(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingReply(BaseModel):
    """Of `/v1/embeddings`."""

    object: Literal["list"]
    model: str
    data: list[Vector]
    usage: Usage


class TokenizeReply(BaseModel):
    """Of `/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeReply(BaseModel):
    """Of `/detokenize`."""

    prompt: str


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Of `/v1/models`."""

    object: Literal["list"]
    data: list[Model]


class TokenizerInfo(BaseModel):
    """Of `/tokenizer_info`."""

    tokenizer_class: str
    vocab_size: int


class Health(BaseModel):
    """Of the health routes."""

    status: str


class Version(BaseModel):
    """Of `/version`."""

    version: str
