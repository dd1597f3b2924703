"""The training benchmark's figures as text, a table and a picture."""

from pathlib import Path
from statistics import median
from typing import Any

from _contest import WARMUP_WINDOWS, Turn, rows_of

from glm_dist.train.settings import PretrainSettings

TRAINER = "transformers Trainer"


def collect(
    settings: PretrainSettings,
    turns: dict[str, list[Turn]],
    matmul_rate: float,
    profile: dict[str, float],
) -> dict[str, Any]:
    """The figures of one model, under the names they are published by."""
    windows = {kind: [s for turn in found for s in turn.speeds] for kind, found in turns.items()}
    medians = {kind: median(values) for kind, values in windows.items()}
    engine = turns["distributed"][0].engine
    flops = flops_per_token(settings)
    return {
        **ratios(medians),
        "mfu": medians["distributed"] * flops / matmul_rate,
        "vs_bare_loop_by_turn": [
            median(ours.speeds) / median(bare.speeds)
            for ours, bare in zip(turns["distributed"], turns["bare loop"], strict=True)
        ],
        "tokens_per_second": medians,
        "share_of_matmul_rate": {kind: v * flops / matmul_rate for kind, v in medians.items()},
        "matmul_flops_per_second": matmul_rate,
        "useful_flops_per_token": flops,
        "windows": windows,
        "profile": profile,
        "peak_memory_bytes": {
            kind: max(turn.peak_memory_bytes for turn in found) for kind, found in turns.items()
        },
        "data_wait_share": median(turn.data_wait_share for turn in turns["distributed"]),
        "parameters": settings.model.num_parameters,
        "sequence_length": settings.rows.sequence_length,
        "global_batch_size": settings.batch.global_batch_size,
        "micro_batch_size": settings.batch.micro_batch_size,
        "steps_a_turn": settings.num_steps,
        "warmup_steps_a_turn": WARMUP_WINDOWS * settings.log_every_steps,
        "threads": max(1, int(settings.workers.cpus_per_worker)),
        "compile_layers": settings.engine.compile_layers,
        **{name: engine[name] for name in ("backend", "zero_stage", "dtype", "device")},
    }


def ratios(speeds: dict[str, float]) -> dict[str, float]:
    """The distributed run against each other way to train."""
    ours = speeds["distributed"]
    found = {"vs_bare_loop": ours / speeds["bare loop"]}
    if TRAINER in speeds:
        peers = [speed for kind, speed in speeds.items() if kind.startswith(TRAINER)]
        found["vs_transformers"] = ours / speeds[TRAINER]
        found["vs_transformers_best"] = ours / max(peers)
    return found


def flops_per_token(settings: PretrainSettings) -> float:
    """Useful operations of a token that is not padding: visible pairs and wanted logits only."""
    from glm_dist.metrics.flops import training_flops
    from glm_dist.objective import visible_keys
    from glm_dist.train.flops import shape_of

    tokens = loss_tokens = pairs = 0
    for step in rows_of(settings):
        for rows in step:
            ends = rows["prefix_ends"] * (not settings.model.causal)
            tokens += int((rows["segment_ids"] > 0).sum())
            loss_tokens += int(rows["loss_mask"].sum())
            pairs += int(visible_keys(rows["segment_ids"], ends).sum())
    return training_flops(shape_of(settings.model), tokens, loss_tokens, pairs) / tokens


def describe(sizes: list[dict[str, Any]]) -> str:
    """The page."""
    first = sizes[0]
    chapters = "\n".join(describe_size(figures) for figures in sizes)
    return (
        f"# Training speed\n\nRows of {first['sequence_length']} tokens, {first['dtype']} on "
        f"{first['device']}, one worker, {first['threads']} torch thread(s). *Distributed* is the "
        "whole path: Ray Data tasks build and stream the rows, "
        f"{first['backend']} (ZeRO stage {first['zero_stage']}) trains under Ray Train, metrics "
        "included. *Bare loop* is torch alone over rows that lie ready in memory "
        "(`jobs/_bare_loop.py`). *transformers Trainer* trains the same shape on the same rows "
        "(`jobs/_trainer_peer.py`) in bf16 with fused AdamW, as it comes and with torch.compile. "
        "All processes but that of the Trainer as it comes keep the memory that tensors free "
        "(`KEPT_MEMORY` in `glm_dist/engine/device.py`). "
        "Median over windows, by turns in one run; only ratios mean anything elsewhere. The share "
        "of the matrix product's rate counts useful operations alone, against a large square "
        f"product in the same dtype and run.\n\n{chapters}\n"
        "![tokens per second](train-tokens_per_second.png)\n"
    )


def describe_size(figures: dict[str, Any]) -> str:
    """One model's chapter."""
    speeds, peaks = figures["tokens_per_second"], figures["peak_memory_bytes"]
    shares = figures["share_of_matmul_rate"]
    rows = "\n".join(
        f"| {kind} | {speed:,.0f} | {speeds['distributed'] / speed:.3f} | {shares[kind]:.0%} "
        f"| {peaks[kind] / 2**20:,.0f} |"
        for kind, speed in speeds.items()
    )
    by_turn = ", ".join(f"{value:.3f}" for value in figures["vs_bare_loop_by_turn"])
    operations = ", ".join(
        f"{name.removeprefix('aten::')} {share:.0%}" for name, share in figures["profile"].items()
    )
    return (
        f"## {figures['parameters'] / 1e6:,.1f} million parameters\n\n"
        f"{figures['global_batch_size']} rows a step in micro-batches of "
        f"{figures['micro_batch_size']}, {figures['steps_a_turn']} steps a turn of which "
        f"{figures['warmup_steps_a_turn']} warm up.\n\n"
        "| | tokens/s | distributed is faster by | share of the matrix product's rate | peak "
        f"memory of the process, MiB |\n|---|---|---|---|---|\n{rows}\n\n"
        f"Against the bare loop in each turn: {by_turn}. The worker waited for rows in "
        f"{figures['data_wait_share']:.1%} of its time. Where the time of the bare loop goes, not "
        f"compiled, by torch's profiler: {operations}.\n"
    )


def draw(path: Path, sizes: list[dict[str, Any]]) -> None:
    """A panel for each model, a bar for each contestant, a point for each window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), squeeze=False)[:, 0]
    for axes, figures in zip(panels, sizes, strict=True):
        names = list(figures["tokens_per_second"])[::-1]
        for place, kind in enumerate(names):
            color = "#4c72b0" if kind == "distributed" else "#b0b0b0"
            axes.barh(place, figures["tokens_per_second"][kind], color=color, height=0.6)
            windows = figures["windows"][kind]
            axes.plot(windows, [place] * len(windows), ".", color="black", markersize=4)
        axes.set(
            yticks=range(len(names)),
            yticklabels=names,
            xlabel="tokens a second",
            title=f"{figures['parameters'] / 1e6:,.0f} million parameters",
        )
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
