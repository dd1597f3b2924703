"""What the tests of learning rates by parameter run on several ranks; importable by them."""

from typing import Any

import engine_scenarios as scenarios
from engine_scenarios import TinyModel

SHARES = {"embedding.weight": 0.0, "first.weight": 0.5, "first.bias": 0.5}
"""The learning rate of these as a share of the run's; the others have all of it."""
DTYPES = ("float32", "bfloat16")
BACKENDS = (*scenarios.BACKENDS, *scenarios.OFFLOADED)


class Graded(TinyModel):
    """The tiny model, some of which learns more slowly."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            parameter.rate_share = SHARES.get(name, 1.0)  # type: ignore[attr-defined]


def life() -> dict[Any, Any]:
    """Of every backend in both precisions: weights after a step, and what follows."""
    found: dict[Any, Any] = {
        (name, dtype): _live(name, dtype) for name in BACKENDS for dtype in DTYPES
    }
    alike = scenarios.make_engine("twin", TinyModel)
    scenarios.run_steps(alike, 0, 1)
    return {**found, "alike": scenarios.weights_as_lists(alike)}


def _live(backend: str, dtype: str) -> dict[str, Any]:
    engine = scenarios.make_engine(backend, Graded, dtype=dtype)
    losses = scenarios.run_steps(engine, 0, 1)
    first = scenarios.weights_as_lists(engine)
    losses += scenarios.run_steps(engine, 1, 6)
    return {"first": first, "losses": losses, "weights": scenarios.weights_as_lists(engine)}
