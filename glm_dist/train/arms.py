"""A task's arms beside each other: the tuned base, the same model from random weights, baselines.

What is trained picks its learning rate on dev with the first seed and its epochs with every seed,
and answers the test split once a seed. Answers are kept as they come, so that a comparison which
was cut off goes on with the arm that it was at.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.engine.adapters import hash_model
from glm_dist.engine.folders import model_folder, read_model_config
from glm_dist.errors import ConfigError, ModelError
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.baselines import ARMS, BaselineSettings, Tell, arms_of, choose
from glm_dist.evaluate.task_report import SCORES, read_answers, write_answers
from glm_dist.inference import load_model
from glm_dist.metrics.sinks import SinkSettings
from glm_dist.tasks import Answer, build_task
from glm_dist.tasks.baselines.lstm import LstmSettings
from glm_dist.tasks.dataset import check_examples
from glm_dist.tokenizer import Tokenizer
from glm_dist.train.finetune import Prepared, open_task, prepare_finetuning, read_splits
from glm_dist.train.finetune_settings import FinetuneSettings

OURS, SCRATCH, LSTM, LAST_TURN = "glm", "scratch", "lstm", "last_turn"
OF_BASE = (OURS, SCRATCH, LAST_TURN)
"""Arms that need a base, be it for its shape and tokenizer alone."""
TRAINED = (*OF_BASE, LSTM)
"""Arms with a learning rate and seeds; the others are the same every time."""
UNIMPORTANT = {"name", "run_folder", "workers", "sinks", "seed", "grid", "baselines", "init_from"}
UNIMPORTANT |= {"search"}
"""Settings that an arm's answers do not depend on, or not by themselves."""


class GridSettings(Settings):
    """What the arms that are trained choose from."""

    learning_rates: list[float] = Field([3e-4, 1e-3], min_length=1)
    """Peak learning rates; the one with the best dev score of the first seed is taken for all."""
    seeds: list[int] = Field([1234, 5678, 3456], min_length=1)
    """A run for each, with the dev score choosing among its epochs."""


class ArmSettings(FinetuneSettings):
    """A task as it is fine-tuned, and what it is compared with."""

    init_from: str = "runs/base"
    """The pretrained model; below GLM_DIST_HOME if relative."""
    grid: GridSettings = GridSettings()
    baselines: BaselineSettings = BaselineSettings(lstm=LstmSettings(num_epochs=6))
    sinks: SinkSettings = SinkSettings(tensorboard=False, wandb="off")

    @property
    def run_path(self) -> Path:
        """The folder of all arms, absolute."""
        return output_path(self.run_folder or f"results/{self.name}")


class Tried(NamedTuple):
    """A run with one learning rate and one seed."""

    error: float
    """On dev."""
    chosen: str
    answer: Callable[[], list[Answer]]
    """Of the test examples."""


@dataclass(frozen=True)
class Arm:
    """What an arm said."""

    answers: list[list[Answer]]
    """To the test examples, by seed."""
    chosen: list[str]
    """By seed what dev decided."""


