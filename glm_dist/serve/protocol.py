"""The bodies of requests for text, checked by type; what they ask for is checked where it is known.

It stands apart as the one place that names OpenAI's fields of completions, and ours of blanks.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from glm_dist.inference.requests import (
    CONSTRAINTS,
    MAX_BEAMS,
    MAX_LOGPROBS,
    BeamSettings,
    SamplingSettings,
)
from glm_dist.serve.errors import ApiError
from glm_dist.serve.forms import Choices, Formed, Pattern
from glm_dist.serve.parts import Part, TextOrTokens, Texts, Tokens, listed

OF_SEARCH = {"beam_width": (None,), "length_penalty": (None, 1), "early_stopping": (None, False)}
"""Fields of a beam search alone, with the values at which they ask for none."""
OF_DRAWING = {"temperature": (None, 0), "stop": (None, []), "stream": (None, False)}
"""Fields that a beam search has no use for, with the values at which they ask for nothing."""


class StreamOptions(Part):
    """What a stream says beside its text."""

    include_usage: bool | None = None
    """A last event with the tokens used."""
    continuous_usage_stats: bool | None = None
    """The tokens used so far in every event."""
    include_obfuscation: bool | None = None
    """Taken and passed over: nothing is padded here."""


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


class Sampled(Formed):
    """What all generating requests share."""

    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; 1 where it is not given, in a beam search 0."""
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
    bad_words: Annotated[Texts, Field(max_length=256)] | None = None
    """Strings that no answer holds, however its tokens would spell them."""
    use_beam_search: bool | None = None
    """The n answers of the highest score in place of drawn ones; fewer where there are no more.
    Nothing is streamed, since they are known at the end."""
    beam_width: int | None = Field(None, ge=1, le=MAX_BEAMS)
    """Beginnings that a beam search goes on with; n where it is not given."""
    length_penalty: float | None = Field(None, ge=-8, le=8)
    """Of a beam search: the sum of log-probabilities is divided by this power of their number, so
    that above 0 long answers are favoured, and below 0 short ones; 1 where it is not given."""
    early_stopping: bool | Literal["never"] | None = None
    """Of a beam search: true ends it with as many answers as beams; false, as where it is not
    given, when none as long as the beams are could be better; never, when none at all could."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_samples(self) -> int:
        """Answers to one prompt."""
        return self.n or 1

    @property
    def num_beams(self) -> int:
        """Width of a beam search, where there is one."""
        return self.beam_width or self.num_samples

    @property
    def beams(self) -> BeamSettings | None:
        """How answers are searched for; None where they are drawn.

        Raises:
            ApiError: 400 where a field belongs to the other way.
        """
        for name, neutral in (OF_DRAWING if self.use_beam_search else OF_SEARCH).items():
            if getattr(self, name) not in neutral:
                how = "cannot go with" if self.use_beam_search else "is nothing without"
                raise ApiError(400, f"{name}: {how} use_beam_search; leave it out", param=name)
        if not self.use_beam_search:
            return None
        given = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return BeamSettings(num_beams=self.num_beams, **known)

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
        drawn = 0.0 if self.use_beam_search else 1.0
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
            "bad_words": tuple(self.bad_words or ()),
            **constraint,
            **changes,
        }
        known = {name: value for name, value in given.items() if value is not None}
        try:
            return SamplingSettings(
                max_tokens=max_tokens,
                temperature=drawn if self.temperature is None else self.temperature,
                logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
                **known,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0]) if first["loc"] else None
            raise ApiError(400, first["msg"].removeprefix("Value error, "), param=name) from None


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
    """Answers of which the n likeliest, by token, are given; in a beam search its width."""

    @property
    def num_beams(self) -> int:
        """Width of a beam search, where there is one."""
        return self.beam_width or self.best_of or self.num_samples


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
