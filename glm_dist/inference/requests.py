"""What goes into the engine and what comes out of it.

They stand apart so that whoever asks (a job, a server) needs neither torch nor the engine to build
a request, and so that the engine's state never leaves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationInfo, field_validator, model_validator

from glm_dist.config import Settings

FinishReason: TypeAlias = Literal["stop", "length"]
"""stop: the model ended, or a stop token or string came; length: max_tokens were generated."""

MAX_LOGPROBS = 20
"""As many alternatives as the OpenAI interface can ask for."""
MAX_BEAMS = 32
TOO_COMPLEX = "constraint_too_complex"
NONE_ALLOWED = "no_token_allowed"
"""Codes of failures whose reason is the request itself."""
UNREADABLE = "\ufffd"
"""Stands in texts for bytes that are no character."""
CONSTRAINTS = ("choices", "regex", "json_schema", "grammar")
"""Settings that say which texts an answer may be; one of them at a time."""


class SamplingSettings(Settings):
    """How one blank is filled, or one prompt continued; greedy by default."""

    max_tokens: int = Field(64, ge=1)
    """Longest answer in tokens; the end token is not counted."""
    min_tokens: int = Field(0, ge=0)
    """The model cannot end, and no stop token can come, before this many tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; above, logits are divided by it and a token is drawn."""
    top_k: int = Field(0, ge=0)
    """Draw among the k likeliest tokens only; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the fewest tokens that hold this probability together."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Draw among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Logits of tokens in the prompt or generated so far are divided by it where positive and
    multiplied where negative; 1 is off (Keskar et al. 2019)."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken off the logit of every token generated so far."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken off a token's logit for each time it was generated so far."""
    no_repeat_ngram: int = Field(0, ge=0)
    """No run of this many tokens comes twice in an answer; 0 is off."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids; -100 and below forbids a token."""
    bad_words: tuple[str, ...] = ()
    """The answer holds none of these strings, however its tokens would spell them."""
    allowed_tokens: tuple[int, ...] = ()
    """Only these ids are taken, so an end only where it is among them; empty for all."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """The same seed gives the same tokens, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings, which is left out of it."""
    stop_tokens: tuple[int, ...] = ()
    """The answer ends at these ids, beside the model's own end tokens; left out of the text."""
    ignore_eos: bool = False
    """Whether the model may not end; the answer then has max_tokens, or ends at a stop string."""
    num_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Log-probabilities wanted: null for none, 0 for the tokens taken, n for the n likeliest at
    each place too. They are the model's own, before temperature, penalties and limits."""
    choices: tuple[str, ...] = ()
    """The answer is one of these strings; empty for any."""
    regex: str | None = None
    """The answer matches this regular expression as a whole."""
    json_schema: str | None = None
    """The answer is JSON of this schema on one line; "{}" for any JSON value."""
    grammar: str | None = None
    """The answer is a text of this grammar, in Lark's syntax or in EBNF as llama.cpp writes it."""

    @field_validator("stop", "bad_words")
    @classmethod
    def _check_strings(cls, given: tuple[str, ...], about: ValidationInfo) -> tuple[str, ...]:
        name = about.field_name
        if "" in given:
            raise ValueError(f"{name} holds an empty string, which all texts hold; leave it out")
        if name == "bad_words" and any(UNREADABLE in word for word in given):
            raise ValueError(
                f"{name} holds U+FFFD, which stands for bytes that are no character and have no "
                "spelling of their own; leave it out"
            )
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self._constraints
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot hold at once; give one of them")
        if given and (self.ignore_eos or self.min_tokens):
            raise ValueError(
                f"{given[0]} says where an answer ends, and ignore_eos and min_tokens would "
                "forbid it; leave them out"
            )
        return self

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """Which texts an answer may be: the setting that says it, and its value; None for any."""
        return next(((name, getattr(self, name)) for name in self._constraints), None)

    @property
    def _constraints(self) -> list[str]:
        return [name for name in CONSTRAINTS if getattr(self, name) not in (None, ())]


class BeamSettings(Settings):
    """Beam search in place of sampling: the answers of the highest score, best first.

    The score of an answer is the sum of its log-probabilities, its end included, over the power
    `length_penalty` of their number. Rules and defaults are those of transformers.
    """

    num_beams: int = Field(ge=1, le=MAX_BEAMS)
    """Beginnings that are gone on with."""
    length_penalty: float = Field(1.0, ge=-8, le=8)
    """Above 0 favours long answers, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """True ends with as many answers as beams; false when none that is as long as the beams are now
    could be better; "never" when none at all could."""


@dataclass(frozen=True)
class Blank:
    """A mask in Part A that is to be filled."""

    place: int
    """Index of the mask in the tokens of Part A."""
    sampling: SamplingSettings = SamplingSettings()
    start: int | None = None
    """Token that begins the answer, by default `<sop>`. A causal model goes on with a text that has
    no mask where the text's last token is this, and the place is that of the token before."""
    behind_space: bool = False
    """Whether the space that an answer begins with is there already; its text leaves it out."""


