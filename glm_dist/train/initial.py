"""The weights a run begins with: drawn, or those of another model."""

import logging

from glm_dist.config import output_path
from glm_dist.engine.export import model_folder, read_model_config
from glm_dist.model import GLM, build_model
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.initial import (
    check_initial_weights,
    check_vocabulary,
    load_initial_weights,
)
from glm_dist.model.tuning import apply_tuning
from glm_dist.model.weight_files import WeightFolder
from glm_dist.tokenizer import Tokenizer, find_tokenizer
from glm_dist.train.settings import PretrainSettings

logger = logging.getLogger(__name__)


def check_initial(settings: PretrainSettings, tokenizer: Tokenizer) -> None:
    """Compare the model to begin with, where there is one, with the one to be trained.

    Raises:
        ModelError: naming what does not fit.
    """
    if settings.init_from is None:
        return
    folder = model_folder(output_path(settings.init_from))
    read_model_config(folder)
    resized = check_initial_weights(WeightFolder(folder), our_shapes(settings.model))
    for name, (found, needed) in resized.items():
        logger.warning("init_from: %s has %d rows there and gets %d", name, found, needed)
    if find_tokenizer(folder):
        there = Tokenizer.load(folder)
        check_vocabulary(_pieces(there), _pieces(tokenizer))


def build_initial(settings: PretrainSettings, *, is_resumed: bool = False) -> GLM:
    """The model as the run begins; one that is resumed gets its weights from a checkpoint."""
    model = build_model(settings.model)
    if settings.init_from is not None and not is_resumed:
        folder = model_folder(output_path(settings.init_from))
        there, _ = read_model_config(folder)
        load_initial_weights(model, WeightFolder(folder), there.vocab_size)
    return apply_tuning(model, settings.tuning)


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
