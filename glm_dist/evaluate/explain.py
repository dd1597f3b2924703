"""Why a text got its label: what each token adds to the score, and where attention went.

Integrated gradients add up to the score less that of an empty text; attention rollout only says
what was looked at. Both take any decision of a GLM that is made at one token: a head's pooled one,
or the `<sop>` of a cloze.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glm_dist.evaluate.attention import attended, embedded, hidden_states, seen
from glm_dist.model import GLM
from glm_dist.model.attention import dense_attend
from glm_dist.objective import Sample
from glm_dist.tokenizer import Tokenizer

TOLERANCE = 0.02  # share of the score difference that attributions may miss
FIRST_POINTS, MOST_POINTS = 16, 512
POINTS_AT_A_TIME = 16


@dataclass(frozen=True)
class Decision:
    """One answer chosen among some, at one token of a sample."""

    sample: Sample
    place: int
    """Index of the token at whose output the answers are scored."""
    answers: list[int]
    """Columns of the logits there: ids of a head's labels, or token ids of a cloze's answers."""
    chosen: int
    """Index into `answers`."""


@dataclass(frozen=True)
class Explanation:
    """What each token of a text adds to the log odds of an answer."""

    tokens: list[str]
    attributions: list[float]
    rollout: list[float]
    """Share of the deciding token's attention that goes back to each token."""
    label: str
    log_odds: float
    """Of the answer against the others, for the text."""
    empty_log_odds: float
    """The same with every token of the text masked."""

    @property
    def gap(self) -> float:
        """Share of the difference that the attributions miss; 0 is complete."""
        difference = self.log_odds - self.empty_log_odds
        return abs(sum(self.attributions) - difference) / max(abs(difference), 1e-9)

    def save(self, path: Path) -> None:
        """As JSON."""
        document = {**asdict(self), "gap": self.gap}
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


def explain(model: GLM, tokenizer: Tokenizer, decision: Decision, label: str) -> Explanation:
    """Integrated gradients and attention rollout over the text of Part A.

    Special tokens stay as they are: they are no text, and nothing is attributed to them.
    """
    tokens = torch.from_numpy(decision.sample.tokens)
    is_text = text_places(decision, tokenizer)
    empty = torch.where(torch.from_numpy(is_text), tokenizer.special.mask, tokens)
    with torch.no_grad():
        words, empty_words = (embedded(model, ids) for ids in (tokens, empty))
        log_odds, empty_log_odds = _log_odds(model, decision, torch.stack((words, empty_words)))
    attributions = integrated_gradients(
        lambda points: _log_odds(model, decision, points), words, empty_words
    )
    return Explanation(
        [tokenizer.piece(int(token)) for token in tokens[is_text]],
        attributions[is_text].tolist(),
        attention_rollout(model, decision)[is_text].tolist(),
        label,
        float(log_odds),
        float(empty_log_odds),
    )


def integrated_gradients(
    score: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor
) -> np.ndarray:
    """What each of S rows adds to `score(inputs) - score(baseline)` (Sundararajan et al. 2017).

    The integral is taken by Gauss-Legendre quadrature, with twice the points until its sum is right
    within `TOLERANCE`.

    Args:
        score: inputs [points, S, hidden size] → scores [points].
        inputs: [S, hidden size].
        baseline: what stands for nothing, [S, hidden size].

    Returns:
        [S], float64.
    """
    with torch.no_grad():
        whole = float(score(inputs[None])[0] - score(baseline[None])[0])
    count = FIRST_POINTS
    while True:
        attributions = _quadrature(score, inputs, baseline, count)
        is_right = abs(attributions.sum() - whole) <= TOLERANCE / 2 * abs(whole)
        if is_right or 2 * count > MOST_POINTS:
            return attributions
        count *= 2


def _quadrature(
    score: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor, count: int
) -> np.ndarray:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    places = torch.as_tensor((nodes + 1) / 2, dtype=inputs.dtype)
    shares = torch.as_tensor(weights / 2)
    total = torch.zeros(inputs.shape, dtype=torch.float64)
    for at in range(0, count, POINTS_AT_A_TIME):
        part = slice(at, at + POINTS_AT_A_TIME)
        points = torch.lerp(baseline[None], inputs[None], places[part, None, None])
        points.requires_grad_(True)
        (gradients,) = torch.autograd.grad(score(points).sum(), points)
        total += (gradients.double() * shares[part, None, None]).sum(dim=0)
    return (total * (inputs - baseline).double()).sum(dim=-1).numpy()


@torch.no_grad()
def attention_rollout(model: GLM, decision: Decision) -> np.ndarray:
    """Share of the deciding token that comes from each token, [S] (Abnar and Zuidema 2020).

    Heads are averaged, and half of each layer is the residual stream.
    """
    same = torch.eye(len(decision.sample.tokens), dtype=torch.float64)
    rollout = same
    for layer in attended(model, decision.sample):
        rollout = (layer.shares.double().mean(dim=0) + same) / 2 @ rollout
    return rollout[decision.place].numpy()


@torch.no_grad()
def deletion_drops(
    model: GLM, tokenizer: Tokenizer, decision: Decision, attributions: Sequence[float], seed: int
) -> tuple[float, float]:
    """How far the log odds fall when the top fifth of the text is masked, and a random fifth.

    `attributions` are those of `Explanation`, one a token of the text.
    """
    places = np.flatnonzero(text_places(decision, tokenizer))
    count = max(1, len(places) // 5)
    best = places[np.argsort(-np.asarray(attributions), kind="stable")[:count]]
    drawn = np.random.default_rng(seed).choice(places, count, replace=False)
    versions = np.stack([decision.sample.tokens] * 3)
    versions[1, best] = versions[2, drawn] = tokenizer.special.mask
    scores = _log_odds(model, decision, embedded(model, torch.from_numpy(versions)))
    return float(scores[0] - scores[1]), float(scores[0] - scores[2])


def text_places(decision: Decision, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens of a sample are text of Part A, bool [S]."""
    is_text = tokenizer.piece_bytes[decision.sample.tokens] > 0
    return is_text & (np.arange(len(is_text)) < decision.sample.part_a_length)


def _log_odds(model: GLM, decision: Decision, words: Tensor) -> Tensor:
    """Of the chosen answer against the others, [points], of word embeddings [points, S, hidden]."""
    sample = decision.sample
    hidden = hidden_states(model, sample, words, dense_attend(seen(model, sample)))
    scores = model.logits(hidden[:, decision.place])[:, decision.answers]
    others = [number for number in range(len(decision.answers)) if number != decision.chosen]
    return scores[:, decision.chosen] - scores[:, others].logsumexp(dim=-1)
