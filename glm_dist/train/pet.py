"""Pattern-exploiting training: an ensemble of clozes labels texts, which one classifier learns.

A model for each pattern and seed is tuned on the few labelled examples (Schick and Schütze 2021).
Each run is a fine-tuning like any other, in a folder of its own, and is not run again where it is
finished.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from glm_dist.config import output_path
from glm_dist.errors import ConfigError
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.soft_labels import (
    answers_of,
    soft_labels,
    softly_labelled,
    surely_labelled,
)
from glm_dist.inference import load_model
from glm_dist.tasks import Answer, Binding, build_task
from glm_dist.tasks.classification import Classification, ClassificationSettings
from glm_dist.tasks.dataset import check_examples
from glm_dist.tasks.examples import Example, read_examples, take
from glm_dist.train.finetune import FIXED_SEED, Prepared, prepare_finetuning, read_splits
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.pet_settings import PetSettings

logger = logging.getLogger(__name__)

CLAIM, FINAL = "pet.json", "final"
Train = Callable[[Prepared], None]
"""Trains what is prepared, to its end."""


class _UnlabelledSettings(ClassificationSettings):
    """Texts, or pairs of them, that are read without any label."""

    fields: ClassVar[tuple[str, ...]] = ("text",)
    answer_field: ClassVar[str | None] = None


@dataclass(frozen=True)
class Member:
    """One model of the ensemble."""

    pattern: str
    seed: int
    answers: list[Answer]
    """To the test examples."""
    votes: np.ndarray
    """Probabilities of the labels of each unlabelled text, [N, C]."""


@dataclass(frozen=True)
class Outcome:
    """What a whole run brought."""

    members: list[Member]
    weights: dict[str, float]
    """By pattern."""
    ensemble: list[Answer]
    """The ensemble's answers to the test examples."""
    final: list[Answer] = field(default_factory=list)
    """Those of the classifier that learnt its labels."""


