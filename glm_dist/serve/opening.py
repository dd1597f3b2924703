"""From settings to an application that answers: model, engine, endpoints.

It stands apart from Ray, which calls it in every replica.
"""

import torch

from glm_dist.config import output_path
from glm_dist.engine.export import model_folder, read_model_config
from glm_dist.inference import open_engine
from glm_dist.serve.endpoints import Endpoints
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.settings import ServeSettings
from glm_dist.serve.templates import ChatTemplate


def check_model(settings: ServeSettings) -> str:
    """The name that clients call the model by.

    Raises:
        ModelError: when there is no finished model.
    """
    _, name = read_model_config(model_folder(output_path(settings.model)))
    return settings.name or name


def open_endpoints(settings: ServeSettings) -> Endpoints:
    """The model loaded, its engine running."""
    torch.set_num_threads(settings.num_threads)
    folder = model_folder(output_path(settings.model))
    device = "cuda" if settings.num_gpus and torch.cuda.is_available() else "cpu"
    engine = open_engine(folder, settings.engine, device=device)
    template = ChatTemplate.of_model(folder, engine.tokenizer, engine.settings)
    return Endpoints(
        check_model(settings),
        EngineThread(engine),
        engine.tokenizer,
        engine.settings,
        settings.limits,
        template,
    )
