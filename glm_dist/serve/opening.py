"""From settings to what answers: model and engine in one place, endpoints there or in another.

It stands apart from Ray, which calls it in every replica.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_dist import inference
from glm_dist.config import output_path
from glm_dist.engine.adapters import AdapterFolder
from glm_dist.engine.folders import model_folder, read_model_config
from glm_dist.errors import ConfigError, ModelError
from glm_dist.inference.precision import GIB
from glm_dist.inference.vllm_engine import VllmEngine
from glm_dist.inference.vllm_terms import check_hostable
from glm_dist.metrics.memory import available_bytes
from glm_dist.model import ModelSettings
from glm_dist.serve.endpoints import Endpoints
from glm_dist.serve.engine_thread import AnyEngine, EngineThread
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.settings import HostedModel, ServeSettings
from glm_dist.serve.templates import ChatTemplate
from glm_dist.tasks import Task, load_task
from glm_dist.tokenizer import Tokenizer

SEEN_BY_REQUESTS = ("vocab_size", "max_position_embeddings", "positions", "causal", "hidden_size")
"""Of a model's settings, those that requests and replies depend on."""


@dataclass(frozen=True)
class Described:
    """A finished model, but for its weights."""

    name: str
    """What clients call it by."""
    tokenizer: Tokenizer
    settings: ModelSettings
    template: ChatTemplate
    adapters: tuple[str, ...]
    """What clients call the model by with an adapter beside it."""
    tasks: dict[str, Task[Any]]
    """What the model or an adapter was tuned for, by what clients call it."""

    @property
    def kind(self) -> str:
        """Equal where requests built for one model mean the same to another."""
        shape = self.settings.model_dump_json(include=set(SEEN_BY_REQUESTS))
        return hashlib.sha256(f"{self.tokenizer.sha256}{shape}".encode()).hexdigest()

    def endpoints(self, engine: AnyEngine, limits: RequestLimits) -> list[Endpoints]:
        """What answers for it and for each adapter, with an engine here or elsewhere."""
        whole = Endpoints(
            self.name,
            engine,
            self.tokenizer,
            self.settings,
            limits,
            self.template,
            self.tasks.get(self.name),
        )
        beside = [whole.of_adapter(name, self.tasks.get(name)) for name in self.adapters]
        return [whole, *beside]


def check_model(hosted: HostedModel) -> str:
    """The name that clients call the model by.

    Raises:
        ModelError: when there is no finished model.
    """
    _, name = read_model_config(model_folder(output_path(hosted.model)))
    return hosted.name or name


def check_models(settings: ServeSettings) -> list[str]:
    """The names of all models, without those of their adapters.

    Raises:
        ConfigError: with each model that is not finished, each adapter that is none, and each name
            that two have.
    """
    problems, names = list[str](), list[str]()
    for number, hosted in enumerate(settings.hosted):
        place = f"models.{number - 1}." if number else ""
        with _noting(problems, f"{place}model"):
            names.append(check_model(hosted))
            if hosted.vllm is not None:
                check_hostable(model_folder(output_path(hosted.model)))
        for name, folder in adapter_folders(hosted).items():
            with _noting(problems, f"{place}adapters.{name}"):
                AdapterFolder(folder)
    every = [*names, *(name for hosted in settings.hosted for name in hosted.adapters)]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        problems.append(
            f"models: {', '.join(twice)} stands for more than one; give each a name of its own"
        )
    if problems:
        raise ConfigError(problems)
    return names


@contextmanager
def _noting(problems: list[str], setting: str) -> Iterator[None]:
    """Put down what is wrong with a model, and go on."""
    try:
        yield
    except ModelError as error:
        problems.append(f"{setting}: {error}")


def check_room(settings: ServeSettings) -> None:
    """Refuse engines that would not fit on this machine, before any is started.

    Raises:
        ModelError: when a model is not finished.
        ConfigError: with each model that does not fit, or when they do not fit together.
    """
    problems, needed = list[str](), 0
    for hosted in settings.hosted:
        if hosted.vllm is not None:  # which shares out memory by rules of its own
            if not Path(hosted.vllm.python).expanduser().exists():
                problems.append(
                    f"vllm.python: there is no {hosted.vllm.python}; make an environment of "
                    "cluster/serving-vllm.txt and name its interpreter"
                )
            continue
        device = device_of(hosted)
        try:
            size = inference.check_fits(output_path(hosted.model), hosted.engine, device)
        except ModelError as error:
            problems.append(f"{hosted.model}: {error}")
        else:
            needed += size * hosted.num_replicas * (device == "cpu")
    free = available_bytes(torch.device("cpu"))
    if not problems and needed > free:
        count = sum(hosted.num_replicas for hosted in settings.hosted)
        problems.append(
            f"num_replicas: {count} engines need {needed / GIB:.1f} GiB together, and this machine "
            f"has {free / GIB:.1f} GiB free; start fewer, or lower cache_tokens"
        )
    if problems:
        raise ConfigError(problems)


def device_of(hosted: HostedModel) -> str:
    """Where its engines compute."""
    return "cuda" if hosted.num_gpus and torch.cuda.is_available() else "cpu"


def adapter_folders(hosted: HostedModel) -> dict[str, Path]:
    """Where its adapters lie, by their names."""
    return {name: model_folder(output_path(each)) for name, each in hosted.adapters.items()}


def describe(hosted: HostedModel) -> Described:
    """Its tokenizer, its shape and its template of dialogues, read from its folder.

    Raises:
        ModelError: when there is no finished model.
    """
    folder = model_folder(output_path(hosted.model))
    settings, _ = read_model_config(folder)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.of_model(folder, tokenizer, settings)
    name = check_model(hosted)
    folders = {name: folder, **adapter_folders(hosted)}
    found = {
        each: load_task(where, tokenizer, pools_first=settings.pools_first)
        for each, where in folders.items()
    }
    tasks = {each: task for each, task in found.items() if task is not None}
    return Described(name, tokenizer, settings, template, tuple(hosted.adapters), tasks)


def open_engine(hosted: HostedModel) -> EngineThread:
    """The model loaded, its engine running."""
    torch.set_num_threads(hosted.num_threads)
    folder = model_folder(output_path(hosted.model))
    if hosted.vllm is not None:
        return EngineThread(VllmEngine(folder, hosted.engine, hosted.vllm.options))
    adapters = adapter_folders(hosted)
    engine = inference.open_engine(
        folder, hosted.engine, device=device_of(hosted), adapters=adapters
    )
    return EngineThread(engine)


def weights_key(hosted: HostedModel, engine: EngineThread) -> str:
    """Equal where two engines give the same bits: weights, shapes of kernels, hardware."""
    folders = [model_folder(output_path(hosted.model)), *adapter_folders(hosted).values()]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    limits = engine.engine.limits.model_dump(exclude={"max_running", "max_waiting"})
    hardware = (torch.__version__, torch.backends.cpu.get_cpu_capability(), hosted.num_gpus > 0)
    facts = [stamps, limits, hardware, hosted.num_threads]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
