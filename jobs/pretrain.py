#!/usr/bin/env python3
"""Pretrain a GLM on a prepared dataset.

python jobs/pretrain.py                              the sample dataset, a small model
python jobs/pretrain.py --config FILE key=value …    your own run
ray job submit --working-dir . -- python jobs/pretrain.py …   the same on a cluster
"""

import argparse
import json
import sys
from pathlib import Path

from _driver import RESUME_ME, as_driver
from _job import run_job
from _training import launch_shown

from glm_dist.config import output_path
from glm_dist.train.settings import PretrainSettings

TERMINAL_HEADER = (
    f"{'step':>12} {'loss':>8} {'token':>7} {'sent.':>7} {'doc.':>7} {'lr':>9} {'norm':>6}"
    f" {'tokens/s':>9} {'MFU':>6} {'left':>7}"
)


def main(settings: PretrainSettings, arguments: argparse.Namespace) -> int:
    """Train, then say where everything lies; RESUME_ME when the run was asked to stop early."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.launch import resolve
    from glm_dist.train.report import publish_report, write_report

    dataset = TokenDataset.open(output_path(settings.dataset))
    settings = resolve(settings, dataset)
    if arguments.plan:
        from glm_dist.train.plan import describe_hours, describe_plan

        print(describe_plan(settings, dataset), flush=True)
        print(f"{'hours':<12} {describe_hours(settings, dataset)}")
        return 0
    run_folder, origin = settings.run_path, provenance()
    launched = launch_shown(settings, Terminal(settings.num_steps))
    if launched.ending.kind != "finished":
        print(f"stopped      saved at step {launched.ending.step} of {settings.num_steps}")
        print("next         the same command again goes on from there")
        return RESUME_ME
    summary = write_report(run_folder, settings, dataset, origin)
    print_summary(summary, launched.run_folder)
    if arguments.docs:
        print(f"published    {publish_report(run_folder, settings, Path(arguments.docs))}")
    return 0


def resumed_step(settings: PretrainSettings) -> int:
    """Where the last attempt began; when drivers die and it stays, they are in a crash loop."""
    paths = (settings.run_path / "attempts").glob("attempt-*.json")
    return max((json.loads(path.read_text())["state"]["step"] for path in paths), default=0)


class Terminal:
    """One readable line a log step."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._lines = 0

    def show(self, text: str) -> None:
        """Print the figures of one JSON line."""
        line = json.loads(text)
        if "heldout/loss" in line:
            print(
                f"{line['step']:>12} held-out loss {line['heldout/loss']:.3f}, unigram entropy "
                f"{line['heldout/unigram_entropy']:.3f}, {line['heldout/bits_per_byte']:.3f} bits "
                "a byte",
                flush=True,
            )
            return
        if self._lines % 25 == 0:
            print(TERMINAL_HEADER)
        if self._lines == 0 and "mfu" not in line:
            print("no MFU: the peak of this device is not known")
        self._lines += 1
        print(self._row(line), flush=True)

    def show_event(self, text: str) -> None:
        """Say what people want to know of an event."""
        event = json.loads(text)
        if event["event"] == "discarded":
            print(f"{event['step']:>12} left out: {event['reason']}", flush=True)
        elif event["event"] == "alarm":
            print(f"{event['step']:>12} {event['cause']}: the run goes back", flush=True)
        elif event["event"] == "slow rank":
            print(
                f"{event['step']:>12} rank {event['rank']} on {event['host']} keeps the others "
                f"waiting: its passes take {event['factor']} times as long",
                flush=True,
            )

    def _row(self, line: dict[str, float]) -> str:
        def figure(name: str, form: str) -> str:
            return format(line[name], form) if name in line else "-"

        left = (self._num_steps - line["step"]) * line.get("seconds_per_step", 0.0)
        return (
            f"{int(line['step']):>6}/{self._num_steps:<5} {figure('loss', '.3f'):>8} "
            f"{figure('loss/token', '.3f'):>7} {figure('loss/sentence', '.3f'):>7} "
            f"{figure('loss/document', '.3f'):>7} {line['learning_rate']:>9.2e} "
            f"{line['grad_norm']:>6.2f} {line['tokens_per_second']:>9,.0f} "
            f"{figure('mfu', '.1%'):>6} {format_seconds(left):>7}"
        )


def format_seconds(seconds: float) -> str:
    """Seconds as 45s, 12m or 3.5h."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 5400 else f"{seconds / 3600:.1f}h"


def print_summary(summary: dict, run_folder: Path) -> None:
    """The figures that matter, where results lie, and the next command."""
    if "heldout/loss" in summary:
        print(
            f"held-out loss on text tokens {summary['heldout/loss']:.3f} nats; unigram entropy of "
            f"the same tokens {summary['heldout/unigram_entropy']:.3f}; ratio "
            f"{summary['heldout/loss_over_unigram']:.3f}; with shuffled context "
            f"{summary['heldout/loss_shuffled_context']:.3f}"
        )
    print(f"report       {run_folder / 'report.md'}")
    print(f"model        {run_folder / 'model'}")
    print(f'next         python jobs/generate.py --model {run_folder} "The function returns"')


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--plan", action="store_true", help="print sizes, memory and work of the run, and stop"
    )
    parser.add_argument(
        "--docs", metavar="FOLDER", help="leave a copy of the report there, with its origin"
    )


if __name__ == "__main__":
    sys.exit(
        run_job(
            as_driver(main, resumed_step),
            PretrainSettings,
            description=__doc__ or "",
            add_flags=add_flags,
        )
    )
