"""Requests of ours in vLLM's terms: prompts as ids, settings as arguments of `SamplingParams`.

It stands apart from the engine that needs vLLM, so that the translation is plain values.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glm_dist.engine.folders import read_config
from glm_dist.errors import ModelError, RequestError
from glm_dist.inference.requests import (
    PROMPT_REQUESTS,
    AnyRequest,
    Blank,
    Request,
    SamplingSettings,
    ScoreRequest,
)
from glm_dist.model.huggingface import FAMILIES
from glm_dist.tokenizer import SpecialTokenIds

FORBIDDEN = -100.0
"""A bias that vLLM takes as never."""


def check_hostable(folder: Path) -> None:
    """Refuse a model that vLLM has no class for.

    Raises:
        ModelError: with the remedy.
    """
    kind = read_config(folder).get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"{folder}: vLLM hosts exports of causal models of GLM-4's block (model_type "
            f"{' or '.join(FAMILIES)}); write one by jobs/export.py, or leave vllm out"
        )


def check_askable(request: AnyRequest) -> None:
    """Refuse what only our own engine does.

    Raises:
        RequestError: with the field and the remedy.
    """
    if isinstance(request, PROMPT_REQUESTS):
        raise RequestError(
            "vLLM generates and scores here, and neither embeds nor labels; host the model by our "
            "own engine (leave vllm out)",
            param="model",
        )
    blanks = [request] if isinstance(request, ScoreRequest) else request.blanks
    if len(blanks) > 1 or any(blank.place != len(request.tokens) - 1 for blank in blanks):
        raise RequestError(
            "vLLM goes on with the end of a text and fills no blanks inside it; host the model by "
            "our own engine (leave vllm out)",
            param="blanks",
        )
    if not isinstance(request, Request):
        return
    if request.beams is not None:
        raise RequestError("vLLM searches no beams here; sample", param="use_beam_search")
    if request.blanks[0].sampling.no_repeat_ngram:
        raise RequestError(
            "vLLM has no such rule; use a repetition_penalty", param="no_repeat_ngram"
        )


def prompt_ids(
    request: Request | ScoreRequest, asked: Blank | ScoreRequest, special: SpecialTokenIds
) -> list[int]:
    """Part A, and the token that begins the answer."""
    return [*map(int, request.tokens), special.sop if asked.start is None else asked.start]


def sampling_arguments(
    sampling: SamplingSettings, seed: int, ends: Iterable[int], forbidden: Iterable[int]
) -> dict[str, Any]:
    """Arguments of `SamplingParams`, but for its output kind and its structured outputs.

    Args:
        sampling: how the answer is drawn; stop strings are looked for by us.
        seed: of this one answer.
        ends: ids that end any answer.
        forbidden: ids that stand in none.
    """
    never, stops = {*forbidden}, {*sampling.stop_tokens}
    (never if sampling.ignore_eos else stops).update(ends)
    biases = dict.fromkeys(sorted(never - stops), FORBIDDEN)
    return {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {**biases, **sampling.logit_bias} or None,
        "bad_words": list(sampling.bad_words) or None,
        "allowed_token_ids": list(sampling.allowed_tokens) or None,
        "seed": seed >> 1,
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,  # the model's ends are among the stop tokens, or are not to end it
        "logprobs": sampling.num_logprobs,
        "detokenize": False,
    }


def structured_arguments(sampling: SamplingSettings) -> dict[str, Any]:
    """Arguments of `StructuredOutputsParams`; none where an answer may be any text."""
    if sampling.constraint is None:
        return {}
    kind, value = sampling.constraint
    if kind == "choices":
        return {"choice": list(value)}
    return {"json": json.loads(value)} if kind == "json_schema" else {kind: value}
