"""The bodies of requests for text, checked by type; what they ask for is checked where it is known.

It stands apart as the one place that names OpenAI's fields of completions, and ours of blanks.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from glm_dist.inference.requests import CONSTRAINTS, MAX_LOGPROBS, SamplingSettings
from glm_dist.serve.errors import ApiError


def listed(most: int, least: int = 0) -> Any:
    """A list of so many, of which the first wrong entry is named, not all."""
    return Field(fail_fast=True, min_length=least, max_length=most)


Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[list[Token], listed(1 << 17)]
TokenLists = Annotated[list[Tokens], listed(1 << 12)]
Texts = Annotated[list[str], listed(1 << 12)]
Choices = Annotated[Texts, Field(min_length=1, max_length=256)]
Pattern = Annotated[str, Field(min_length=1)]
TextOrTokens = str | Texts | Tokens | TokenLists
"""A text, several, the ids of one, or of several."""
HINTS = {
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
}
"""OpenAI's fields that no answer depends on."""
OBJECT = '{"type": "object"}'
"""Schema of any JSON object."""


class Part(BaseModel):
    """A part of a body: types are never guessed, and no number is infinite."""

    model_config = ConfigDict(
        extra="ignore", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _check_not_stored(store: bool | None) -> bool | None:
    if store:
        raise ValueError("nothing is kept here; leave it out")
    return store


class Body(Part):
    """Fields that are unknown are kept aside, and named in a header of the reply."""

    model_config = ConfigDict(extra="allow")

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that are known and not built, with the values at which they ask for nothing."""

    model: str | None = Field(None, max_length=256)
    """Name of the model; the one that is served where it is not given."""
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Annotated[bool | None, AfterValidator(_check_not_stored)] = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of the fields that no rule knows."""
        return sorted((self.model_extra or {}).keys() - self.NEUTRAL.keys() - HINTS)

    def check_neutral(self) -> None:
        """Refuse what is known to ask for something that is not built.

        Raises:
            ApiError: 400.
        """
        for name, values in self.NEUTRAL.items():
            given = (self.model_extra or {}).get(name)
            if given is not None and given not in values:
                raise ApiError(400, f"{name}: is not offered; leave it out", param=name)


class StreamOptions(Part):
    """What a stream says beside its text."""

    include_usage: bool | None = None
    """A last event with the tokens used."""
    continuous_usage_stats: bool | None = None
    """The tokens used so far in every event."""
    include_obfuscation: bool | None = None
    """Taken and passed over: nothing is padded here."""


class NamedSchema(Part):
    """A JSON schema, which an answer is held to whether `strict` or not."""

    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """What the answer is, as OpenAI names it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def constraint(self) -> dict[str, Any]:
        """The engine's setting; none for text.

        Raises:
            ApiError: 400 where the schema lacks.
        """
        if self.type == "text":
            return {}
        if self.type == "json_object":
            return {"json_schema": OBJECT}
        if self.json_schema is None:
            raise ApiError(
                400, "response_format: json_schema takes name and schema", param="response_format"
            )
        return {"json_schema": json.dumps(self.json_schema.schema_)}


class StructuredOutputs(Part):
    """What the answer is, as vLLM names it; one of these."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    """A JSON schema, as text or not."""
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None
    """In Lark's syntax, or in EBNF as llama.cpp writes it."""

    @property
    def constraint(self) -> dict[str, Any]:
        """The engine's settings.

        Raises:
            ApiError: 400 where one of them would hide another.
        """
        if self.json_object and self.json_ is not None:
            raise ApiError(
                400, "json_object: cannot go with json; leave one out", param="structured_outputs"
            )
        schema = OBJECT if self.json_object else self.json_
        given = {
            "json_schema": schema if isinstance(schema, str | None) else json.dumps(schema),
            "regex": self.regex,
            "choices": None if self.choice is None else tuple(self.choice),
            "grammar": self.grammar,
        }
        return {kind: value for kind, value in given.items() if value is not None}


def _check_biases(value: Any) -> Any:
    """Name every entry that is wrong, not the first alone."""
    if isinstance(value, dict):
        wrong = [key for key, bias in value.items() if not _is_bias(key, bias)]
        if wrong:
            shown = ", ".join(key[:20] for key in wrong[:20])
            raise ValueError(f"keys are token ids and values numbers, and these are not: {shown}")
    return value


def _is_bias(key: str, bias: Any) -> bool:
    is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
    return key.isascii() and key.isdigit() and len(key) < 10 and is_number


class Sampled(Body):
    """What all generating requests share."""

    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; 1 where it is not given."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    """0 and -1 for all."""
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=1 << 10)
    """Answers to each prompt."""
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: str | Annotated[Texts, Field(max_length=256)] | None = None
    stop_token_ids: Annotated[Tokens, Field(max_length=256)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_check_biases)
        ]
        | None
    ) = None
    """Added to the logits of these token ids; -100 forbids one."""
    ignore_eos: bool | None = None
    """The model may not end."""
    min_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    """This and those that follow are older names of the same."""
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def constraint(self) -> dict[str, Any]:
        """What all answers are held to, as settings of the engine; none for any text.

        Raises:
            ApiError: 400 where more than one thing is asked for.
        """
        guided = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        forms: dict[str, ResponseFormat | StructuredOutputs | None] = {
            "response_format": self.response_format,
            "structured_outputs": self.structured_outputs,
        }
        forms |= {
            f"guided_{name}": StructuredOutputs(**{name: value})  # type: ignore[arg-type]
            for name, value in guided.items()
            if value is not None
        }
        given = [
            (name, item)
            for name, form in forms.items()
            for item in (form.constraint.items() if form else ())
        ]
        if len(given) > 1:
            names = " and ".join(dict.fromkeys(name for name, _ in given))
            raise ApiError(400, f"{names}: an answer has one form; ask for one", param=given[-1][0])
        return dict(item for _, item in given)

    @property
    def num_samples(self) -> int:
        """Answers to one prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(
        self, max_tokens: int, num_logprobs: int | None, **changes: Any
    ) -> SamplingSettings:
        """How one blank is filled; OpenAI's temperature is 1 where none is given.

        Args:
            max_tokens: longest answer.
            num_logprobs: likeliest tokens wanted at each place.
            changes: what holds for this blank alone.

        Raises:
            ApiError: 400 when the fields do not go together.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        constraint = {} if changes.keys() & set(CONSTRAINTS) else self.constraint
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
            "stop": self.stops,
            **constraint,
            **changes,
        }
        known = {name: value for name, value in given.items() if value is not None}
        try:
            return SamplingSettings(
                max_tokens=max_tokens,
                temperature=temperature,
                logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
                **known,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0]) if first["loc"] else None
            raise ApiError(400, first["msg"], param=name) from None


class CompletionRequest(Sampled):
    """`/v1/completions`."""

    prompt: TextOrTokens
    suffix: str | None = None
    """Text behind the completion, which then fills the blank between."""
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    """Longest answer, 16 where it is not given; 0 goes with echo alone."""
    echo: bool | None = None
    """The prompt before the answer."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=1 << 10)
    """Answers of which the n likeliest, by token, are given."""


class BlankOptions(Part):
    """How one blank is filled; what is not given is as for all."""

    id: str | None = Field(None, max_length=64)
    """Comes back with the blank."""
    type: Literal["[MASK]", "[sMASK]", "[gMASK]"] = "[MASK]"
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    stop: str | Annotated[Texts, Field(max_length=256)] | None = None
    choices: Choices | None = None
    """The blank is one of these."""
    regex: Pattern | None = None
    """The blank matches this as a whole."""
    json_schema: dict[str, Any] | None = None
    """The blank is JSON of this schema."""
    grammar: Pattern | None = None
    """The blank is a text of this grammar, in Lark's syntax or in EBNF as llama.cpp writes it."""


class Segment(Part):
    """A piece of text, or a blank; text is never searched for masks."""

    text: str | None = None
    blank: BlankOptions | None = None


class InfillRequest(Sampled):
    """`/v1/infill`: a text with any number of blanks."""

    input: str | None = None
    """Text with `[MASK]`, `[sMASK]` or `[gMASK]` where something is missing."""
    segments: Annotated[list[Segment], listed(512, least=1)] | None = None
    """Instead of `input`: pieces of text and blanks, each with options of its own."""
    blanks: Annotated[list[BlankOptions], listed(256)] | None = None
    """With `input`: options of its blanks, in the order of the text."""
    parse_masks: bool = True
    """Whether `input` is searched for masks; without, it has none."""
    max_tokens: int = Field(32, ge=1, lt=1 << 31)
    """Longest answer to each blank."""
    order: (
        Literal["left_to_right", "independent"]
        | Annotated[list[Annotated[int, Field(ge=0, lt=512)]], listed(256)]
    ) = "left_to_right"
    """Whether blanks see those filled before them; a list of indices is the order of filling."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
