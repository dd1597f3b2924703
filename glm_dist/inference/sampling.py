"""From logits to the next token, vectorised over the batch.

Noise is counted, not streamed: the draw of a token depends on the seed and on how many tokens its
text has, never on the neighbours in the batch.
"""

import torch
from torch import Tensor

from glm_dist.inference.settings import GenerationSettings


def choose_tokens(logits: Tensor, step: int, settings: GenerationSettings) -> Tensor:
    """The next token [B] of each text from its logits [B, V].

    Args:
        logits: fp32, -inf where a token is not allowed.
        step: tokens the texts have got so far.
        settings: temperature, limits and seed.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = logits / settings.temperature
    if settings.top_k:
        logits = _keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = _keep_top_p(logits, settings.top_p)
    return (logits + _gumbel(logits, settings.seed, step)).argmax(-1)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    ordered, order = logits.sort(descending=True)
    shares = ordered.softmax(-1)
    is_past = shares.cumsum(-1) - shares >= p
    return logits.masked_fill(torch.zeros_like(is_past).scatter(-1, order, is_past), -torch.inf)


def _gumbel(logits: Tensor, seed: int, step: int) -> Tensor:
    """Gumbel noise [V]: its argmax with the logits is a draw from their softmax."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
    uniform = torch.rand(logits.shape[-1], generator=generator).clamp(1e-20, 1 - 1e-7)
    return -(-uniform.log()).log().to(logits.device)
