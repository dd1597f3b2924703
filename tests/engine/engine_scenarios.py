"""What the engine tests run on several ranks; importable, so that spawned processes find it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from glm_dist.engine import Engine, EngineSettings, build_engine
from glm_dist.model.batch import Batch, LossOutput

VOCABULARY, WIDTH, LENGTH, ROWS = 37, 24, 16, 4
MICRO_BATCHES = 2
LEARNING_RATE = 1e-2
BACKENDS = ("twin", "zero0", "zero1", "zero2", "zero3")


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
    stage = int(backend.removeprefix("zero"))
    if stage == 3:
        options = {"persistent_parameter_elements": 100, **options}
    return EngineSettings(zero_stage=stage, **options)


def make_engine(backend: str, **options: Any) -> Engine:
    """An engine of the tiny model."""
    return build_engine(TinyModel, settings_of(backend, **options))


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


# Scenarios: each runs on every rank and covers all backends, because a start is what costs.


def train_curves(options: dict[str, Any], num_steps: int, backends: tuple[str, ...]) -> Any:
    """Losses, gradient norms, final weights and bytes of every backend."""
    results = {}
    for backend in backends:
        engine = make_engine(backend, **options)
        steps = [run_step(engine, step) for step in range(num_steps)]
        results[backend] = {
            "losses": [step["loss"] for step in steps],
            "norms": [step["norm"] for step in steps],
            "weights": weights_as_lists(engine),
            "bytes": engine.optimizer_bytes(),
        }
    return results


def drop_steps(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a discarded step, and one with a NaN in one rank's loss, leave behind."""
    return {backend: _drop_steps(make_engine(backend, **options)) for backend in BACKENDS}


def _drop_steps(engine: Engine) -> dict[str, Any]:
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
    found["losses_after"] = run_steps(engine, 2, 5)
    return found


def undisturbed(options: dict[str, Any]) -> dict[str, list[float]]:
    """Losses of the steps 2 to 5 without anything discarded."""
    found = {}
    for backend in BACKENDS:
        engine = make_engine(backend, **options)
        run_steps(engine, 0, 2)
        found[backend] = run_steps(engine, 2, 5)
    return found


def _probe(engine: Engine) -> float:
    batch = global_micro_batches(99)[0].to(engine.device)
    return float(engine.evaluate(batch).loss_sum)


def each(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Results of several calls in one start."""
    return [function(*call) for call in calls]
