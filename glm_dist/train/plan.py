"""What a run will be, before anything is started: sizes, memory, work."""

from statistics import median

from glm_dist.data.shards import TokenDataset
from glm_dist.metrics.flops import training_flops
from glm_dist.metrics.memory import MemoryPlan, activation_bytes, state_bytes
from glm_dist.model.tuning import meta_model, num_trained
from glm_dist.train.flops import shape_of, trained_share
from glm_dist.train.settings import PretrainSettings

EXPECTED_LOSS_SHARE = 0.3  # between token mode's 0.18 and document mode's 0.6 (GLM_SPEC 1.10)
FP32, BF16 = 4, 2


def plan_memory(settings: PretrainSettings, num_workers: int | None = None) -> MemoryPlan:
    """Bytes of one of so many ranks, those of the run if None; `auto` is planned as bf16."""
    model, engine = settings.model, settings.engine
    width = FP32 if engine.dtype == "float32" else BF16
    stage = engine.zero_stage if engine.backend == "deepspeed" else 0
    counts = count_parameters(settings)
    world_size = num_workers or settings.world_sizes[-1]
    weights, gradients, optimizer = state_bytes(*counts, width, stage, world_size)
    return MemoryPlan(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(
            settings.batch.micro_batch_size * settings.rows.sequence_length,
            model.hidden_size,
            model.num_layers,
            width,
            recompute=model.activation_checkpointing == "full",
        ),
        logits=float(2 * FP32 * model.loss_chunk_tokens * model.padded_vocab_size),
    )


def count_parameters(settings: PretrainSettings) -> tuple[int, int]:
    """Parameters of a run's model, what an adapter adds included, and how many are trained."""
    model = meta_model(settings.model, settings.tuning)
    return sum(parameter.numel() for parameter in model.parameters()), num_trained(model)


def plan_flops(settings: PretrainSettings) -> float:
    """Useful operations of the whole run, rows taken as full and causally half visible."""
    tokens = settings.num_steps * settings.tokens_per_step
    pairs = tokens * settings.rows.sequence_length / 2
    share = trained_share(settings.model, settings.tuning)
    loss_tokens = EXPECTED_LOSS_SHARE * tokens
    return training_flops(shape_of(settings.model), tokens, loss_tokens, pairs, share)


def describe_hours(settings: PretrainSettings, dataset: TokenDataset) -> str:
    """Hours of the whole run from a few real steps here, or why there were none."""
    from glm_dist.train.probe import free_bytes, probe_steps

    needed, free = plan_memory(settings, num_workers=1).total, free_bytes()
    if needed > free:
        return (
            f"not probed: one process needs about {needed / 2**30:,.1f} GiB and "
            f"{free / 2**30:,.1f} GiB are free here"
        )
    seconds = probe_steps(settings, dataset)
    step = median(seconds[len(seconds) // 4 :])
    return (
        f"{step * settings.num_steps / 3600:.2f}, from {len(seconds)} steps of one rank's share "
        f"in this process ({step:.3f} s each); sums between ranks, evaluation and checkpoints "
        f"come on top, and each of {settings.workers.num_workers} rank(s) is taken to be as fast "
        "as this one, on a device or cores of its own"
    )


def describe_plan(settings: PretrainSettings, dataset: TokenDataset) -> str:
    """What follows from the settings alone, as lines for a terminal."""
    memory = plan_memory(settings)
    tokens = settings.num_steps * settings.tokens_per_step
    parameters, trained = count_parameters(settings)
    lines = [
        ("parameters", f"{parameters:,}"),
        *([("trained", f"{trained:,} of them")] if trained < parameters else []),
        ("tokens", f"{tokens:,} ({tokens / parameters:.1f} a parameter)"),
        ("epochs", f"{tokens / max(1, dataset.num_tokens('train')):.2f} of {dataset.folder}"),
        ("steps", f"{settings.num_steps:,} of {settings.tokens_per_step:,} tokens"),
        (
            "batch",
            f"{settings.batch.global_batch_size} rows = {settings.world_sizes[-1]} workers x "
            f"{settings.accumulation_steps} micro-batches x {settings.batch.micro_batch_size}",
        ),
        ("useful work", f"{plan_flops(settings):.3g} FLOP"),
        *((name, f"{size / 2**20:,.0f} MiB a rank") for name, size in vars(memory).items()),
        ("memory", f"{memory.total / 2**20:,.0f} MiB a rank"),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)
