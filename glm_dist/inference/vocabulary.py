"""Which ids of a model's vocabulary end an answer, and which never stand in one."""

import torch
from torch import Tensor

from glm_dist.model import ModelSettings
from glm_dist.tokenizer import JSON_FILE, Tokenizer


def ending_ids(settings: ModelSettings, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer; published causal models end a turn with the role that is next."""
    special = tokenizer.special
    ends = {special.eop, special.eos}
    if settings.causal and tokenizer.FILE == JSON_FILE:
        ends |= {special.user, special.observation}
    return frozenset(end for end in ends if end >= 0)


def forbidden_ids(settings: ModelSettings, tokenizer: Tokenizer) -> Tensor:
    """Ids that are never generated, bool [V]: roles but for the ends, and those without a text."""
    forbidden = torch.zeros(settings.padded_vocab_size, dtype=torch.bool)
    forbidden[torch.from_numpy(tokenizer.special_ids).long().clamp(min=0)] = True
    forbidden[sorted(ending_ids(settings, tokenizer))] = False
    forbidden[min(settings.vocab_size, tokenizer.vocab_size) :] = True
    return forbidden
