"""What the tests of adapters run on several ranks; importable by spawned processes."""

from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
import torch
from safetensors import safe_open

from glm_dist.engine import Catalogue, Engine, load_checkpoint
from glm_dist.model import GLM, ModelSettings, build_model
from glm_dist.model.settings import HeadSettings
from glm_dist.model.tuning import apply_tuning, base_names, meta_model
from glm_dist.model.tuning_settings import TuningSettings

SETTINGS = ModelSettings(
    preset=None,
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    mlp="swiglu",
    vocab_size=scenarios.VOCABULARY,
    max_position_embeddings=scenarios.LENGTH,
    activation_checkpointing="full",
    init_std=0.1,
)
CLASSIFIER = SETTINGS.model_copy(
    update={
        "head": HeadSettings(
            kind="token_classification",
            labels=[f"label {number}" for number in range(scenarios.VOCABULARY)],
            dropout=0.0,
        )
    }
)
TUNINGS = {
    "lora": TuningSettings(kind="lora", rank=4),
    "lora, frozen": TuningSettings(
        kind="lora", targets=["query_key_value"], frozen=["transformer.layers.0.*"]
    ),
    "dora": TuningSettings(kind="dora", rank=4),
    "p_tuning": TuningSettings(kind="p_tuning", num_prefix_tokens=5),
    "p_tuning, projected": TuningSettings(
        kind="p_tuning", num_prefix_tokens=5, prefix_projection=True
    ),
    "classifier": TuningSettings(),
    "classifier, lora": TuningSettings(kind="lora", rank=4),
}
NARROW = ("lora", "dora")
LIVES = [("lora", backend) for backend in scenarios.BACKENDS]
LIVES += [(name, backend) for name in TUNINGS for backend in ("twin", "zero3") if name != "lora"]
MOVES = [("twin", "zero3"), ("zero2", "zero1"), ("zero3", "zero3"), ("zero3", "twin")]
RESUMES = [("lora", move) for move in MOVES]
RESUMES += [(name, ("zero3", "twin")) for name in TUNINGS if name != "lora"]


def build(name: str) -> GLM:
    return apply_tuning(build_model(settings_of(name)), TUNINGS[name])


def settings_of(name: str) -> ModelSettings:
    return CLASSIFIER if name.startswith("classifier") else SETTINGS


def make_engine(backend: str, name: str, dtype: str = "float32") -> Engine:
    rebuilt = base_names(meta_model(settings_of(name), TUNINGS[name]), TUNINGS[name])
    # DoRA reads a weight of another module: ZeRO 3 must not happen to hold it still.
    at_once = {"max_live_elements": 0, "prefetch_elements": 0} if backend == "zero3" else {}
    return scenarios.make_engine(backend, lambda: build(name), rebuilt, dtype=dtype, **at_once)


def adapter_life(folder: str) -> dict[Any, Any]:
    """Each kind under each backend: losses, gradient norms, what is kept, and what is resumed."""
    found: dict[Any, Any] = {}
    for name, backend in LIVES:
        found[name, backend] = live(Path(folder) / name / backend, backend, name)
    for name in NARROW:
        found[name, "narrow"] = [
            scenarios.run_steps(make_engine(backend, name, "bfloat16"), 0, 4)
            for backend in ("twin", "zero3")
        ]
    for name, move in RESUMES:
        found[name, move] = resume(Path(folder) / name / move[0], move[1], name)
    return found


def live(folder: Path, backend: str, name: str) -> dict[str, Any]:
    engine = make_engine(backend, name)
    steps = [scenarios.run_step(engine, step) for step in range(2)]
    Catalogue(folder).save(2, engine, {})
    steps += [scenarios.run_step(engine, step) for step in range(2, 5)]
    return {
        "losses": [step["loss"] for step in steps],
        "norms": [step["norm"] for step in steps],
        "weights": scenarios.weights_as_lists(engine),
        "bytes": engine.optimizer_bytes(),
        "saved": saved_names(folder),
        "evaluated": float(engine.evaluate(scenarios.global_micro_batches(99)[0]).loss_sum),
    }


def resume(folder: Path, backend: str, name: str) -> list[float]:
    engine = make_engine(backend, name)
    checkpoint = Catalogue(folder).newest()
    assert checkpoint is not None
    load_checkpoint(engine, checkpoint)
    return scenarios.run_steps(engine, 2, 5)


def saved_names(folder: Path) -> set[str]:
    """Parameters that the checkpoint of a folder holds anything of."""
    names = set()
    for path in folder.glob("checkpoint-*/*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= {key.split("/")[1] for key in file.keys()}  # noqa: SIM118
    return names


def plain_steps(name: str, num_steps: int) -> list[float]:
    """Losses by torch's AdamW alone, in float64 on one process."""
    model = build(name).double()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=scenarios.LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(num_steps):
        batches = scenarios.global_micro_batches(step)
        count = sum(int(batch.loss_mask.sum()) for batch in batches)
        loss = sum(model(*batch).loss_sum for batch in batches) / count
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
    return losses
