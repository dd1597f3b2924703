"""What the engine tests run on several ranks; importable, so that spawned processes find it."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from glm_dist.engine import (
    Catalogue,
    Engine,
    EngineSettings,
    build_engine,
    catalogue,
    load_checkpoint,
)
from glm_dist.errors import CheckpointError
from glm_dist.model import Batch, LossOutput, ModelSettings, build_model

VOCABULARY, WIDTH, LENGTH, ROWS = 37, 24, 16, 4
MICRO_BATCHES = 2
LEARNING_RATE = 1e-2
BACKENDS = ("twin", "zero0", "zero1", "zero2", "zero3")
OFFLOADED = ("zero2-offloaded", "zero3-offloaded")
SAME = [(name, name) for name in (*BACKENDS, *OFFLOADED)]
OTHER_STAGE = [("zero2", "zero3"), ("zero3", "zero1"), ("zero2", "twin"), ("twin", "zero2")]
ONE_RANK = [("zero2", "zero2"), ("zero3", "zero3"), ("zero1", "zero3"), ("zero0", "twin")]
_LINEAR = F.linear


class TinyModel(nn.Module):
    """A model with GLM's forward: an embedding, two layers, a norm and the tied head."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.first = nn.Linear(WIDTH, 3 * WIDTH)
        self.second = nn.Linear(3 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        segment_ids: Tensor,
        prefix_ends: Tensor,
        loss_mask: Tensor,
    ) -> LossOutput:
        hidden = self.embedding(tokens)
        hidden = hidden + self.second(F.gelu(self.first(hidden)))
        logits = self.head(self.norm(hidden)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
        losses = losses.view(targets.shape) * loss_mask
        return LossOutput(losses.sum(), losses.detach())


def settings_of(backend: str, **options: Any) -> EngineSettings:
    """Settings of one of BACKENDS, fp32 unless told; small buckets, so that several are filled."""
    options = {"dtype": "float32", "reduce_bucket_elements": 1000, **options}
    if backend == "twin":
        options.pop("reduce_bucket_elements")
        return EngineSettings(backend="torch", **options)
    stage, _, offloaded = backend.removeprefix("zero").partition("-")
    if offloaded:
        options["offload_optimizer"] = "cpu"
    if stage == "0":
        options.pop("reduce_bucket_elements")
    if stage == "3":
        options["persistent_parameter_elements"] = 100
    return EngineSettings(zero_stage=int(stage), **options)


def make_engine(
    backend: str, model: Callable[[], nn.Module] = TinyModel, rebuilt: Any = (), **options: Any
) -> Engine:
    """An engine, of the tiny model unless told."""
    F.linear = _LINEAR  # which ZeRO 3 replaces for the whole process
    return build_engine(model, settings_of(backend, **options), rebuilt)


def global_micro_batches(step: int, shares: int = 2) -> list[Batch]:
    """All micro-batches of a step, `shares` ranks times MICRO_BATCHES, whoever takes them.

    Loss-bearing tokens are spread unevenly, and on every third step the last share has none.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    batches = []
    for share in range(shares):
        for _ in range(MICRO_BATCHES):
            tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
            mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.2 + 0.5 * share / shares
            if share == shares - 1 and step % 3 == 2:
                mask = torch.zeros_like(mask)
            zeros = torch.zeros_like(tokens)
            targets = (tokens * 3 + 1) % VOCABULARY
            batches.append(Batch(tokens, targets, zeros, zeros, zeros + 1, zeros, mask.byte()))
    return batches


def run_step(engine: Engine, step: int, learning_rate: float = LEARNING_RATE) -> dict[str, float]:
    """One step on this rank's share of the global batch; its mean loss over all ranks."""
    everything = global_micro_batches(step)
    backward_all(engine, everything)
    health = engine.prepare()
    engine.apply(learning_rate)
    return {"loss": mean_loss(engine, everything), "norm": float(health.grad_norm)}


def backward_all(engine: Engine, everything: list[Batch], factor: float = 1.0) -> None:
    """Backward over this rank's share; its summed losses stay on the engine for `mean_loss`."""
    count = sum(int(batch.loss_mask.sum()) for batch in everything)
    share = len(everything) // engine.world_size
    own = everything[engine.rank * share : (engine.rank + 1) * share]
    losses = []
    for number, batch in enumerate(own, start=1):
        batch = batch.to(engine.device)
        output = engine.backward(batch, factor / count, is_last=number == len(own))
        losses.append(output.token_losses.double().sum())
    engine.test_loss_sum = torch.stack(losses).sum()


def mean_loss(engine: Engine, everything: list[Batch]) -> float:
    """Global mean of the losses of the last `backward_all`."""
    total = engine.test_loss_sum.cpu()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total) / sum(int(batch.loss_mask.sum()) for batch in everything)


