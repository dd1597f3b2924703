"""Where a run stands: what a checkpoint carries besides the engine's slices."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from glm_dist.data.order import Range
from glm_dist.train.guard import GuardMemory


@dataclass
class TrainState:
    """The loop's position; plain numbers, so that it is readable JSON in the manifest."""

    step: int = 0
    """Optimizer steps done (discarded ones included)."""
    next_row: int = 0
    """First global row that no done step has taken."""
    skipped: list[Range] = field(default_factory=list)
    """Ranges [a, b) of global rows left out for good."""
    tokens: int = 0
    """Tokens trained on, padding apart."""
    loss_tokens: int = 0
    """Tokens that bore loss."""
    discarded_steps: int = 0
    """Steps left out because their gradient was not finite, or an outlier."""
    guard: GuardMemory = field(default_factory=GuardMemory)
    """What later steps are judged by."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part over all attempts."""

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Read back `to_json`."""
        skipped = [tuple(pair) for pair in values["skipped"]]
        return cls(**{**values, "skipped": skipped, "guard": GuardMemory(**values["guard"])})


@dataclass(frozen=True)
class Rewind:
    """A wish to go back to before some bad steps."""

    above_step: int
    """Checkpoints of later steps are abandoned."""
    skip: Range
    """Global rows [a, b) that are left out from then on."""


@dataclass(frozen=True)
class Ending:
    """How the ranks of an attempt left the loop."""

    step: int
    kind: Literal["finished", "stopped", "rewind"]
    rewind: Rewind | None = None
