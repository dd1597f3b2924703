"""Where a run stands: what a checkpoint carries besides the engine's slices."""

from dataclasses import asdict, dataclass, field
from typing import Any

from glm_dist.data.order import Range


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
    """Steps whose gradient was not finite."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part over all attempts."""

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Read back `to_json`."""
        return cls(**{**values, "skipped": [tuple(pair) for pair in values["skipped"]]})
