"""What the tests of frozen parameters run on several ranks; importable by spawned processes."""

from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
from engine_scenarios import TinyModel

from glm_dist.engine import Catalogue, Engine, load_checkpoint
from glm_dist.errors import CheckpointError
from glm_dist.model.tuning import freeze

FROZEN = ["embedding.*", "first.*", "norm.bias"]
"""A table, a matrix above it, and a small one that ZeRO 3 keeps on all ranks."""
DTYPES = ("float32", "bfloat16")
MOVES = [("zero2", "zero3"), ("zero3", "twin"), ("twin", "zero0"), ("zero1", "zero2")]


class HalfFrozen(TinyModel):
    """The tiny model with some of it frozen; another seed gives it other weights."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__(seed)
        freeze(self, FROZEN)


def frozen_life(folder: str) -> dict[str, Any]:
    """Every backend in both precisions: a curve, what it left, and a checkpoint in its middle.

    Under "resumed": what comes of the checkpoints on the same ranks.
    """
    life: dict[Any, Any] = {
        (name, dtype): live(Path(folder) / dtype / name, name, dtype)
        for dtype in DTYPES
        for name in (*scenarios.BACKENDS, "zero2-offloaded", "zero3-offloaded")
    }
    moves = [*MOVES, *((name, name) for name in scenarios.BACKENDS)]
    return {**life, "resumed": frozen_resumed(folder, moves)}


def live(folder: Path, backend: str, dtype: str) -> dict[str, Any]:
    engine = scenarios.make_engine(backend, HalfFrozen, dtype=dtype)
    losses = scenarios.run_steps(engine, 0, 2)
    Catalogue(folder).save(2, engine, {})
    return {"losses": losses + scenarios.run_steps(engine, 2, 5), **_left(engine)}


def frozen_resumed(folder: str, moves: list[tuple[str, str]]) -> dict[str, Any]:
    """The checkpoints in an engine whose own weights are others."""
    return {
        (*move, dtype): resume(Path(folder) / dtype / move[0], move[1], dtype)
        for dtype in DTYPES
        for move in moves
    }


def resume(folder: Path, backend: str, dtype: str) -> dict[str, Any]:
    engine = scenarios.make_engine(backend, lambda: HalfFrozen(seed=8), dtype=dtype)
    checkpoint = Catalogue(folder).newest()
    assert checkpoint is not None
    load_checkpoint(engine, checkpoint)
    return {"losses": scenarios.run_steps(engine, 2, 5), **_left(engine)}


def refusals(folder: str) -> list[str]:
    """What is said where a checkpoint has other parameters frozen than the model."""
    found = []
    checkpoint = Catalogue(Path(folder) / "float32" / "twin").newest()
    assert checkpoint is not None
    for model in (TinyModel, lambda: freeze_all_but_head(TinyModel())):
        try:
            load_checkpoint(scenarios.make_engine("twin", model), checkpoint)
        except CheckpointError as error:
            found.append(str(error))
    return found


def freeze_all_but_head(model: TinyModel) -> TinyModel:
    freeze(model, ["[!h]*"])
    return model


def _left(engine: Engine) -> dict[str, Any]:
    return {
        "weights": scenarios.weights_as_lists(engine),
        "bytes": engine.optimizer_bytes(),
        "state": {
            f"{piece.name}@{piece.offset}": sorted(piece.tensors) for piece in engine.slices()
        },
    }
