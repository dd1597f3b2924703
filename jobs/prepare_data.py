#!/usr/bin/env python3
"""Raw text → tokenizer and token shards.

python jobs/prepare_data.py                               this machine's Python documentation
python jobs/prepare_data.py --config jobs/configs/FILE    your own text
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from _job import run_job
from _ray import connect

from glm_dist.config import output_path
from glm_dist.data.prepare.settings import PrepareSettings
from glm_dist.data.shards import TokenDataset
from glm_dist.model.presets import PROPOSED_PRESETS
from glm_dist.model.settings import ModelSettings

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022


def main(settings: PrepareSettings, arguments: argparse.Namespace) -> None:
    """Prepare, then say what there is and what to do next."""
    from glm_dist.data.prepare.pipeline import prepare

    connect(num_cpus=None)
    dataset = prepare(settings, show_progress())
    print_summary(dataset)
    if arguments.show:
        from glm_dist.data.show import show_rows

        print(show_rows(dataset, arguments.show))
    config = write_ready_config(dataset, settings.output)
    print(f"dataset      {dataset.folder}")
    print(f"next         python jobs/pretrain.py --config {config}")


def show_progress() -> Callable[[str, int, int, float], None]:
    """A progress line with MB/s and ETA: rewritten on a terminal, one a stage elsewhere."""
    is_terminal = sys.stdout.isatty()
    last = [0.0]

    def progress(stage: str, done: int, total: int, seconds: float) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < (0.5 if is_terminal else 10):
            return
        last[0] = now
        speed = done / max(seconds, 1e-9)
        line = f"{stage:<8} {done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {speed / 1e6:.1f} MB/s"
        line += f"  {max(0, total - done) / max(speed, 1):.0f} s left"
        end = "\r" if is_terminal and done < total else "\n"
        print(line.ljust(70), end=end, flush=True)

    return progress


def print_summary(dataset: TokenDataset) -> None:
    """Counts by source and language, and what was left out."""
    report = dataset.manifest["report"]
    for split in ("train", "validation"):
        documents, tokens = dataset.num_documents(split), dataset.num_tokens(split)
        print(f"{split:<12} {documents:,} documents, {tokens:,} tokens")
    for kind in ("sources", "languages"):
        for name, tokens in dataset.manifest[kind].items():
            print(f"{kind[:-1]:<12} {name}: {tokens:,} tokens")
    print(
        f"left out     {report['duplicates']:,} duplicates, {report['bad_records']:,} bad records"
    )
    for path, count in report["excluded"].items():
        print(f"excluded     {count:,} documents that repeat text of {path}")


def propose_preset(num_tokens: int) -> str:
    """The largest preset the tokens suffice for at 20 a parameter, repeated up to 20 times."""
    fitting = [
        (ModelSettings(preset=name).num_parameters, name)
        for name in PROPOSED_PRESETS
        if ModelSettings(preset=name).num_parameters <= num_tokens
    ]
    return max(fitting)[1] if fitting else "glm-demo"


def write_ready_config(dataset: TokenDataset, output: str) -> Path:
    """A config for `pretrain` on this dataset; prints what it proposes."""
    num_tokens = dataset.num_tokens("train")
    preset = propose_preset(num_tokens)
    parameters = ModelSettings(preset=preset).num_parameters
    print(
        f"proposed     model {preset}: {parameters / 1e6:.1f} M parameters; {TOKENS_PER_PARAMETER} "
        f"tokens a parameter are {TOKENS_PER_PARAMETER * parameters / num_tokens:.0f} epochs here"
    )
    name = Path(output).name
    config = {
        "name": name,
        "dataset": output,
        "model": {"preset": preset},
        "duration": {"num_tokens": TOKENS_PER_PARAMETER * parameters},
    }
    path = output_path(output) / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N finished rows")


if __name__ == "__main__":
    sys.exit(run_job(main, PrepareSettings, description=__doc__ or "", add_flags=add_flags))
