"""Tasks small enough to be learnt in seconds, and their runs in one process."""

import json
import random
from pathlib import Path
from typing import Any

from train_scenarios import Runner

from glm_dist.config import load_config
from glm_dist.tokenizer import Tokenizer, TokenizerSettings, train_tokenizer
from glm_dist.train.finetune import Prepared, prepare_finetuning
from glm_dist.train.finetune_settings import FinetuneSettings

GOOD = "lovely warm honest bright moving".split()
BAD = "dull cold false grey boring".split()
FILLER = "the film was really a story of one man and his dog in town".split()
SMALL: dict[str, Any] = {
    "model": {"preset": None, "num_layers": 1, "hidden_size": 32, "num_heads": 2},
    "rows": {"sequence_length": 64},
    "batch": {"global_batch_size": 4, "micro_batch_size": 4},
    "workers": {"num_workers": 1},
    "engine": {"backend": "torch", "dtype": "float32"},
    "sinks": {"tensorboard": False, "wandb": "off"},
    "guard": {"skip_steps": 1, "max_rewinds": 0},
    "schedule": {"peak_learning_rate": 1e-2},
    "dropout": 0.0,
    "seed": 7,
}


def reviews(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and labels; telling words among others decide."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = rng.choices(FILLER, k=6)
        for word in rng.choices(GOOD if number % 2 else BAD, k=3):
            words.insert(rng.randrange(6), word)
        rows.append((" ".join(words), "good" if number % 2 else "bad"))
    return rows


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """`train.csv` and so on, with a header."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(counts.items()):
        lines = ["text,label", *(f"{text},{label}" for text, label in reviews(count, number))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def small_tokenizer() -> Tokenizer:
    """Of the words of the reviews."""
    texts = [" ".join(row) for row in reviews(300)]
    return train_tokenizer(texts, TokenizerSettings(vocab_size=400))


def small_settings(run_folder: Path, task: dict[str, Any], **changes: Any) -> FinetuneSettings:
    """A run in one process."""
    values = {**SMALL, "run_folder": str(run_folder), "task": task, **changes}
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return load_config(FinetuneSettings, overrides=overrides)


def prepare(
    run_folder: Path, task: dict[str, Any], tokenizer: Tokenizer | None = None, **changes: Any
) -> tuple[Prepared, Runner]:
    """A fine-tuning run, ready for its attempts."""
    prepared = prepare_finetuning(small_settings(run_folder, task, **changes), tokenizer)
    return prepared, Runner(prepared.dataset, prepared.settings, run_folder)
