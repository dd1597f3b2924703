"""What a front and an engine replica say to each other, a line of JSON each.

It stands apart as the one place that knows the form: pydantic writes and checks it, nothing is
unpickled, and numbers come back as the same bits.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter

from glm_dist.errors import RequestError
from glm_dist.inference import (
    AnyRequest,
    Delta,
    Embedding,
    EmbedRequest,
    EngineStats,
    Failure,
    Labelled,
    LabelRequest,
    Output,
    Request,
    ScoreRequest,
    Scores,
    Usage,
)

LONGEST_LINE = 1 << 28
"""Bytes; the vectors of a large request fit, what never ends does not."""
M = TypeVar("M")


@dataclass
class Order:
    """From a front: one of these."""

    request: Request | None = None
    scoring: ScoreRequest | None = None
    embedding: EmbedRequest | None = None
    labelling: LabelRequest | None = None
    cancel: str | None = None
    """Id of a request that nobody waits for any more."""

    @classmethod
    def of(cls, request: AnyRequest) -> "Order":
        """Asks."""
        if isinstance(request, Request):
            return cls(request=request)
        if isinstance(request, ScoreRequest):
            return cls(scoring=request)
        if isinstance(request, LabelRequest):
            return cls(labelling=request)
        return cls(embedding=request)

    @property
    def asked(self) -> AnyRequest | None:
        """What is asked for; None where something is cancelled."""
        return self.request or self.scoring or self.embedding or self.labelling


@dataclass
class Refusal:
    """A request that was not taken in."""

    id: str
    message: str
    param: str | None = None
    code: str | None = None
    is_ours: bool = False
    """Whether the engine is at fault, so that another may take it."""

    @property
    def error(self) -> RequestError:
        """As the engine raised it."""
        return RequestError(self.message, param=self.param, code=self.code)


@dataclass
class Vitals:
    """How an engine replica is."""

    stats: EngineStats
    trouble: str | None
    """Why nothing new should be asked of it; None where it answers."""
    is_leaving: bool
    """Whether it ends when what it has begun is done."""


@dataclass
class News:
    """From an engine replica: what came since the last, of all requests of a front."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")

    accepted: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    embeddings: list[Embedding] = field(default_factory=list)
    labelled: list[Labelled] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    usages: dict[str, Usage] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    vitals: Vitals | None = None

    def add(self, output: Output) -> None:
        """Put an output where it belongs."""
        if isinstance(output, Delta):
            self.deltas.append(output)
        elif isinstance(output, Scores):
            self.scores.append(output)
        elif isinstance(output, Embedding):
            self.embeddings.append(output)
        elif isinstance(output, Labelled):
            self.labelled.append(output)
        else:
            self.failures.append(output)

    @property
    def outputs(self) -> list[Output]:
        """All of them, those of one request in their order."""
        found: list[Output] = [*self.deltas, *self.scores, *self.embeddings]
        return [*found, *self.labelled, *self.failures]


class Lines(Generic[M]):
    """Messages of one kind as lines, and back."""

    def __init__(self, kind: type[M]) -> None:
        self._adapter: TypeAdapter[M] = TypeAdapter(kind)

    def write(self, message: M) -> bytes:
        """A line; what is as by default is left out."""
        return self._adapter.dump_json(message, exclude_defaults=True) + b"\n"

    def read(self, line: bytes) -> M:
        """The message of a line.

        Raises:
            ValueError: when it is none.
        """
        return self._adapter.validate_json(line)


ORDERS = Lines(Order)
NEWS = Lines(News)
