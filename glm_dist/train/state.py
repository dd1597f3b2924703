"""Where a run stands: what a checkpoint carries besides the engine's slices."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from glm_dist.data.order import Range
from glm_dist.train.guard import GuardMemory

Scores = list[tuple[int, float]]
"""Steps that were evaluated and their scores, of which lower is better."""


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
    scores: Scores = field(default_factory=list)
    """Of all evaluations up to now."""

    def remember_score(self, score: float) -> None:
        """The score of this step; one that is evaluated again replaces what it had."""
        self.scores = [(step, old) for step, old in self.scores if step < self.step]
        self.scores.append((self.step, score))

    @property
    def score(self) -> float | None:
        """Of this step, where it was evaluated."""
        return self.scores[-1][1] if self.scores and self.scores[-1][0] == self.step else None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Read back `to_json`."""
        skipped = [tuple(pair) for pair in values["skipped"]]
        scores = [(step, score) for step, score in values.get("scores", [])]
        read = {"skipped": skipped, "scores": scores, "guard": GuardMemory(**values["guard"])}
        return cls(**{**values, **read})


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
