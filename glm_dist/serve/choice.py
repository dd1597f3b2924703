"""Which replica a request goes to: the one that may know its prompt, unless it has too much to do.

It stands apart as plain arithmetic: rendezvous hashing with bounded loads (Thaler and Ravishankar
1998; Mirrokni, Thorup and Zadimoghaddam 2018).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

from glm_dist.inference import AnyRequest
from glm_dist.inference.requests import PROMPT_REQUESTS

SLACK = 1.25
"""A replica takes no more than this times its fair share of what is in work."""
HEAD_TOKENS = 64
"""Dialogues and templates that begin alike share their keys in a causal model."""


def prompt_key(request: AnyRequest, *, is_causal: bool) -> bytes:
    """Equal for requests that can share keys and values: of the whole prompt, or of its head."""
    salt = "" if isinstance(request, PROMPT_REQUESTS) else request.cache_salt
    tokens: Sequence[int] = request.tokens[:HEAD_TOKENS] if is_causal else request.tokens
    return hashlib.sha256(
        f"{salt}:{request.adapter}:{','.join(map(str, tokens))}".encode()
    ).digest()


def choose(loads: Mapping[str, int], key: bytes) -> str:
    """One of the replicas, by their names and what each has in work."""
    most = math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads))
    ranked = sorted(loads, key=lambda name: hashlib.sha256(key + name.encode()).digest())
    return next(name for name in ranked if loads[name] < most)