def run_steps(engine: Engine, first: int, last: int) -> list[float]:
    """Losses of the steps [first, last)."""
    return [run_step(engine, step)["loss"] for step in range(first, last)]


def snapshot(engine: Engine) -> dict[str, Any]:
    """A copy of everything this rank keeps."""
    return {
        f"{piece.name}@{piece.offset}": (
            piece.step,
            *(tensor.clone().cpu() for tensor in piece.tensors.values()),
        )
        for piece in engine.slices()
    }


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two snapshots are equal to the bit."""
    return one.keys() == other.keys() and all(
        a[0] == b[0] and all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
        for a, b in ((one[key], other[key]) for key in one)
    )


def weights_as_lists(engine: Engine) -> dict[str, list[float]] | None:
    """`full_weights` in a form that leaves the process."""
    weights = engine.full_weights()
    if weights is None:
        return None
    return {name: tensor.flatten().tolist() for name, tensor in weights.items()}


# A start of several ranks is what costs, so one start covers all backends and questions.


def first_life(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that needs no earlier process; `folder` gets checkpoints and what was printed."""
    _capture_output(Path(folder) / f"output-{dist.get_rank()}")
    os.environ["TORCH_EXTENSIONS_DIR"] = f"{folder}/extensions"
    options = {"gradient_clip_norm": 0.5, **options}
    names = (*BACKENDS, *OFFLOADED)
    return {
        "curves": {name: train_curve(make_engine(name, **options), 20) for name in names},
        "lives": {name: drop_and_save(Path(folder) / name, name, options) for name in names},
        "glm": {name: glm_losses(name, options) for name in BACKENDS},
        "missing": missing_private_names(),
        "failed_save": failed_save(Path(folder) / "failed"),
    }


def second_life(folder: str, options: dict[str, Any], moves: list[tuple[str, str]]) -> Any:
    """Load what `first_life` saved by one backend into another, and train on."""
    options = {"gradient_clip_norm": 0.5, **options}
    return {(source, name): resume(Path(folder) / source, name, options) for source, name in moves}


def life_alone(folder: str, options: dict[str, Any], moves: list[tuple[str, str]]) -> Any:
    """`second_life` and the twin's curve on a single rank."""
    resumed = second_life(folder, options, moves)
    engine = make_engine("twin", gradient_clip_norm=0.5, **options)
    return {"resumed": resumed, "curve": train_curve(engine, 20)}


def train_curve(engine: Engine, num_steps: int) -> dict[str, Any]:
    """Losses, gradient norms, final weights and bytes."""
    steps = [run_step(engine, step) for step in range(num_steps)]
    return {
        "losses": [step["loss"] for step in steps],
        "norms": [step["norm"] for step in steps],
        "weights": weights_as_lists(engine),
        "bytes": engine.optimizer_bytes(),
    }


