"""A base of one's own: a tokenizer and a short pretraining on the texts that a task is learnt from.

It stands apart for whoever has a task and no model yet; a base that has read more is better.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from glm_dist.config import output_path
from glm_dist.data.prepare.pipeline import prepare
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.data.shards import TokenDataset
from glm_dist.tasks.examples import Example
from glm_dist.tasks.mixture import NAME
from glm_dist.tokenizer import Tokenizer, TokenizerSettings, train_tokenizer
from glm_dist.train.finetune import read_splits
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.launch import resolve
from glm_dist.train.probe import probe_steps
from glm_dist.train.settings import PretrainSettings

logger = logging.getLogger(__name__)

FOLDER = "base"
LARGEST_VOCABULARY = 8000
"""What more text does not enlarge."""
BEYOND_CHARACTERS = 600
"""Pieces that a vocabulary has at least beside one for each character."""
BYTES_PER_PIECE = 100
"""So much text stands behind each piece of the vocabulary."""
BATCH_ROWS = 16
PEAK_LEARNING_RATE = 2e-3
VALIDATION_SHARE = 0.05
MOST_TOKENS = 1.5
"""Times the tokens of a tokenizer made for a text, from which on another one does not fit it."""
FEWEST_BYTES = 60_000
"""Less text does not tell how a tokenizer fits."""
FIT_CHARACTERS = 500_000
"""So much text tells how a tokenizer fits, in a second or two."""


def prepare_texts(settings: FinetuneSettings) -> TokenDataset:
    """The texts of the training examples as a dataset, with a tokenizer trained on them."""
    folder = settings.run_path / FOLDER
    texts = [text for one in read_splits(settings)["train"] for text in texts_of(one)]
    path = folder / "texts.jsonl"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    _write(path, lines)
    return prepare(
        PrepareSettings(
            output=str(folder / "data"),
            sources=[SourceSettings(name="training texts", path=str(path))],
            tokenizer=_tokenizer_settings(texts, settings.seed),
            validation_share=VALIDATION_SHARE,
        )
    )


def _tokenizer_settings(texts: Sequence[str], seed: int) -> TokenizerSettings:
    """Of a tokenizer for these texts: the more of them, the more pieces, and one a character."""
    num_bytes = sum(len(text.encode()) for text in texts)
    by_bytes = min(LARGEST_VOCABULARY, num_bytes // BYTES_PER_PIECE)
    by_characters = len(set().union(*texts)) + BEYOND_CHARACTERS
    return TokenizerSettings(vocab_size=max(by_bytes, by_characters), seed=seed)


def check_tokenizer(base: str, tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
    """Warn, by the name of the base, where its tokenizer cuts the texts into far too many pieces.

    Args:
        base: what is begun with.
        tokenizer: its tokenizer.
        examples: what is learnt from; the first of them are looked at. Few are not judged by: a
            tokenizer made for them would know them by heart.
    """
    texts, length = [], 0
    for text in (text for one in examples for text in texts_of(one)):
        if length >= FIT_CHARACTERS:
            break
        texts.append(text)
        length += len(text)
    if sum(len(text.encode()) for text in texts) < FEWEST_BYTES:
        return
    own = train_tokenizer(texts, _tokenizer_settings(texts, seed=0))
    theirs, ours = (sum(len(one.encode(text)) for text in texts) for one in (tokenizer, own))
    if theirs >= MOST_TOKENS * ours:
        logger.warning(
            "init_from: the tokenizer of %s needs %.1f times the tokens of one made for these "
            "texts; a base that has read such text, or none (without init_from one is made), "
            "would learn more of the same rows",
            base,
            theirs / ours,
        )


def texts_of(example: Example) -> Sequence[str]:
    """Whatever of an example is running text, messages and lists of words joined."""
    names = [name for name in example.fields if name not in ("label", NAME)]
    return [text for name in names for text in _strings(example, name)]


def _strings(example: Example, name: str) -> list[str]:
    value = example.fields[name]
    if isinstance(value, list):
        words = [one if isinstance(one, str) else str(one.get("content") or "") for one in value]
        return [" ".join(words)] if name != "tags" else []
    return [example.text(name)] if example.text(name) else []


def plan_base(
    settings: FinetuneSettings, dataset: TokenDataset, minutes: float
) -> PretrainSettings:
    """A pretraining run of about so many minutes; one that has begun keeps the steps it has."""
    folder = settings.run_path / FOLDER / "run"
    share = max(1, BATCH_ROWS // settings.workers.most)
    # The guard too: few texts are soon fitted closely, and their outliers are none.
    shared = ("seed", "rows", "objective", "model", "engine", "workers", "sinks", "guard")
    values: dict[str, Any] = {
        **{name: getattr(settings, name) for name in shared},
        "name": f"{settings.name}-base",
        "run_folder": str(folder),
        "dataset": str(dataset.folder),
        "duration": {"num_steps": 1},
        "batch": {"global_batch_size": share * settings.workers.most, "micro_batch_size": share},
        "schedule": {"peak_learning_rate": PEAK_LEARNING_RATE},
        "evaluation": {"every_steps": 0, "num_rows": 64},
    }
    path = folder / "config.json"
    if path.exists():
        steps = json.loads(path.read_text(encoding="utf-8"))["duration"]["num_steps"]
    else:
        steps = _steps(resolve(PretrainSettings(**values), dataset), dataset, minutes)
    every = max(1, steps // 10)
    values |= {
        "duration": {"num_steps": steps},
        "log_every_steps": every,
        "checkpoints": {"every_steps": every},
    }
    return resolve(PretrainSettings(**values), dataset)


def _steps(settings: PretrainSettings, dataset: TokenDataset, minutes: float) -> int:
    """Steps of so many minutes, by a few real ones; workers beyond the cores share them."""
    seconds = probe_steps(settings, dataset)
    crowd = max(1.0, settings.workers.most * settings.workers.cpus_per_worker / _num_cores())
    return max(1, int(60 * minutes / (median(seconds) * crowd)))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def make_base(
    settings: FinetuneSettings, minutes: float, train: Callable[[PretrainSettings], bool]
) -> tuple[TokenDataset, str | None]:
    """The dataset of the texts, whose tokenizer the task takes, and the folder of the base.

    Args:
        settings: of the fine-tuning.
        minutes: of pretraining; without any there is no base but the tokenizer alone.
        train: runs a pretraining to its end; false when it was asked to stop before.
    """
    dataset = prepare_texts(settings)
    if not minutes:
        return dataset, None
    base = plan_base(settings, dataset, minutes)
    finished = (base.run_path / "model" / "config.json").exists() or train(base)
    return dataset, str(output_path(base.run_path)) if finished else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