class Pet:
    """All of one run.

    Args:
        settings: of the ensemble and of what it is to label.
        train: trains what is prepared, to its end.

    Raises:
        ConfigError: when there is nothing to label, or no cloze to label it by.
        DataError: for what is wrong with the examples.
    """

    def __init__(self, settings: PetSettings, train: Train) -> None:
        self._settings, self._train = settings, train
        if settings.task.method != "cloze":
            raise ConfigError("task.method: the ensemble classifies by cloze; leave it out")
        self.splits = read_splits(settings)
        complete = Classification.complete(settings.task, self.splits["train"])
        self.task = Classification(complete)
        check_examples(self.task, self.splits)
        self.unlabelled = self._read_unlabelled()
        check_examples(self.task, {"unlabelled": self.unlabelled}, is_labelled=False)
        self._claim()

    @property
    def scored(self) -> Sequence[Example]:
        """The examples that all are scored on: test, or without one those that chose the models."""
        return self.splits["test"] or self.splits["validation"]

    @property
    def final_folder(self) -> Any:
        """Where the final classifier lies."""
        return self._settings.run_path / FINAL

    @cached_property
    def weights(self) -> dict[str, float]:
        """How much each pattern counts, by its text."""
        patterns = self.task.settings.patterns
        if self._settings.weights == "uniform":
            return dict.fromkeys(patterns, 1.0)
        model, tokenizer = load_model(output_path(self._settings.init_from))
        binding = Binding(
            tokenizer,
            self._settings.rows.sequence_length,
            self._settings.objective,
            model.settings.pools_first,
        )
        found = {}
        for pattern in patterns:
            task = build_task(self._behind(pattern), binding)
            answers = Answerer(model, tokenizer, task).answer(self.splits["train"])
            right = [
                answer.value == task.gold(one)
                for answer, one in zip(answers, self.splits["train"], strict=True)
            ]
            found[pattern] = float(np.mean(right))
        return found

    def run(self, tell: Callable[[str], None]) -> Outcome:
        """Tune the ensemble, label the texts, train the classifier; each run's name is told."""
        weights, members = self.weights, list(self._members(tell))
        by_member = [weights[one.pattern] for one in members]
        labels = list(self.task.labels)
        votes = np.stack([one.votes for one in members])
        shares = soft_labels(votes, by_member, self._settings.soften)
        said = np.array([[answer.probabilities for answer in one.answers] for one in members])
        ensemble = answers_of(soft_labels(said, by_member, 1.0), labels)
        tell(f"the classifier, on {len(self.unlabelled):,} texts as the ensemble labels them")
        train = softly_labelled(self.unlabelled, shares, labels)
        train += surely_labelled(self.splits["train"], labels)
        final, _ = self._tuned(self._final_settings(), {**self.splits, "train": train}, [])
        return Outcome(members, weights, ensemble, final)

    def _members(self, tell: Callable[[str], None]) -> Iterator[Member]:
        patterns = self.task.settings.patterns
        for number, pattern in enumerate(patterns):
            for seed in self._settings.seeds:
                tell(f"pattern {number + 1} of {len(patterns)}, seed {seed}: {pattern}")
                settings = self._member_settings(number, pattern, seed)
                answers, votes = self._tuned(settings, self.splits, self.unlabelled)
                chances = np.array([vote.probabilities for vote in votes])
                yield Member(pattern, seed, answers, chances)

    def _tuned(
        self,
        settings: FinetuneSettings,
        splits: Mapping[str, Sequence[Example]],
        unlabelled: Sequence[Example],
    ) -> tuple[list[Answer], list[Answer]]:
        """A model's answers to the scored examples, and to unlabelled texts."""
        prepared = prepare_finetuning(settings, splits=splits)
        if not (settings.run_path / "final.json").exists():
            self._train(prepared)
        for checkpoint in settings.run_path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        answerer = Answerer(*load_model(settings.run_path), prepared.task)
        return answerer.answer(self.scored), answerer.answer(unlabelled)

    def _behind(self, pattern: str) -> ClassificationSettings:
        """The task with one pattern alone."""
        return self.task.settings.model_copy(update={"patterns": [pattern]})

    def _member_settings(self, number: int, pattern: str, seed: int) -> FinetuneSettings:
        folder = self._settings.run_path / f"pattern-{number + 1}-seed-{seed}"
        return self._with(folder, task=self._behind(pattern).model_dump(), seed=seed)

    def _final_settings(self) -> FinetuneSettings:
        """The classifier's run: the labels stay, what belongs to clozes goes."""
        final = self._settings.final
        clozes: dict[str, Any] = {"patterns": [], "verbalizers": {}, "in_context": 0}
        task = {**self.task.settings.model_dump(), **clozes, "method": "head"}
        changes: dict[str, Any] = {"task": task, "epochs": final.epochs}
        if final.peak_learning_rate is not None:
            schedule = self._settings.schedule.model_dump()
            changes["schedule"] = {**schedule, "peak_learning_rate": final.peak_learning_rate}
        return self._with(self.final_folder, **changes)

    def _with(self, folder: Any, **changes: Any) -> FinetuneSettings:
        own = set(PetSettings.model_fields) - set(FinetuneSettings.model_fields)
        values = self._settings.model_dump(exclude_unset=True, exclude=own)
        values |= {"init_from": self._settings.init_from, "sinks": self._settings.sinks}
        values |= {"name": f"{self._settings.name}-{folder.name}", "run_folder": str(folder)}
        return FinetuneSettings(**{**values, **changes})

    def _read_unlabelled(self) -> list[Example]:
        """Texts to be labelled; none of them is among those that are scored."""
        settings, task = self._settings, self._settings.task
        if settings.unlabelled is None:
            whole = settings.model_copy(update={"task": task.model_copy(update={"shots": None})})
            few = {one.place for one in self.splits["train"]}
            found = [one for one in read_splits(whole)["train"] if one.place not in few]
        else:
            values = task.model_dump(exclude={"columns", "max_examples"})
            columns = {name: one for name, one in task.columns.items() if name != "label"}
            values |= {"train": settings.unlabelled, "columns": columns}
            found = read_examples(_UnlabelledSettings(**values), "train")
        scored = {one.text("text") for one in self.scored}
        found = [Example({**one.fields, "label": None}, one.place) for one in found]
        kept = [one for one in found if one.text("text") not in scored]
        if len(kept) < len(found):
            logger.warning(
                "unlabelled: %d texts are also among those to be scored, and are left out",
                len(found) - len(kept),
            )
        if not kept:
            raise ConfigError(
                "unlabelled: there are no texts to label; give a file, or task.shots, so that some "
                "of the training examples are left over"
            )
        return take(kept, settings.num_unlabelled, FIXED_SEED)

    def _claim(self) -> None:
        """Refuse a folder of another run, whose finished models would be taken for this one's."""
        path = self._settings.run_path / CLAIM
        told = self._settings.model_dump(mode="json", exclude={"workers", "sinks"})
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != told:
            raise ConfigError(
                f"run_folder: {path.parent} holds a run of other settings; give another run_folder "
                "or name, or take it away"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1), encoding="utf-8")
