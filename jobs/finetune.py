#!/usr/bin/env python3
"""Fine-tune a GLM on a task's examples, score it, and leave it ready to be asked.

python jobs/finetune.py --config jobs/configs/tasks/FILE init_from=runs/RUN    a task of yours
python jobs/finetune.py --data FOLDER                  a folder with train.csv and test.csv
ray job submit --working-dir . -- python jobs/finetune.py …   the same on a cluster
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _driver import RESUME_ME, as_driver
from _job import run_job
from _ray import connect
from _scores import print_scores, score_baselines
from _search import search_settings
from _training import cpus_needed, launch_shown
from pretrain import Terminal, format_seconds

from glm_dist.config import output_path
from glm_dist.errors import ConfigError
from glm_dist.train.finetune_settings import FinetuneSettings

if TYPE_CHECKING:
    from glm_dist.evaluate.score import Score
    from glm_dist.model import GLM
    from glm_dist.train.finetune import Prepared

DEFAULT_BASE_MINUTES = 5.0
WITH_LSTM = ("classification", "labelling")
HELD_OUT_ROWS = 128
"""Of pretraining text that is mixed in, to see what is forgotten."""
ENDINGS = ("csv", "tsv", "jsonl", "json", "parquet")
SPLITS = {"train": ("train",), "dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
"""Split of a task: what its file is called in a folder."""


class StoppedError(Exception):
    """The run was asked to stop, and has saved."""


def main(settings: FinetuneSettings, arguments: argparse.Namespace) -> int:
    """Tune, then score; RESUME_ME when the run was asked to stop early."""
    try:
        check_flags(settings, arguments)
        if settings.init_from is None:
            tune_with_own_base(settings, arguments)
        elif arguments.search is not None:
            tune(search_settings(settings, arguments.search, try_out), arguments)
        elif arguments.seeds > 1:
            tune_over_seeds(settings, arguments)
        else:
            tune(settings, arguments)
        if arguments.lstm and not arguments.plan:
            score_lstm(settings)
    except StoppedError:
        print("next         the same command again goes on from there")
        return RESUME_ME
    return 0


def check_flags(settings: FinetuneSettings, arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
        ConfigError: naming them.
    """
    given = {"--plan": arguments.plan, "--seeds": arguments.seeds > 1}
    given["--search"] = arguments.search is not None
    flags = [flag for flag, is_given in given.items() if is_given]
    problems = []
    if settings.init_from is None and flags:
        problems.append(f"{flags[0]}: needs the model that is begun with; give init_from")
    if arguments.lstm and settings.task.kind not in WITH_LSTM:
        problems.append(
            f"--lstm: classifies texts and tags tokens, and this is {settings.task.kind}; leave it "
            "out"
        )
    if len(flags) > 1:
        problems.append(f"{' and '.join(flags)} cannot be had together; give one of them")
    if problems:
        raise ConfigError(problems)


def tune_with_own_base(settings: FinetuneSettings, arguments: argparse.Namespace) -> None:
    """Make a base of the training texts, tune it, and say what it brought over random weights."""
    from glm_dist.evaluate.score import gain
    from glm_dist.train.base import make_base

    minutes = arguments.base_minutes
    connect(cpus_needed(settings))
    print(
        "base         no init_from is given, so one is made of the training texts: a tokenizer, "
        f"and {minutes:g} minutes of blank infilling (--base-minutes)",
        flush=True,
    )
    texts, base = make_base(settings, minutes, pretrain_shown)
    if base is None:
        tune(settings, arguments, texts.tokenizer)
        return
    ours = tune(settings.model_copy(update={"init_from": base}), arguments)
    random = {"run_folder": str(settings.run_path / "from_random_weights")}
    print("\nthe same from random weights, to see what the base is worth", flush=True)
    theirs = tune(settings.model_copy(update=random), arguments, texts.tokenizer)
    if ours is not None and theirs is not None:
        found = gain([ours], [theirs])
        print(
            f"gain         {ours.name} {ours.value:.1f} from the base and {theirs.value:.1f} from "
            f"random weights: {found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
        )
        print(f"next         {next_command(settings.run_path)}")


def score_lstm(settings: FinetuneSettings) -> None:
    """The recurrent classifier that introductions start from, on the same splits."""
    from glm_dist.evaluate.baselines import BaselineSettings
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.finetune import open_task

    beside = BaselineSettings(arms=["lstm"])
    score_baselines(*open_task(settings), beside, settings.run_path, provenance())
    print(f"next         {next_command(settings.run_path)}")


def tune_over_seeds(settings: FinetuneSettings, arguments: argparse.Namespace) -> None:
    """A run for each of several seeds; of the scores the mean, its interval and the spread."""
    from glm_dist.evaluate.score import interval

    scores = []
    for number in range(arguments.seeds):
        folder = settings.run_path / f"seed-{settings.seed + number}"
        changes = {"seed": settings.seed + number, "run_folder": str(folder)}
        print(f"\nseed         {settings.seed + number}", flush=True)
        scores.append(tune(settings.model_copy(update=changes), arguments))
    known = [score for score in scores if score is not None]
    if known:
        found, values = interval(known), [score.value for score in known]
        print(
            f"\nover seeds   {known[0].name} {found.value:.1f} ({found.low:.1f} to "
            f"{found.high:.1f}), single runs {min(values):.1f} to {max(values):.1f}"
        )