class Arms:
    """All arms of one task.

    Args:
        settings: the task, the grid and the base.
        train: trains what is prepared, to its end.
        tell: called with a line for each thing that is tried.
        origin: kept with every arm's answers.

    Raises:
        DataError: for what is wrong with the examples.
        ConfigError: when there is nothing to compare them on.
    """

    def __init__(
        self,
        settings: ArmSettings,
        train: Callable[[Prepared], None],
        tell: Tell,
        origin: dict[str, Any],
    ) -> None:
        self._settings, self._train, self._tell, self._origin = settings, train, tell, origin
        self._base = model_folder(output_path(settings.init_from))
        (self.task, splits), kind = open_task(settings), settings.task.kind
        self.examples = splits["test"]
        if not self.examples:
            raise ConfigError("task.test: arms are compared on it; give one, or task.test_share")
        check_examples(self.task, splits)
        self._baselines = arms_of(self.task, settings.baselines) if kind in ARMS else {}
        self.names = [*self._baselines, SCRATCH, OURS]
        if kind == "reply_choice":
            self.names.append(LAST_TURN)

    @cached_property
    def base_hash(self) -> str | None:
        """sha256 over the weights of the base; None where there is no base yet."""
        return hash_model(self._base) if any(self._base.glob("*.safetensors")) else None

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: when the task has no such arm.
            ModelError: when an arm needs a base, and there is none.
        """
        for name in names:
            if name not in self.names:
                known = ", ".join(self.names)
                raise ConfigError(f"arm {name}: there is none; this task has {known}")
        if set(names).intersection(OF_BASE):
            read_model_config(self._base)
            if self.base_hash is None:
                raise ModelError(f"init_from: {self._base} has no weights yet; let its run finish")

    def run(self, name: str) -> Arm:
        """An arm's answers: those that are there, else by training and choosing.

        Raises:
            ConfigError: when the task has no such arm.
            ModelError: when it needs a base, and there is none.
        """
        self.check([name])
        rates = self._settings.grid.learning_rates if name in TRAINED else [0.0]
        for seed, folder in self._folders(name).items():
            if not (folder / SCORES).exists():
                self._answer(name, seed, rates, folder)
            rates = [_read_kept(folder)["learning_rate"]]
        arm = self.kept(name)
        assert arm is not None, "every seed has answered"
        return arm

    def kept(self, name: str) -> Arm | None:
        """What an arm has said with all its seeds, now or before; else None."""
        if name in OF_BASE and self.base_hash is None:
            return None
        folders = self._folders(name).values()
        if not all((folder / SCORES).exists() for folder in folders):
            return None
        return Arm(
            [read_answers(folder) for folder in folders],
            [_read_kept(folder)["chosen"] for folder in folders],
        )

    def _folders(self, name: str) -> dict[int, Path]:
        """By seed, where an arm's answers lie."""
        seeds = self._settings.grid.seeds if name in TRAINED else self._settings.grid.seeds[:1]
        folder = self._folder(name)
        return {seed: folder / f"seed-{seed}" for seed in seeds}

    def _answer(self, name: str, seed: int, rates: Sequence[float], folder: Path) -> None:
        """Try the learning rates and keep the answers of the best."""
        tried = {rate: self._try(name, rate, seed) for rate in rates}
        best = min(tried, key=lambda rate: tried[rate].error)
        kept = {"arm": name, "seed": seed, "chosen": tried[best].chosen, "learning_rate": best}
        kept |= {"base": self.base_hash} if name == OURS else {}
        self._tell(f"{name}, seed {seed}: {tried[best].chosen}")
        write_answers(
            folder, self.task, self.examples, tried[best].answer(), {**self._origin, **kept}
        )

    def _try(self, name: str, rate: float, seed: int) -> Tried:
        if name == LAST_TURN:
            return self._tune(OURS, rate, seed, {"num_turns": 1})
        if name in (OURS, SCRATCH):
            return self._tune(name, rate, seed)
        splits = read_splits(self._settings.model_copy(update={"seed": seed}))
        baselines = self._settings.baselines
        lstm = baselines.lstm.model_copy(update={"seed": seed, "learning_rate": rate})
        update = {"lstm": lstm, "lstm_learning_rates": [rate]} if name == LSTM else {}
        tell = partial(_tell_indented, self._tell)
        found = choose(
            self._baselines[name], self.task, splits, baselines.model_copy(update=update), tell
        )
        return Tried(-found.dev_score, found.name, partial(found.predict, self.examples))

    def _tune(
        self, name: str, rate: float, seed: int, asked: dict[str, Any] | None = None
    ) -> Tried:
        """A tuned model, which may be `asked` with other settings of its task."""
        settings = self._tuning(name, rate, seed)
        tokenizer = Tokenizer.load(self._base) if name == SCRATCH else None
        prepared = prepare_finetuning(settings, tokenizer)
        final = settings.run_path / "final.json"
        if not final.exists():
            self._tell(f"{name}, seed {seed}, learning rate {rate:g}")
            self._train(prepared)
        for checkpoint in settings.run_path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        figures = json.loads(final.read_text(encoding="utf-8"))
        judged = "error" if "dev/error" in figures else "loss"
        error, epochs = figures[f"dev/{judged}"], figures["best_step"] / prepared.steps_per_epoch
        chosen = f"learning rate {rate:g}, epoch {epochs:.1f}, dev {judged} {error:.4f}"
        task = prepared.task
        task = build_task(task.settings.model_copy(update=asked or {}), task.binding)

        def answer() -> list[Answer]:
            return Answerer(*load_model(settings.run_path), task).answer(self.examples)

        return Tried(error, chosen, answer)

    def _tuning(self, name: str, rate: float, seed: int) -> FinetuneSettings:
        """The run of one learning rate and seed."""
        values = self._settings.model_dump(exclude_unset=True, exclude={"grid", "baselines"})
        begins: dict[str, Any] = {"init_from": self._settings.init_from}
        if name == SCRATCH:
            begins = {"init_from": None, "model": read_model_config(self._base)[0].model_dump()}
        values |= {
            **begins,
            "name": f"{self._settings.name}-{name}",
            "seed": seed,
            "run_folder": str(self._folder(name) / f"run-{seed}-{rate:g}"),
            "schedule": {**values.get("schedule", {}), "peak_learning_rate": rate},
            "sinks": self._settings.sinks.model_dump(),
        }
        return FinetuneSettings(**values)

    def _folder(self, name: str) -> Path:
        """An arm's own; another one where what its answers depend on is another."""
        told = self._settings.model_dump(mode="json", exclude=UNIMPORTANT)
        parts: list[Any] = [told["task"], self._settings.grid.learning_rates]
        if name in OF_BASE:
            shape = read_model_config(self._base)[0].model_dump(mode="json")
            tokenizer = Tokenizer.load(self._base).sha256
            parts += [told, shape, tokenizer, None if name == SCRATCH else self.base_hash]
        else:
            parts.append(self._settings.baselines.model_dump(mode="json", exclude={"arms"}))
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self._settings.run_path / f"{name}-{key[:8]}"


def _read_kept(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / SCORES).read_text(encoding="utf-8")))


def _tell_indented(tell: Tell, line: str) -> None:
    tell(f"  {line}")
