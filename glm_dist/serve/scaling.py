"""How many engines a load takes.

It stands apart because Ray Serve's controller runs it, by value and without this package's models.
"""

from typing import Any

from ray.serve.config import AutoscalingContext

LOAD = "load"
"""What each engine replica reports: 1 where its slots, or its cache, are just full."""


class LoadPolicy:
    """As many engines as bring the load of each to the target."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Engines wanted, not rounded, and nothing to remember."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        if not loads:
            return context.target_num_replicas, {}
        known = sum(loads.values())
        # Those that have just started have said nothing yet; they are no reason for more.
        return max(known / self._target, context.capacity_adjusted_min_replicas), {}
