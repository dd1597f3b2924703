"""From logits to tokens, for all rows of a tile at once and each by its own settings.

Noise is counted, not streamed: what a token of the vocabulary gets depends on the seed, the sample,
the blank and the place in it, never on the neighbours in the batch. The largest sum of logit and
Gumbel noise is a draw from the softmax.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from glm_dist.inference.requests import MAX_LOGPROBS, Alternative

NUM_CANDIDATES = 1024
"""Likeliest tokens that limits are tried on before the whole vocabulary is sorted."""
_WORD = 0xFFFFFFFF

T = TypeVar("T")

Edit = Callable[[Tensor], None]
"""Changes the logits [V] of a row in place, before anything is chosen."""


@dataclass(frozen=True)
class Rule:
    """How the tokens of one row are chosen."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_logprobs: int | None = None
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A token taken, with what was asked for."""

    token: int
    logprob: float | None
    alternatives: tuple[Alternative, ...]
    is_finite: bool
    """False where the row had no number to choose by."""
    is_possible: bool = True
    """False where all tokens are forbidden."""


@dataclass(frozen=True)
class Continuation:
    """A token that a beam may go on with."""

    token: int
    score: float
    """Log-probability after all edits, which beams are compared by."""
    logprob: float
    """The model's own."""


@dataclass(frozen=True)
class Continuations:
    """What a beam may go on with, best first; forbidden ones lack."""

    best: tuple[Continuation, ...]
    likeliest: tuple[Alternative, ...]
    """By the model alone, where asked for."""
    is_finite: bool
    """False where the model gave no numbers."""


def noise_key(seed: int, sample: int, blank: int, place: int) -> int:
    """64 bits that only these four decide (splitmix64's finaliser, Steele et al. 2014)."""
    state = 0
    for value in (seed, sample, blank, place):
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


class Sampler:
    """Chooses among the ids that a model may generate."""

    def __init__(self, forbidden: Tensor) -> None:
        """Args: forbidden: bool [V], roles and padding of the vocabulary."""
        self._forbidden = forbidden

    def choose(
        self,
        logits: Tensor,
        rules: Sequence[Rule | None],
        keys: Sequence[int],
        allowed: Tensor | None = None,
    ) -> list[Choice | None]:
        """A choice for each row that has a rule.

        Args:
            logits: fp32 [T, V] of the model, not changed; T is at least the number of rules.
            rules: of the first rows; None where nothing is to be chosen.
            keys: 64 bits a row that its noise is made of.
            allowed: bool [T, V], tokens that a constraint leaves; null for all.
        """
        scores = self._edited(logits, rules, allowed)
        best, tokens = scores.max(dim=-1)
        drawn = {row: rule for row, rule in enumerate(rules) if rule and rule.temperature}
        if drawn:
            rows = list(drawn)
            tokens[rows] = _draw(scores[rows], list(drawn.values()), [keys[row] for row in rows])
        logs = self._logprobs(logits, tokens, rules)
        finite, possible = best.isfinite().tolist(), (best != -torch.inf).tolist()
        ids = tokens.tolist()
        return [
            None
            if rule is None
            else Choice(
                ids[row],
                *_logs_of(logs, row, rule.num_logprobs),
                is_finite=finite[row],
                is_possible=possible[row],
            )
            for row, rule in enumerate(rules)
        ]

    def continue_beams(
        self,
        logits: Tensor,
        rules: Sequence[Rule | None],
        widths: Sequence[int],
        allowed: Tensor | None = None,
    ) -> list[Continuations | None]:
        """The likeliest tokens of each row that has a rule, as many as its width says."""
        logs = logits.log_softmax(dim=-1)
        scores = self._edited(logs, rules, allowed)
        finite = (~logs[: len(rules)].isnan().any(dim=-1)).tolist()
        shown = self._logprobs(logits, logits.argmax(dim=-1), rules)
        found: list[Continuations | None] = [None] * len(rules)
        for row, (rule, width) in enumerate(zip(rules, widths, strict=True)):
            if rule is None:
                continue
            top = scores[row].topk(min(width, len(scores[row])))
            columns = (top.indices, top.values, logs[row][top.indices])
            best = zip(*(column.tolist() for column in columns), strict=True)
            found[row] = Continuations(
                tuple(Continuation(*each) for each in best if each[1] > -math.inf),
                _logs_of(shown, row, rule.num_logprobs)[1],
                finite[row],
            )
        return found

    def score(self, logits: Tensor, targets: Sequence[int | None]) -> list[Choice | None]:
        """Log-probabilities of given tokens, with as many alternatives as can be asked for."""
        ids = torch.tensor([target or 0 for target in targets], device=logits.device)
        rows = logits[: len(ids)]
        logs = _Logs(*self._all_logs(rows, ids))
        finite = rows.amax(dim=-1).isfinite().tolist()
        return [
            None
            if target is None
            else Choice(target, *_logs_of(logs, row, MAX_LOGPROBS), is_finite=finite[row])
            for row, target in enumerate(targets)
        ]

    def _edited(
        self, scores: Tensor, rules: Sequence[Rule | None], allowed: Tensor | None
    ) -> Tensor:
        """A copy in which each row has only what its request allows, changed as it asks for."""
        edited = scores.masked_fill(self._forbidden, -torch.inf)
        if allowed is not None:
            edited.masked_fill_(~allowed.to(edited.device), -torch.inf)
        for row, rule in enumerate(rules):
            for edit in () if rule is None else rule.edits:
                edit(edited[row])
        return edited

    def _logprobs(
        self, logits: Tensor, tokens: Tensor, rules: Sequence[Rule | None]
    ) -> "_Logs | None":
        if all(rule is None or rule.num_logprobs is None for rule in rules):
            return None
        return _Logs(*self._all_logs(logits, tokens))

    def _all_logs(
        self, logits: Tensor, tokens: Tensor
    ) -> tuple[list[float], list[list[float]], list[list[int]]]:
        """Of the tokens, and of the likeliest ones that can be generated, best first."""
        logs = logits.log_softmax(dim=-1)
        # Always as many, since another number could order equal ones differently.
        count = min(MAX_LOGPROBS, int((~self._forbidden).sum()))
        top = logs.masked_fill(self._forbidden, -torch.inf).topk(count)
        taken = logs.gather(1, tokens[:, None]).squeeze(1)
        return taken.tolist(), top.values.tolist(), top.indices.tolist()