@dataclass(frozen=True)
class Request:
    """A Part A whose blanks are to be filled; a continued text has its `[gMASK]` last."""

    id: str
    tokens: Sequence[int]
    """Part A: `[ENC]`, the text, its masks."""
    blanks: Sequence[Blank]
    """In the order of filling; each sees those before it."""
    num_samples: int = 1
    """Answers wanted; sample k of a seed is the same whatever their number. Beam search gives fewer
    where there are no more."""
    is_joint: bool = True
    """Whether blanks see those filled before them; else all are filled side by side, as if each
    were the only one."""
    beams: BeamSettings | None = None
    """Searches for the best answers in place of sampling; null samples."""
    priority: int = 0
    """Smaller goes first; equals go in the order of their coming."""
    cache_salt: str = ""
    """Keys and values are shared only between requests of the same salt."""
    adapter: str | None = None
    """The engine's adapter that answers; null for the model alone."""

    @property
    def is_constrained(self) -> bool:
        """Whether any of its answers is held to a form."""
        return any(blank.sampling.constraint for blank in self.blanks)


@dataclass(frozen=True)
class ScoreRequest:
    """Asks for the log-likelihood of given answers at one mask, as a teacher-forced forward."""

    id: str
    tokens: Sequence[int]
    """Part A: `[ENC]`, the text, its masks."""
    place: int
    """Index of the mask at which the options stand; its fills are scored from left to right."""
    options: Sequence[Sequence[int]]
    """Token ids of each answer, without start or end."""
    scores_end: bool = True
    """Whether the end of the answer is scored too, as its last token."""
    num_logprobs: int = 0
    """Likeliest alternatives wanted at each place."""
    start: int | None = None
    """As of a blank."""
    priority: int = 0
    cache_salt: str = ""
    adapter: str | None = None


@dataclass(frozen=True)
class EmbedRequest:
    """Asks for the mean of the final hidden states of a Part A, its `[ENC]` included."""

    id: str
    tokens: Sequence[int]
    priority: int = 0
    adapter: str | None = None


@dataclass(frozen=True)
class LabelRequest:
    """Asks a model with a head for the scores of its labels at tokens of a Part A."""

    id: str
    tokens: Sequence[int]
    places: Sequence[int]
    """Indices of the tokens to be labelled."""
    priority: int = 0
    adapter: str | None = None


AnyRequest: TypeAlias = Request | ScoreRequest | EmbedRequest | LabelRequest
PROMPT_REQUESTS = (EmbedRequest, LabelRequest)
"""Those that are answered by the prompt's hidden states alone."""


@dataclass(frozen=True)
class Alternative:
    """A token that could have been taken, and its log-probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Delta:
    """What one step added to one blank of one sample."""

    request_id: str
    sample: int
    blank: int
    """Index into the blanks of the request."""
    tokens: tuple[int, ...] = ()
    """Taken now, without start and end tokens. Their text may come later: a character is never
    split, and what may be the beginning of a stop string waits until that is decided."""
    text: str = ""
    """Text that is now certain; all texts of a blank joined are its answer."""
    logprobs: tuple[float, ...] = ()
    """Of `tokens`, where asked for."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """For each of `tokens` the likeliest ones, where asked for; the token taken may lack."""
    finish_reason: FinishReason | None = None
    """Why this blank ended with this delta; null while it goes on."""
    stopped_by: str | int | None = None
    """The stop string or stop token that ended it; null for an end of the model's own."""
    score: float | None = None
    """Of a whole answer that beam search found; null for sampled ones."""
    is_last: bool = False
    """Whether nothing more comes for this request."""


@dataclass(frozen=True)
class OptionScore:
    """Log-likelihood of one option."""

    logprobs: tuple[float, ...]
    """Of its tokens, and of its end where that was asked for."""
    is_greedy: bool
    """Whether each token is the likeliest one at its place."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()

    @property
    def total(self) -> float:
        """Log-likelihood of the whole option."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class Scores:
    """The answer to a `ScoreRequest`, in the order of its options."""

    request_id: str
    options: tuple[OptionScore, ...]


@dataclass(frozen=True)
class Embedding:
    """The answer to an `EmbedRequest`."""

    request_id: str
    vector: tuple[float, ...]


@dataclass(frozen=True)
class Labelled:
    """The answer to a `LabelRequest`."""

    request_id: str
    scores: tuple[tuple[float, ...], ...]
    """Logits of the labels at each of the places."""


@dataclass(frozen=True)
class Failure:
    """A request that broke while it ran; the others are not touched."""

    request_id: str
    message: str
    code: str | None = None
    """For programs, where the request itself is the reason: `constraint_too_complex` or
    `no_token_allowed`; null where the model or the machine is."""


Output: TypeAlias = Delta | Scores | Embedding | Labelled | Failure


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, also of one that was cancelled."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, whose keys and values were there already."""
    completion_tokens: int
    """Generated in all samples and blanks, ends not counted."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine holds now, and what it has done since it was built."""

    running: int
    """Answers being generated or scored."""
    waiting: int
    """Requests not begun, and answers that gave their blocks back."""
    free_blocks: int
    total_blocks: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    steps: int