def try_out(settings: FinetuneSettings) -> None:
    """A run to its end, a line an evaluation; its test examples stay unread.

    Raises:
        StoppedError: when it was asked to stop.
    """
    from glm_dist.train.finetune import prepare_finetuning
    from glm_dist.train.launch import resolve

    prepared = prepare_finetuning(settings)
    settings = resolve(prepared.settings, prepared.dataset)
    terminal = TuningTerminal(settings.num_steps, prepared.steps_per_epoch, shows_steps=False)
    if launch_shown(settings, terminal, shows_config=False).ending.kind != "finished":
        raise StoppedError


def tune(
    settings: FinetuneSettings, arguments: argparse.Namespace, tokenizer: Any = None
) -> "Score | None":
    """One run to its end and its score; None where there was only a plan."""
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.base import check_tokenizer
    from glm_dist.train.finetune import prepare_finetuning
    from glm_dist.train.launch import resolve
    from glm_dist.train.report import write_report

    origin = provenance()
    prepared = prepare_finetuning(settings, tokenizer)
    settings = resolve(prepared.settings, prepared.dataset)
    describe(prepared)
    if settings.init_from is not None:
        check_tokenizer(settings.init_from, prepared.task.tokenizer, prepared.splits["train"])
    if arguments.plan:
        from glm_dist.train.plan import describe_plan

        print(describe_plan(settings, prepared.dataset))
        return None
    terminal = TuningTerminal(settings.num_steps, prepared.steps_per_epoch)
    launched = launch_shown(settings, terminal)
    if launched.ending.kind != "finished":
        print(f"stopped      saved at step {launched.ending.step} of {settings.num_steps}")
        raise StoppedError
    write_report(settings.run_path, settings, prepared.dataset, origin)
    return score(settings.run_path, prepared, origin)


def pretrain_shown(settings: Any) -> bool:
    """Pretrain a base.

    Raises:
        StoppedError: when the run was asked to stop.
    """
    launched = launch_shown(settings, Terminal(settings.num_steps))
    if launched.ending.kind != "finished":
        raise StoppedError
    return True


def describe(prepared: "Prepared") -> None:
    """How many examples there are, and of which labels."""
    for name, examples in prepared.splits.items():
        print(f"{name:<12} {len(examples):,} examples")
    labels = prepared.task.labels
    if labels:
        shown = ", ".join(labels[:12]) + (" …" if len(labels) > 12 else "")
        print(f"labels       {len(labels)}: {shown}", flush=True)


def score(run_folder: Path, prepared: "Prepared", origin: dict[str, Any]) -> "Score":
    """Score the finished model, print the scores and where everything lies."""
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.calibration import calibrate
    from glm_dist.evaluate.label_sets import tune_thresholds
    from glm_dist.evaluate.task_report import PAGE, score_answers, write_answers
    from glm_dist.inference import load_model
    from glm_dist.tasks.multi_label import MultiLabel

    split, task = prepared.scored, prepared.task
    examples, dev = prepared.splits[split], prepared.splits["validation"]
    model, tokenizer = load_model(run_folder)
    if task.scoring == "labels":
        known = Answerer(model, tokenizer, task).answer(dev)
        task = calibrate(run_folder / "model", task, known, [task.gold(one) for one in dev])
        print(f"temperature  {task.settings.temperature:.2f}, fitted on the dev examples")
    elif isinstance(task, MultiLabel):
        known = Answerer(model, tokenizer, task).answer(dev)
        task = tune_thresholds(run_folder / "model", task, known, [task.gold(one) for one in dev])
        print(f"thresholds   {', '.join(f'{one:.2f}' for one in sorted(set(task.thresholds)))}")
    answers = Answerer(model, tokenizer, task).answer(examples)
    folder = run_folder / split
    print_scores(split, len(examples), write_answers(folder, task, examples, answers, origin))
    if prepared.settings.replay.dataset is not None:
        print_forgotten(prepared.settings, model)
    print(f"predictions  {folder}, read {folder / PAGE}")
    print(f"report       {run_folder / 'report.md'}")
    print(f"model        {run_folder / 'model'}")
    print(f"next         {next_command(run_folder)}", flush=True)
    return score_answers(task, examples, answers)[0]


