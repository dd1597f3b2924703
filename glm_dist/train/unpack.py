"""A checkpoint's weights as a finished model, as its run's end would have written them.

It stands apart so that whatever asks a model can be given a checkpoint too.
"""

import json
import shutil
import uuid
from pathlib import Path

from glm_dist.config import output_path
from glm_dist.data.shards import TokenDataset
from glm_dist.engine.checkpoint import DamagedError, read_weights, verify
from glm_dist.engine.folders import CONFIG
from glm_dist.errors import CheckpointError
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.initial import save_result
from glm_dist.train.settings import PretrainSettings

MODELS = "models"
"""Folder of a run that holds what was made of its checkpoints."""


def unpack(folder: Path) -> Path:
    """The folder of a model that is written into a checkpoint's run, once.

    Raises:
        CheckpointError: when a checkpoint is damaged, or lies beside no run.
        DataError: when the dataset of its run, whose tokenizer it takes, is gone.
    """
    model = folder.parent / MODELS / folder.name
    if (model / CONFIG).exists():
        return model
    try:
        checkpoint = verify(folder)
    except DamagedError as error:
        raise CheckpointError(f"{folder}: is damaged ({error}); take another one") from None
    settings = _settings_of(folder.parent)
    temporary = model.with_name(f"{model.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        save_result(
            temporary,
            settings,
            read_weights(checkpoint),
            TokenDataset.open(output_path(settings.dataset)),
            checkpoint.state["fingerprints"],
        )
        temporary.rename(model)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return model


def _settings_of(run_folder: Path) -> PretrainSettings:
    path = run_folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}), and says of what model a checkpoint is; give one "
            "that lies in its run's folder"
        ) from None
    return (FinetuneSettings if "task" in config else PretrainSettings)(**config)
