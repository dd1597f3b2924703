"""What HTTP and Ray add to an engine, as text, a table and a picture."""

from pathlib import Path
from typing import Any

from glm_dist.metrics.provenance import describe

COLUMNS = (("ttft_ms", "to the first token"), ("between_ms", "between two tokens"))
RANKS = ("p50", "p99")


def describe_online(figures: dict[str, Any]) -> str:
    """A chapter of the page."""
    found = figures["online"]
    settings = found["settings"]
    prompt, answer = (
        "–".join(map(str, settings[name])) for name in ("prompt_tokens", "answer_tokens")
    )
    rows = "\n".join(
        _row(path, cost, found["added"].get(path)) for path, cost in found["paths"].items()
    )
    heads = " | ".join(f"{rank}, ms {label}" for _, label in COLUMNS for rank in RANKS)
    return (
        f"\n## Through HTTP and Ray\n\nThe same engine asked in its own process and behind "
        "Ray Serve, whose proxy or HAProxy takes the requests (`proxy`), with or without a front "
        f"before the engine (`front`), by turns: {settings['num_requests']} requests of {prompt} "
        f"tokens, answered with {answer}. Times are of requests that come by "
        f"a Poisson process, {found['arrivals_per_second']:.2f} a second, "
        f"{settings['share_of_peak']:.0%} of what the engine alone answers; tokens a second are of "
        f"{settings['num_clients']} clients that ask one after the other. Medians of "
        f"{settings['turns']} turns. The client is a process on the same cores. "
        "Prompts are in the engine's cache, from the closed loop with the same requests before.\n\n"
        f"On the shortest way HTTP and Ray add {figures['http_ttft_ms_added']:.1f} ms to the "
        f"median time to the first token and leave {figures['http_throughput_share']:.1%} of the "
        f"throughput.\n\n| | {heads} | tokens/s | added, ms | throughput left |\n"
        f"|---|{'---|' * (len(COLUMNS) * len(RANKS) + 3)}\n{rows}\n\n"
        f"![milliseconds and tokens a second](serve-online.png)\n\n{describe(found['origin'])}\n"
    )


def _row(path: str, cost: dict[str, Any], added: dict[str, float] | None) -> str:
    cells = [f"{cost[name][rank]:,.1f}" for name, _ in COLUMNS for rank in RANKS]
    cells.append(f"{cost['tokens_per_second']:,.1f}")
    if added is None:
        cells += ["", ""]
    else:
        cells.append(f"{added['http_ttft_ms_added']:+.1f}")
        cells.append(f"{added['http_throughput_share']:.1%}")
    return f"| {path} | {' | '.join(cells)} |"


def draw_online(path: Path, found: dict[str, Any]) -> None:
    """Times to the first token, times between tokens and throughput, a bar for each path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    paths = found["paths"]
    figure = Figure(figsize=(11, 3), layout="constrained")
    panels = [(f"ms {label}, median", name) for name, label in COLUMNS]
    *times, speed = figure.subplots(1, len(panels) + 1, sharey=True)
    for axes, (title, name) in zip(times, panels, strict=True):
        axes.barh(list(paths), [cost[name]["p50"] for cost in paths.values()], height=0.6)
        axes.set_title(title, fontsize=10)
    speed.barh(list(paths), [cost["tokens_per_second"] for cost in paths.values()], height=0.6)
    speed.set_title(f"tokens/s, {found['settings']['num_clients']} clients", fontsize=10)
    for axes in (*times, speed):
        axes.spines[["top", "right"]].set_visible(False)
    speed.invert_yaxis()  # of all three: they share it
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
