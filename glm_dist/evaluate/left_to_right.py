"""How well text is predicted from left to right: bits a byte, by language and by place.

The same rows are put to every predictor, a GLM that generates them whole or an n-gram model, so
that what is compared are the same tokens after the same tokens. Bits a byte flatter no tokenizer.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from glm_dist.data.rows import RowBuilder, Rows, RowSettings
from glm_dist.data.shards import TokenDataset
from glm_dist.evaluate.heldout import Forward, HeldOut, TokenOutputs, build_heldout
from glm_dist.evaluate.score import Score
from glm_dist.model import GLM, Batch
from glm_dist.objective import ObjectiveSettings
from glm_dist.tasks.baselines.kneser_ney import KneserNey

FIRST_PLACES = 16
WHOLE = ObjectiveSettings(
    token_probability=0.0,
    sentence_probability=0.0,
    document_probability=0.0,
    causal_probability=1.0,
    short_sequence_probability=0.0,
)


@dataclass(frozen=True)
class Predicted:
    """What one predictor made of the held-out text; each field [T], a text token an entry."""

    nats: np.ndarray
    num_bytes: np.ndarray
    languages: np.ndarray
    """Names."""
    samples: np.ndarray
    """Number of the text that the token stands in."""
    places: np.ndarray
    """How many tokens of the text stand before it."""

    def bits_per_byte(self, language: str | None = None) -> Score:
        """Of one language, or of all: lower is better; texts are what is resampled."""
        chosen = np.ones(len(self.nats), bool) if language is None else self.languages == language
        samples = np.unique(self.samples[chosen], return_inverse=True)[1]
        bits = np.bincount(samples, self.nats[chosen] / np.log(2))
        statistics = np.stack((bits, np.bincount(samples, self.num_bytes[chosen])), axis=1)
        value = float(_ratio(statistics.sum(0, keepdims=True))[0])
        return Score("bits per byte", value, statistics, _ratio)

    def perplexity(self, language: str) -> float:
        """Of a token of one language; comparable under one tokenizer alone."""
        return float(np.exp(self.nats[self.languages == language].mean()))

    def nats_by_place(self) -> dict[str, float]:
        """Mean loss of a token by how many stand before it: 0–15, 16–31, 32–63 and so on."""
        found, first, end = {}, 0, FIRST_PLACES
        while first <= self.places.max():
            inside = (self.places >= first) & (self.places < end)
            if inside.any():
                found[f"{first}–{end - 1}"] = float(self.nats[inside].mean())
            first, end = end, 2 * end
        return found


def left_to_right(
    dataset: TokenDataset, rows: RowSettings, num_rows: int, micro_batch_size: int
) -> HeldOut:
    """Held-out rows of texts that are predicted whole, always the same ones."""
    builder = RowBuilder(dataset, "validation", rows, WHOLE, seed=0)
    return build_heldout(builder, num_rows, micro_batch_size)


def predict(heldout: HeldOut, forward: Forward) -> Predicted:
    """Ask a predictor for the loss of every text token."""
    rows, text = heldout.rows, heldout.text_mask
    losses = np.concatenate(
        [
            forward(
                {name: array[at : at + heldout.micro_batch_size] for name, array in rows.items()}
            ).losses
            for at in range(0, len(text), heldout.micro_batch_size)
        ]
    )
    numbers = np.arange(len(text))[:, None] * (rows["segment_ids"].max() + 1) + rows["segment_ids"]
    return Predicted(
        nats=losses[text].astype(np.float64),
        num_bytes=heldout.piece_bytes[rows["targets"][text]],
        languages=np.array(heldout.language_names)[heldout.languages[text]],
        samples=numbers[text],
        # Part B counts from 1 at the token that predicts the first.
        places=rows["block_position_ids"][text] - 1,
    )


def forward_of_model(model: GLM) -> Forward:
    """A model's losses, where its weights lie."""
    device = next(model.parameters()).device
    return partial(_model_losses, model.eval(), device)


@torch.inference_mode()
def _model_losses(model: GLM, device: torch.device, rows: Rows) -> TokenOutputs:
    batch = Batch(*(torch.from_numpy(rows[name]) for name in Batch._fields))
    return TokenOutputs(model(*batch.to(device)).token_losses.float().cpu().numpy())


def bits_by_language(
    model: GLM, dataset: TokenDataset, rows: RowSettings, num_rows: int, micro_batch_size: int
) -> dict[str, Score]:
    """Bits a byte of a model on held-out text, by the languages that it holds."""
    heldout = left_to_right(dataset, rows, num_rows, micro_batch_size)
    found = predict(heldout, forward_of_model(model))
    there = set(found.languages.tolist())
    return {name: found.bits_per_byte(name) for name in dataset.languages if name in there}


def count_ngrams(dataset: TokenDataset, rows: RowSettings, order: int) -> KneserNey:
    """The n-gram model of the training split, its documents cut as the rows cut theirs."""
    longest = rows.sequence_length
    documents = [dataset.tokens("train", number) for number in range(len(dataset.lengths("train")))]
    pieces = [one[at : at + longest] for one in documents for at in range(0, len(one), longest)]
    return KneserNey(pieces, dataset.tokenizer.vocab_size, order)


def forward_of_ngrams(model: KneserNey) -> Forward:
    """Its losses of rows as `left_to_right` lays them."""
    return partial(_ngram_losses, model)


def _ngram_losses(model: KneserNey, rows: Rows) -> TokenOutputs:
    losses = np.zeros(rows["targets"].shape, dtype=np.float32)
    for row, segments in enumerate(rows["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero((segments == segment) & (rows["loss_mask"][row] > 0))
            losses[row, places] = -model.log_probabilities(rows["targets"][row, places])
    return TokenOutputs(losses)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]
