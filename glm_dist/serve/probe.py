"""The least that shows that an engine computes; asked before all that wait.

It stands apart because readiness at a front and the watch over an engine both ask it.
"""

from glm_dist.inference import AnyRequest, Blank, LabelRequest, Request, SamplingSettings
from glm_dist.model import ModelSettings
from glm_dist.tokenizer import Tokenizer


def probe(name: str, tokenizer: Tokenizer, settings: ModelSettings) -> AnyRequest:
    """A token, or of a model that labels the labels of one."""
    tokens = [tokenizer.special.enc, tokenizer.special.gmask]
    if settings.head.is_classifier:
        return LabelRequest(name, tokens, [0], priority=-1)
    sampling = SamplingSettings(max_tokens=1, ignore_eos=True)
    return Request(name, tokens, [Blank(1, sampling)], priority=-1, cache_salt="probe")