def print_forgotten(settings: FinetuneSettings, tuned: "GLM") -> None:
    """What tuning did to the pretraining text that was mixed in; also in `forgotten.json`."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.evaluate.left_to_right import bits_by_language
    from glm_dist.evaluate.score import gain
    from glm_dist.inference import load_model

    assert settings.replay.dataset is not None, "there is text to be forgotten"
    dataset = TokenDataset.open(output_path(settings.replay.dataset))
    models = {"after": tuned}
    if settings.init_from is not None:
        models["before"], _ = load_model(output_path(settings.init_from))
    size = settings.batch.micro_batch_size
    bits = {
        name: bits_by_language(model, dataset, settings.rows, HELD_OUT_ROWS, size)
        for name, model in models.items()
    }
    for language, after in bits["after"].items():
        before = bits.get("before", {}).get(language)
        told = f"forgotten    {language}: {after.value:.3f} bits a byte of held-out text"
        if before is not None:
            value, low, high = gain([after], [before])
            told += f", {before.value:.3f} before: {value:+.3f} ({low:+.3f} to {high:+.3f})"
        print(told)
    values = {name: {one: score.value for one, score in by.items()} for name, by in bits.items()}
    (settings.run_path / "forgotten.json").write_text(json.dumps(values, indent=1))


def next_command(run_folder: Path) -> str:
    """What to do with a model that has been tuned."""
    return f"python jobs/serve.py model={run_folder}"


class TuningTerminal(Terminal):
    """A line a log step, and one an evaluation."""

    def __init__(self, num_steps: int, steps_per_epoch: float, *, shows_steps: bool = True) -> None:
        super().__init__(num_steps)
        self._steps_per_epoch, self._shows_steps = steps_per_epoch, shows_steps
        self._losses: list[float] = []

    def show(self, text: str) -> None:
        """Print the figures of one JSON line."""
        line = json.loads(text)
        if "dev/loss" in line:
            self._show_epoch(line)
            return
        if "loss" in line:
            self._losses.append(line["loss"])
        if not self._shows_steps:
            return
        left = (self._num_steps - line["step"]) * line.get("seconds_per_step", 0.0)
        print(
            f"{int(line['step']):>6}/{self._num_steps:<5} loss {line.get('loss', 0.0):>7.4f}  lr "
            f"{line['learning_rate']:.2e}  {line['tokens_per_second']:>7,.0f} tokens/s  "
            f"{format_seconds(left)} left",
            flush=True,
        )

    def _show_epoch(self, line: dict[str, float]) -> None:
        epoch = line["step"] / self._steps_per_epoch
        mean = f"loss {sum(self._losses) / len(self._losses):.4f}, " if self._losses else ""
        names = [name for name in line if name.startswith("dev/") and name != "dev/error"]
        figures = ", ".join(f"{name[4:].replace('_', ' ')} {line[name]:.4f}" for name in names)
        print(f"epoch {epoch:>6.2f}  {mean}dev {figures}", flush=True)
        self._losses = []


def progress(settings: FinetuneSettings) -> int:
    """Steps that attempts began at, over all runs of the job; see `pretrain.resumed_step`."""
    paths = settings.run_path.glob("**/attempts/attempt-*.json")
    return sum(json.loads(path.read_text())["state"]["step"] for path in paths)


def with_folder(argv: Sequence[str]) -> list[str]:
    """The command line with the files of `--data FOLDER` as settings, which others win over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data")
    known, rest = parser.parse_known_args(argv)
    if not known.data:
        return rest
    has_config = any(argument.startswith("--config") for argument in rest)
    folder = Path(known.data).absolute()
    files = files_of(folder)
    if "train" not in files:
        parser.error(
            f"--data: {folder} holds no train.csv, nor one that ends in {', '.join(ENDINGS[1:])}"
        )
    values = {f"task.{split}": str(path) for split, path in files.items()}
    if not has_config:
        values |= {"name": folder.name, "task.kind": "classification"}
    # As JSON, so that a folder called 2026 or a: b stays a name.
    return [*(f"{key}={json.dumps(value)}" for key, value in values.items()), *rest]


def files_of(folder: Path) -> dict[str, Path]:
    """The file of each split that a folder holds."""
    found = {}
    for split, names in SPLITS.items():
        paths = [folder / f"{name}.{ending}" for name in names for ending in ENDINGS]
        there = [path for path in paths if path.exists()]
        if there:
            found[split] = there[0]
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--data", metavar="FOLDER", help="a folder with train.csv, test.csv and perhaps dev.csv"
    )
    parser.add_argument(
        "--base-minutes",
        type=float,
        default=DEFAULT_BASE_MINUTES,
        metavar="N",
        help="without init_from: how long a base is made of the training texts; 0 for none",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="with init_from: a run for each of N seeds",
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="with init_from: try N settings, choose one on dev, tune with it (search.* says what)",
    )
    parser.add_argument(
        "--lstm",
        action="store_true",
        help="also train a bidirectional LSTM on the same splits; its settings: jobs/baselines.py",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print sizes, memory and work of the run, and stop"
    )


if __name__ == "__main__":
    sys.exit(
        run_job(
            as_driver(main, progress),
            FinetuneSettings,
            description=__doc__ or "",
            add_flags=add_flags,
            argv=with_folder(sys.argv[1:]),
        )
    )
