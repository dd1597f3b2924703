"""The serving benchmark's figures as text, tables and a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _serve_contest import PEERS, VLLM, Answered, Entry, ServeContestSettings

OURS = "ours"
SHARED_DTYPES = ("float32", "bfloat16")
"""Precisions that peers take part in."""
NO_VLLM = "not measured here; give vllm_python, the Python of an environment with vLLM"
Cell = dict[str, Any]


def collect(
    settings: ServeContestSettings,
    turns: dict[Entry, list[Answered]],
    errors: dict[str, str],
) -> dict[str, Any]:
    """The figures, under the names they are published by."""
    cells = [_cell(entry, found, _reference(turns, entry)) for entry, found in turns.items()]
    exact = [cell for cell in cells if cell["dtype"] == "float32" and cell["kind"] == OURS]
    versus_vllm = at_best(cells, (VLLM,))
    return {
        "vs_transformers_best": at_best(cells, PEERS),
        "vs_vllm_cpu": versus_vllm or None,
        **({} if versus_vllm else {"vs_vllm_cpu_reason": _why_not(VLLM, errors)}),
        "equal_tokens_fp32": all(cell["num_equal"] == cell["num_answers"] for cell in exact),
        "fixed_shapes_cost": {
            dtype: 1 - 1 / ratio for dtype, ratio in _variants(cells, "ours, free shapes")
        },
        "prefix_vs_causal": dict(_variants(cells, "ours, prefix")),
        "vs_transformers_best_by": [
            dict(zip(("load", "dtype", "slots", "ratio"), row, strict=True))
            for row in best_ratios(cells, PEERS)
        ],
        "vs_vllm_cpu_by": [
            dict(zip(("load", "dtype", "slots", "ratio"), row, strict=True))
            for row in best_ratios(cells, (VLLM,))
        ],
        "unit": next(iter(turns.values()))[0].unit,
        "cells": cells,
        "errors": errors,
        "parameters": settings.model.num_parameters,
        "threads": settings.num_threads,
        "loads": {name: load.model_dump() for name, load in settings.loads.items()},
    }


def _why_not(kind: str, errors: dict[str, str]) -> str:
    """Why a contestant has no figure."""
    return next((text for name, text in errors.items() if name.endswith(kind)), NO_VLLM)


def at_best(cells: Sequence[Cell], peers: Sequence[str]) -> dict[int, float]:
    """By slots, ours against the fastest of the peers, each in its fastest precision.

    Precisions are those that all have, and of several loads the worst ratio counts.
    """
    speeds: dict[tuple[str, int, bool], float] = {}
    for cell in cells:
        if cell["dtype"] in SHARED_DTYPES and cell["kind"] in (OURS, *peers):
            place = cell["load"], cell["slots"], cell["kind"] == OURS
            speeds[place] = max(cell["speed"], speeds.get(place, 0.0))
    found: dict[int, float] = {}
    for load, slots, is_ours in sorted(speeds):
        if is_ours and (load, slots, False) in speeds:
            ratio = speeds[load, slots, True] / speeds[load, slots, False]
            found[slots] = min(ratio, found.get(slots, ratio))
    return dict(sorted(found.items()))


def best_ratios(cells: Iterable[Cell], among: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """Load, precision, slots, and ours against the fastest peer, tokens a unit of time."""
    speeds = {(c["load"], c["dtype"], c["slots"], c["kind"]): c["speed"] for c in cells}
    found = []
    for *place, kind in speeds:
        peers = [speeds[*place, peer] for peer in among if (*place, peer) in speeds]
        if kind == OURS and peers:
            found.append((*place, speeds[*place, OURS] / max(peers)))
    return found


def _cell(entry: Entry, found: Sequence[Answered], reference: list[list[int]]) -> Cell:
    answers = found[0].answers
    return {
        "load": entry.load,
        "dtype": entry.dtype,
        "slots": entry.slots,
        "kind": entry.kind,
        "speed": median(turn.speed for turn in found),
        "per_second": median(turn.num_tokens / turn.seconds for turn in found),
        "turns": [turn.speed for turn in found],
        "num_tokens": found[0].num_tokens,
        "num_answers": len(answers),
        "num_equal": sum(a == b for a, b in zip(answers, reference, strict=True)),
    }


def _reference(turns: dict[Entry, list[Answered]], entry: Entry) -> list[list[int]]:
    """Answers to the same load in the same precision by the first peer, else by ours."""
    same = [each for each in turns if (each.load, each.dtype) == (entry.load, entry.dtype)]
    peers = [each for each in same if each.kind == PEERS[0]]
    return turns[(peers or same)[0]][0].answers


def _variants(cells: Iterable[Cell], kind: str) -> list[tuple[str, float]]:
    """Precision, and a variant of our engine against it."""
    cells = list(cells)
    ours = {(c["load"], c["dtype"], c["slots"]): c for c in cells if c["kind"] == OURS}
    return [
        (
            c["dtype"],
            c["speed"] / ours[c["load"], c["dtype"], c["slots"]]["speed"],
        )
        for c in cells
        if c["kind"] == kind
    ]


def describe(figures: dict[str, Any]) -> str:
    """The page."""
    loads, num_turns = figures["loads"], len(figures["cells"][0]["turns"])
    chapters = "\n".join(_chapter(figures, name, load) for name, load in loads.items())
    equal = "equal" if figures["equal_tokens_fp32"] else "NOT EQUAL"
    costs = ", ".join(f"{d} {c:.1%}" for d, c in figures["fixed_shapes_cost"].items())
    prefix = ", ".join(f"{d} {c:.2f}" for d, c in figures["prefix_vs_causal"].items())
    errors = "".join(
        f"\n`{kind}` could not run: {text}\n" for kind, text in figures["errors"].items()
    )
    return (
        f"# Serving speed, offline\n\nA random causal model of GLM-4's block with "
        f"{figures['parameters'] / 1e6:,.1f} million parameters, {figures['threads']} torch "
        "thread(s) each, greedy, all requests there at once. *ours* is the engine of "
        "`glm_dist.inference`; *generate* is transformers, one by one or in static batches padded "
        "on the left, where answers of equal length were put together, which no server could know; "
        "*continuous batching* is transformers' own, *vLLM* vLLM's engine in an "
        "environment of its own. Each measured in a fresh process by turns; "
        f"tokens that were asked for, a {figures['unit']} of the process; median of {num_turns} "
        f"turn(s). Only ratios mean anything elsewhere.\n\nGreedy tokens in float32 are {equal} "
        "for all requests, in any "
        "number of slots. What it costs that shapes are fixed, so that an answer does not depend "
        f"on its neighbours: {costs}. A prefix model of the same shape, as a share of the causal "
        f"one's speed: {prefix}.\n{errors}\n{_ratio_table(figures)}\n{chapters}\n"
        f"![tokens a {figures['unit']}](serve-tokens.png)\n"
    )


def _ratio_table(figures: dict[str, Any]) -> str:
    """Ours against the others by slots, best precision against best precision."""
    rows = {
        "best of transformers": figures["vs_transformers_best"],
        "vLLM": figures["vs_vllm_cpu"] or {},
    }
    slots = sorted({count for found in rows.values() for count in found}, key=int)
    head = " | ".join(map(str, slots))
    lines = [
        f"| {name} | " + " | ".join(f"{found[n]:.2f}" if n in found else "–" for n in slots) + " |"
        for name, found in rows.items()
    ]
    return (
        "Ours, as a multiple of another's speed, each in its faster one of float32 and bfloat16 "
        "(of several loads the worst):\n\n"
        f"| answers at a time | {head} |\n|---|{'---|' * len(slots)}\n" + "\n".join(lines) + "\n"
    )


def _chapter(figures: dict[str, Any], name: str, load: dict[str, Any]) -> str:
    cells = [cell for cell in figures["cells"] if cell["load"] == name]
    rows = "\n".join(
        f"| {c['dtype']} | {c['slots']} | {c['kind']} | {c['speed']:,.1f} "
        f"| {c['per_second']:,.1f} | {c['num_equal']}/{c['num_answers']} |"
        for c in cells
    )
    return (
        f"## {name.capitalize()} answers\n\n{load['num_requests']} requests of "
        f"{'–'.join(map(str, load['prompt_tokens']))} tokens, answered with "
        f"{'–'.join(map(str, load['answer_tokens']))}.\n\n| precision | slots | | tokens a "
        f"{figures['unit']} | tokens/s | answers equal to generate's in this precision |\n"
        f"|---|---|---|---|---|---|\n{rows}\n"
    )


def draw(path: Path, figures: dict[str, Any]) -> None:
    """A panel for each load and precision, a line for each contestant over the slots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    cells = figures["cells"]
    panels = list(dict.fromkeys((cell["load"], cell["dtype"]) for cell in cells))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    lines: dict[str, Any] = {}
    for axes, (load, dtype) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for number, kind in enumerate((OURS, *PEERS, VLLM)):
            points = sorted(
                (cell["slots"], cell["speed"])
                for cell in cells
                if (cell["load"], cell["dtype"], cell["kind"]) == (load, dtype, kind)
            )
            if points:
                (line,) = axes.plot(
                    *zip(*points, strict=True), "o-", color=f"C{number}", label=kind
                )
                lines[kind] = line
        axes.set(title=f"{load} answers, {dtype}", xlabel="answers at a time", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        lines.values(), lines, loc="outside lower center", ncols=len(lines), frameon=False
    )
    figure.supylabel(f"tokens a {figures['unit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
