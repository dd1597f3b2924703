"""From settings to an application that answers: model, engine, endpoints.

It stands apart from Ray, which calls it in every replica.
"""

import torch

from glm_dist.config import output_path
from glm_dist.engine.export import model_folder, read_model_config
from glm_dist.inference import Engine, load_model
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
    model, tokenizer = load_model(output_path(settings.model))
    if settings.num_gpus and torch.cuda.is_available():
        model = model.to("cuda")
    engine = EngineThread(Engine(model, tokenizer, settings.engine))
    folder = model_folder(output_path(settings.model))
    template = ChatTemplate.of_model(folder, tokenizer, model.settings)
    name = check_model(settings)
    return Endpoints(name, engine, tokenizer, model.settings, settings.limits, template)
