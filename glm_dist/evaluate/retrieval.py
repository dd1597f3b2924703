"""Sentence retrieval: of all sentences of another language, is the translation the nearest one?

A model that was never shown pairs finds them only where its hidden states of both languages agree,
which makes this a measure of what pretraining shares between languages (Artetxe and Schwenk 2019).
"""

from collections.abc import Sequence

import numpy as np

from glm_dist.evaluate.score import Score, mean_score
from glm_dist.inference import Embedding, EmbedRequest, Engine, EngineLimits
from glm_dist.model import GLM
from glm_dist.tokenizer import Tokenizer

NUM_RUNNING = 32


def embed(model: GLM, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> np.ndarray:
    """Unit vectors [texts, hidden size]: mean final hidden states less their mean over all texts.

    Languages lie apart as wholes, which says nothing of a sentence. Texts are cut after
    `max_tokens`.
    """
    enc = tokenizer.special.enc
    requests = [
        EmbedRequest(str(number), [enc, *tokenizer.encode(text).tolist()][:max_tokens])
        for number, text in enumerate(texts)
    ]
    limits = EngineLimits(
        max_running=NUM_RUNNING,
        max_waiting=len(requests) + 1,
        cache_tokens=NUM_RUNNING * (max_tokens + 64),
    )
    vectors = np.zeros((len(texts), model.settings.hidden_size))
    for output in Engine(model.eval(), tokenizer, limits).generate(requests):
        assert isinstance(output, Embedding), output
        vectors[int(output.request_id)] = output.vector
    centred = vectors - vectors.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(lengths, 1e-12))


def retrieval_scores(sources: np.ndarray, targets: np.ndarray) -> list[Score]:
    """Accuracy of the nearest by cosine, of both directions together and of each.

    Args:
        sources: unit vectors [N, hidden size].
        targets: those of the translations, in the same order.
    """
    likeness, right = sources @ targets.T, np.arange(len(sources))
    there = likeness.argmax(axis=1) == right
    back = likeness.argmax(axis=0) == right
    return [
        mean_score("accuracy@1", (there + back.astype(float)) / 2),
        mean_score("accuracy@1 to target", there),
        mean_score("accuracy@1 to source", back),
    ]
