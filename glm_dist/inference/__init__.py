"""Requests in, tokens out: the one decoder of the project; no ray and no HTTP."""

from glm_dist.inference.generator import Generation, Generator
from glm_dist.inference.load import load_model
from glm_dist.inference.settings import GenerationSettings

__all__ = ["Generation", "GenerationSettings", "Generator", "load_model"]