def drop_and_save(folder: Path, backend: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train, discard a step and one with a NaN in one rank's loss, train, save, train."""
    engine = make_engine(backend, **options)
    found: dict[str, Any] = {}
    run_steps(engine, 0, 2)
    before, probe = snapshot(engine), _probe(engine)
    backward_all(engine, global_micro_batches(50))
    engine.prepare()
    engine.discard()
    found["discard_keeps_state"] = is_same(before, snapshot(engine))
    found["discard_keeps_weights"] = probe == _probe(engine)
    backward_all(engine, global_micro_batches(51), float("nan") if engine.rank == 0 else 1.0)
    health = engine.prepare()
    found["nan_seen"] = not bool(health.is_finite)
    found["nan_norm"] = float(health.grad_norm)
    engine.discard()
    found["nan_discard_keeps_state"] = is_same(before, snapshot(engine))
    found["losses_after"] = run_steps(engine, 2, 3)
    Catalogue(folder).save(3, engine, {"next_row": 24, "note": "三"})
    found["losses_after"] += run_steps(engine, 3, 6)
    found["end"] = _digest(snapshot(engine))
    return found


def failed_save(folder: Path) -> str:
    """What a save says on this rank when only rank 1 cannot write."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if dist.get_rank() == 1:
        catalogue.save_slices = fail
    engine = make_engine("twin")
    try:
        Catalogue(folder).save(3, engine, {})
    except CheckpointError as error:
        return str(error)
    return "saved"


def resume(folder: Path, backend: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load and train the same three steps."""
    checkpoint = Catalogue(folder).newest()
    assert checkpoint is not None
    engine = make_engine(backend, **options)
    state = load_checkpoint(engine, checkpoint)
    losses = run_steps(engine, 3, 6)
    return {"state": state, "losses": losses, "end": _digest(snapshot(engine))}


COMPILED = ("twin", "zero2", "zero3")


def glm_losses(backend: str, options: dict[str, Any]) -> list[float]:
    """Losses of a small real GLM: tied weights, layers computed again in the backward pass."""
    settings = ModelSettings(
        preset=None,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        ffn_hidden_size=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        activation_checkpointing="full",
    )
    engine = build_engine(lambda: build_model(settings), settings_of(backend, **options))
    return run_steps(engine, 0, 6)


def compiled_glm_losses() -> dict[str, list[float]]:
    """The same with compiled layers, by backend."""
    return {name: glm_losses(name, {"compile_layers": True}) for name in COMPILED}


def missing_private_names() -> dict[str, list[str]]:
    """What seam.py uses of each stage's optimizer and does not find, by stage."""
    wanted = {
        "zero1": ["update_lp_params", "get_grads_for_norm", "zero_grad"],
        "zero2": ["update_lp_params", "scaled_global_norm", "check_overflow", "averaged_gradients"],
        "zero3": [
            "_get_norm_groups",
            "_partition_all_parameters",
            "_reassign_or_swap_out_partitioned_parameters",
            "fp16_groups",
            "fp32_partitioned_groups_flat",
            "get_param_id",
            "grad_position",
            "persistent_parameters",
        ],
    }
    found = {}
    for backend, names in wanted.items():
        engine = make_engine(backend, dtype="bfloat16")._engine
        found[backend] = [name for name in names if not hasattr(engine.optimizer, name)]
        fields = ["ds_tensor", "ds_numel", "ds_shape"] if backend == "zero3" else ["_hp_mapping"]
        weights = list(engine.module.parameters())
        found[backend] += [name for name in fields if not all(hasattr(w, name) for w in weights)]
    return found


def _capture_output(path: Path) -> None:
    """Send what this process prints from now on, libraries' C code included, to a file."""
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _probe(engine: Engine) -> float:
    batch = global_micro_batches(99)[0].to(engine.device)
    return float(engine.evaluate(batch).loss_sum)


def _digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, (step, *tensors) in sorted(state.items()):
        digest.update(f"{name}:{step}".encode())
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


FP16 = {"dtype": "float16", "gradient_clip_norm": 0.5, "loss_scale_growth_steps": 3}
TOO_LARGE = 2.0**24


def fp16_life(folder: str) -> dict[str, Any]:
    """Every backend in fp16: a calm curve, and one whose loss scale begins far too high.

    The second is saved after ten steps and goes on for five more.
    """
    found = {}
    for name in (*BACKENDS, *OFFLOADED):
        calm = make_engine(name, **{**FP16, "loss_scale_growth_steps": 99}, initial_loss_scale=64)
        searching = make_engine(name, **FP16, initial_loss_scale=TOO_LARGE)
        first = [try_step(searching, step) for step in range(10)]
        Catalogue(Path(folder) / name).save(10, searching, {})
        found[name] = {
            "calm": [try_step(calm, step) for step in range(20)],
            "searching": [*first, *(try_step(searching, step) for step in range(10, 15))],
            "end": _digest(snapshot(searching)),
        }
    return found


def fp16_second_life(folder: str) -> dict[str, Any]:
    """The last five steps of `fp16_life`, from its checkpoints."""
    found = {}
    for name in (*BACKENDS, *OFFLOADED):
        checkpoint = Catalogue(Path(folder) / name).newest()
        assert checkpoint is not None
        engine = make_engine(name, **FP16)
        load_checkpoint(engine, checkpoint)
        steps = [try_step(engine, step) for step in range(10, 15)]
        found[name] = {"searching": steps, "end": _digest(snapshot(engine))}
    return found


def try_step(engine: Engine, step: int) -> dict[str, Any]:
    """One step, applied where its gradient is finite."""
    everything = global_micro_batches(step)
    before = snapshot(engine)
    backward_all(engine, everything)
    health = engine.prepare()
    is_good = bool(health.is_finite)
    if is_good:
        engine.apply(LEARNING_RATE)
    else:
        engine.discard()
        assert is_same(before, snapshot(engine))
    return {
        "loss": mean_loss(engine, everything),
        "norm": float(health.grad_norm),
        "scale": health.loss_scale,
        "applied": is_good,
    }


def save_at(url: str, step: int, is_ready: Any) -> None:
    """Commit a checkpoint there, after saying so."""
    engine, found = make_engine("twin"), Catalogue(url)
    is_ready.set()
    found.save(step, engine, {"next_row": step})


def look_at(url: str, sender: Any) -> None:
    """Send the newest step there, 0 for none, and how many checkpoints are damaged."""
    found = Catalogue(url)
    newest = found.newest()
    sender.send((newest.step if newest else 0, len(found.damaged)))
