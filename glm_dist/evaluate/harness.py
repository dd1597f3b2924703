"""A model as lm-evaluation-harness asks it: likelihoods of answers and of whole texts, and texts.

A prefix model reads a context from both sides, as Part A, and answers at its `[gMASK]`; a causal
one reads context and continuation as one text from left to right, each as it was trained.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glm_dist.errors import ModelError, import_optional
from glm_dist.inference import (
    Blank,
    Delta,
    Engine,
    EngineLimits,
    Failure,
    OptionScore,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
)
from glm_dist.inference.requests import AnyRequest, Output
from glm_dist.model import GLM
from glm_dist.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
else:
    LM = import_optional("lm_eval.api.model", "harness").LM

REQUESTS_AT_A_TIME = 64
DEFAULT_TOKENS = 128
"""Longest answer where a task does not say."""
MARKS = 3
"""Tokens around a text: `[ENC]`, `[gMASK]`, `<sop>`."""


class HarnessModel(LM):
    """Answers the harness's requests with our engine."""

    def __init__(self, model: GLM, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer, self._special = tokenizer, tokenizer.special
        self._longest = model.settings.max_position_embeddings
        self._is_causal = model.settings.causal
        limits = EngineLimits(
            max_waiting=REQUESTS_AT_A_TIME, cache_tokens=32 * (self._longest // 16 + 2) * 16
        )
        self._engine = Engine(model.eval(), tokenizer, limits)

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """Of each continuation behind its context, and whether it is the likeliest one."""
        pairs = [self._encode_pair(*instance.args) for instance in requests]
        scores = self._scores([self._scoring(*pair) for pair in pairs])
        return [
            _of_last(score, len(continuation))
            for score, (_, continuation) in zip(scores, pairs, strict=True)
        ]

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """Of each whole text: window by window, each behind the one before it."""
        half = (self._longest - MARKS) // 2
        windows, owners = [], []
        for number, instance in enumerate(requests):
            tokens = self._tokenizer.encode(instance.args[0]).tolist()
            for start in range(0, len(tokens), half):
                before = tokens[max(0, start - half) : start]
                windows.append((before, tokens[start : start + half]))
                owners.append(number)
        scores = self._scores([self._scoring(*window) for window in windows])
        totals = [0.0] * len(requests)
        for owner, score, (_, window) in zip(owners, scores, windows, strict=True):
            totals[owner] += _of_last(score, len(window))[0]
        return totals

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """An answer to each context, up to the first of its stop strings."""
        asked = [self._answering(*instance.args) for instance in requests]
        return [
            "".join(output.text for output in outputs if isinstance(output, Delta))
            for outputs in self._ask(asked)
        ]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both; of a causal model as they are cut in one text."""
        trailing = context[len(context.rstrip()) :]
        context, continuation = context.rstrip(), trailing + continuation
        before = self._tokenizer.encode(context).tolist()
        if not self._is_causal:
            return before, self._tokenizer.encode(continuation).tolist()
        whole = self._tokenizer.encode(context + continuation).tolist()
        return before, whole[len(before) :]

    def _scoring(self, context: Sequence[int], continuation: Sequence[int]) -> ScoreRequest:
        kept = max(0, self._longest - MARKS - len(continuation))
        context = list(context)[max(0, len(context) - kept) :]
        special = self._special
        if self._is_causal:
            part_a, option = [special.enc, special.gmask], [*context, *continuation]
        else:
            part_a, option = [special.enc, *context, special.gmask], list(continuation)
        place = len(part_a) - 1
        return ScoreRequest("", part_a, place, [option], scores_end=False, num_logprobs=1)

    def _answering(self, context: str, wanted: dict[str, Any]) -> Request:
        stops = wanted.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        longest = int(wanted.get("max_gen_toks", wanted.get("max_tokens", DEFAULT_TOKENS)))
        longest = min(longest, self._longest // 2)
        is_sampled = wanted.get("do_sample", wanted.get("temperature", 0) > 0)
        sampling = SamplingSettings(
            max_tokens=longest,
            stop=tuple(stop for stop in stops if stop),
            temperature=float(wanted.get("temperature", 1.0)) if is_sampled else 0.0,
            top_p=float(wanted.get("top_p", 1.0)),
        )
        tokens = self._tokenizer.encode(context).tolist()
        tokens = tokens[max(0, len(tokens) - (self._longest - MARKS - longest)) :]
        part_a = [self._special.enc, *tokens, self._special.gmask]
        return Request("", part_a, [Blank(len(part_a) - 1, sampling)])

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[OptionScore]:
        found = [outputs[-1] for outputs in self._ask(requests)]
        assert all(isinstance(output, Scores) for output in found)
        return [output.options[0] for output in found if isinstance(output, Scores)]

    def _ask(self, requests: Sequence[AnyRequest]) -> list[list[Output]]:
        """All outputs of each request.

        Raises:
            ModelError: when one of them breaks.
        """
        found: list[list[Output]] = [[] for _ in requests]
        for start in range(0, len(requests), REQUESTS_AT_A_TIME):
            some = requests[start : start + REQUESTS_AT_A_TIME]
            named = [_named(request, start + n) for n, request in enumerate(some)]
            for output in self._engine.generate(named):
                if isinstance(output, Failure):
                    raise ModelError(f"request {output.request_id}: {output.message}")
                found[int(output.request_id)].append(output)
        return found


def _named(request: AnyRequest, number: int) -> AnyRequest:
    return type(request)(**{**vars(request), "id": str(number)})


def _of_last(score: OptionScore, count: int) -> tuple[float, bool]:
    """Log-likelihood of the last tokens, and whether each is the likeliest one."""
    if not count:
        return 0.0, True
    logprobs, likeliest = score.logprobs[-count:], score.alternatives[-count:]
    is_greedy = all(one == best[0].logprob for one, best in zip(logprobs, likeliest, strict=True))
    return sum(logprobs), is_greedy