@dataclass(frozen=True)
class _Logs:
    taken: list[float]
    top_values: list[list[float]]
    top_tokens: list[list[int]]


def _logs_of(
    logs: _Logs | None, row: int, count: int | None
) -> tuple[float | None, tuple[Alternative, ...]]:
    if logs is None or count is None:
        return None, ()
    top = zip(logs.top_tokens[row][:count], logs.top_values[row][:count], strict=True)
    return logs.taken[row], tuple(Alternative(token, value) for token, value in top)


def _draw(scores: Tensor, rules: list[Rule], keys: list[int]) -> Tensor:
    """Tokens [N] drawn from scores [N, V]; a row takes the way that its own rule asks for."""
    scaled = scores / _column([rule.temperature for rule in rules], scores)[:, None]
    tokens = torch.empty(len(rules), dtype=torch.long, device=scores.device)
    is_limited = [bool(rule.top_k) or rule.top_p < 1 for rule in rules]
    free = [row for row, limited in enumerate(is_limited) if not limited]
    if free:
        tokens[free] = _draw_from_all(scaled[free], _at(rules, free), _at(keys, free))
    rest = [row for row, limited in enumerate(is_limited) if limited]
    for width in (min(NUM_CANDIDATES, scores.shape[1]), scores.shape[1]):
        if not rest:
            break
        drawn, is_sure = _draw_among(scaled[rest], _at(rules, rest), _at(keys, rest), width)
        tokens[rest] = drawn
        rest = [row for row, sure in zip(rest, is_sure.tolist(), strict=True) if not sure]
    return tokens


def _at(values: list[T], places: list[int]) -> list[T]:
    return [values[place] for place in places]


def _draw_from_all(scaled: Tensor, rules: list[Rule], keys: list[int]) -> Tensor:
    ids = torch.arange(scaled.shape[1], device=scaled.device).expand_as(scaled)
    noisy = scaled + _gumbel(ids, keys)
    if any(rule.min_p for rule in rules):
        shares = scaled.softmax(-1)
        least = _column([rule.min_p for rule in rules], scaled) * shares.amax(-1)
        noisy = noisy.masked_fill(shares < least[:, None], -torch.inf)
    return noisy.argmax(-1)


def _draw_among(
    scaled: Tensor, rules: list[Rule], keys: list[int], width: int
) -> tuple[Tensor, Tensor]:
    """Tokens drawn under the limits from the `width` likeliest, and whether those were enough."""
    values, ids = scaled.topk(width)
    shares = scaled.softmax(-1).gather(1, ids)
    most = torch.tensor([rule.top_k or scaled.shape[1] for rule in rules], device=scaled.device)
    is_in_k = torch.arange(width, device=scaled.device) < most[:, None]
    sums = shares.masked_fill(~is_in_k, 0).cumsum(-1)
    # Top-p counts within what top-k left, whose sum is known where the candidates hold all of it.
    whole = torch.where(most <= width, sums[:, -1], 1.0)
    limit = _column([rule.top_p for rule in rules], scaled) * whole
    keep = is_in_k & (sums - shares < limit[:, None])
    least = _column([rule.min_p for rule in rules], scaled) * shares[:, 0]
    keep &= shares >= least[:, None]
    keep[:, 0] = True
    noisy = (values + _gumbel(ids, keys)).masked_fill(~keep, -torch.inf)
    is_sure = (most <= width) | (sums[:, -1] >= limit) | (width == scaled.shape[1])
    return ids.gather(1, noisy.argmax(-1, keepdim=True)).squeeze(1), is_sure


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _gumbel(ids: Tensor, keys: list[int]) -> Tensor:
    """Standard Gumbel noise for token ids [N, C], each row by its key."""
    low, high = torch.tensor(
        [[key & _WORD for key in keys], [key >> 32 for key in keys]], device=ids.device
    )[..., None]
    bits = _mix(_mix(ids ^ low) ^ high)
    uniform = (bits.double() + 0.5) / (1 << 32)
    return -(-uniform.log()).log().float()


def _mix(words: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit of input moves all of output (lowbias32)."""
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & _WORD
    words = ((words ^ (words >> 15)) * 0x846CA68B) & _WORD
    return words ^ (words >> 16)
