"""Requests in, tokens out: the one decoder of the project; no ray and no HTTP."""

from glm_dist.inference.engine import Engine
from glm_dist.inference.generator import Generation, Generator
from glm_dist.inference.load import check_fits, load_model, open_engine
from glm_dist.inference.requests import (
    Alternative,
    AnyRequest,
    BeamSettings,
    Blank,
    Delta,
    Embedding,
    EmbedRequest,
    EngineStats,
    Failure,
    Labelled,
    LabelRequest,
    OptionScore,
    Output,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
    Usage,
)
from glm_dist.inference.settings import EngineLimits, GenerationSettings

__all__ = [
    "Alternative",
    "AnyRequest",
    "BeamSettings",
    "Blank",
    "Delta",
    "EmbedRequest",
    "Embedding",
    "Engine",
    "EngineLimits",
    "EngineStats",
    "Failure",
    "Generation",
    "GenerationSettings",
    "Generator",
    "LabelRequest",
    "Labelled",
    "OptionScore",
    "Output",
    "Request",
    "SamplingSettings",
    "ScoreRequest",
    "Scores",
    "Usage",
    "check_fits",
    "load_model",
    "open_engine",
]
