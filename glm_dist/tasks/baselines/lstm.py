"""The bidirectional LSTM that introductions to the field start from: for texts and for tokens.

No tokenizer, no pretraining, no ray: words (Chinese: characters) in a list, embeddings, two layers,
and one linear map. The same data and seed give the same weights bit by bit on one machine.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from glm_dist.config import Settings
from glm_dist.data.text_units import text_units
from glm_dist.tasks.baselines.vocabulary import PAD, UNKNOWN, Vocabulary

BATCHES_IN_A_POOL = 100  # sorted by length together, as torchtext's bucket iterator does
NO_TAG = -100  # what cross_entropy passes over


class LstmSettings(Settings):
    """Size and training of an LSTM baseline."""

    vocab_size: int = Field(25_000, ge=1)
    """Most frequent words of the training split that have an embedding."""
    embedding_size: int = Field(100, ge=1)
    """Width of a word's embedding."""
    vectors: str | None = None
    """Pretrained embeddings in GloVe's text format: a word and its values a line."""
    hidden_size: int = Field(256, ge=1)
    """Width of each direction."""
    num_layers: int = Field(2, ge=1)
    """Layers, each in both directions."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """After the embeddings, between the layers and before the last map."""
    batch_size: int = Field(64, ge=1)
    """Texts of about one length in a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam."""
    num_epochs: int = Field(10, ge=1)
    """Passes over the training split."""
    max_tokens: int = Field(256, ge=1)
    """Longer texts are cut at their end."""
    seed: int = 1234
    """Decides first weights, order and dropout."""


class _BiLstm(nn.Module):
    def __init__(self, vocabulary: Vocabulary, num_outputs: int, settings: LstmSettings) -> None:
        super().__init__()
        size, hidden = settings.embedding_size, settings.hidden_size
        self.embedding = nn.Embedding(len(vocabulary), size, padding_idx=PAD)
        if settings.vectors is not None:
            vectors, _ = vocabulary.read_vectors(settings.vectors, size)
            self.embedding.weight.data.copy_(torch.from_numpy(vectors))
        self.embedding.weight.data[[PAD, UNKNOWN]] = 0
        widths = [size] + [2 * hidden] * (settings.num_layers - 1)
        self.layers = nn.ModuleList(_Layer(width, hidden) for width in widths)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(2 * hidden, num_outputs)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the texts [B, outputs] and of their tokens [B, S, outputs]."""
        places = torch.arange(tokens.shape[1])
        turned = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
        states = self.embedding(tokens)
        for layer in self.layers:
            ahead, behind = layer(self.dropout(states), turned[:, :, None])
            states = torch.cat((ahead, behind), dim=2)
        ends = torch.cat((ahead[torch.arange(len(tokens)), lengths - 1], behind[:, 0]), dim=1)
        return self.output(self.dropout(ends)), self.output(self.dropout(states))


class _Layer(nn.Module):
    """Both directions over padded texts, which is three times as fast as `nn.LSTM` on packed ones.

    Each text is turned around within its own length, so that padding comes last for both.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(width, hidden, batch_first=True)
        self.behind = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, states: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, S, hidden] of each direction; `turned` has each text's last place first."""
        behind, _ = self.behind(states.take_along_dim(turned, dim=1))
        return self.ahead(states)[0], behind.take_along_dim(turned, dim=1)


class _Lstm:
    """What the two share: encoding, batches, and one pass over the training split."""

    def __init__(
        self, sentences: Sequence[Sequence[str]], labels: Sequence[str], settings: LstmSettings
    ) -> None:
        self.labels = list(labels)
        self.settings = settings
        self.vocabulary = Vocabulary(sentences, settings.vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = _BiLstm(self.vocabulary, len(self.labels), settings)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate)

    def describe(self) -> str:
        """One line for a report."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"bidirectional LSTM: {len(self.vocabulary.words):,} words, "
            f"{self.settings.num_layers} layers of {self.settings.hidden_size}, "
            f"{parameters / 1e6:.1f} M parameters"
        )

    def _encode(self, words: Sequence[str]) -> Tensor:
        return torch.tensor(self.vocabulary.encode(words[: self.settings.max_tokens]))

    def _train(self, texts: Sequence[Tensor], targets: Sequence[Tensor]) -> Iterator[float]:
        for epoch in range(self.settings.num_epochs):
            # Keyed by the epoch, and the caller's own stream of random numbers stays as it was.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed * 1_000_003 + epoch + 1)
                yield self._pass_over(texts, targets)

    def _pass_over(self, texts: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        """One epoch; the mean loss of a label."""
        self.model.train()
        total, count = 0.0, 0
        lengths = np.array([len(text) for text in texts])
        for batch in bucketed_batches(lengths, self.settings.batch_size, _numpy_seed()):
            scores, wanted = self._scores_and_targets(
                [texts[i] for i in batch], [targets[i] for i in batch]
            )
            loss = F.cross_entropy(scores, wanted, ignore_index=NO_TAG)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            labelled = int((wanted != NO_TAG).sum())
            total, count = total + loss.item() * labelled, count + labelled
        return total / count

    def _scores_and_targets(
        self, texts: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _forward(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(text) for text in texts])
        return self.model(pad_sequence(list(texts), batch_first=True, padding_value=PAD), lengths)

    @torch.inference_mode()
    def _in_batches(self, texts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, text scores and token scores of every text, short ones first."""
        self.model.eval()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for first in range(0, len(order), self.settings.batch_size):
            batch = order[first : first + self.settings.batch_size]
            of_texts, of_tokens = self._forward([texts[i] for i in batch])
            yield from zip(batch, of_texts, of_tokens, strict=True)


class LstmClassifier(_Lstm):
    """Classifies texts from the last states of both directions."""

    def __init__(
        self, texts: Sequence[str], labels: Sequence[str], settings: LstmSettings | None = None
    ) -> None:
        super().__init__(
            [text_units(text) for text in texts], sorted(set(labels)), settings or LstmSettings()
        )

    def train(self, texts: Sequence[str], labels: Sequence[str]) -> Iterator[float]:
        """Train epoch by epoch, giving each one's mean loss; whoever stops asking stops early."""
        encoded = [self._encode(text_units(text)) for text in texts]
        targets = [torch.tensor(self.labels.index(label)) for label in labels]
        yield from self._train(encoded, targets)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities [N, C]."""
        encoded = [self._encode(text_units(text)) for text in texts]
        scores = np.zeros((len(texts), len(self.labels)))
        for number, of_text, _ in self._in_batches(encoded):
            scores[number] = of_text.softmax(dim=-1).numpy()
        return scores

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most likely label of each text."""
        return [self.labels[number] for number in self.predict_proba(texts).argmax(axis=1)]

    def _scores_and_targets(
        self, texts: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self._forward(texts)[0], torch.stack(list(targets))


class LstmTagger(_Lstm):
    """Tags tokens, each from its own states in both directions; tags are chosen one by one."""

    def __init__(
        self,
        sentences: Sequence[Sequence[str]],
        tags: Sequence[Sequence[str]],
        settings: LstmSettings | None = None,
    ) -> None:
        names = sorted({tag for one in tags for tag in one})
        super().__init__(sentences, names, settings or LstmSettings())

    def train(
        self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]
    ) -> Iterator[float]:
        """Train epoch by epoch, giving each one's mean loss."""
        longest = self.settings.max_tokens
        numbers = {tag: number for number, tag in enumerate(self.labels)}
        targets = [torch.tensor([numbers[tag] for tag in one[:longest]]) for one in tags]
        yield from self._train([self._encode(tokens) for tokens in sentences], targets)

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """A tag for each token; what lies past `max_tokens` gets `O`."""
        found: list[list[str]] = [[] for _ in sentences]
        for number, _, scores in self._in_batches([self._encode(one) for one in sentences]):
            tags = [self.labels[tag] for tag in scores.argmax(dim=-1).tolist()]
            length = len(sentences[number])
            found[number] = (tags[:length] + ["O"] * length)[:length]
        return found

    def _scores_and_targets(
        self, texts: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        wanted = pad_sequence(list(targets), batch_first=True, padding_value=NO_TAG)
        return self._forward(texts)[1].flatten(0, 1), wanted.flatten()


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int) -> list[list[int]]:
    """Batches of about equally long texts, in random order; every text stands in one."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    pool = BATCHES_IN_A_POOL * batch_size
    batches: list[list[int]] = []
    for first in range(0, len(order), pool):
        inside = order[first : first + pool]
        inside = inside[np.argsort(lengths[inside], kind="stable")]
        batches += [
            inside[at : at + batch_size].tolist() for at in range(0, len(inside), batch_size)
        ]
    return [batches[i] for i in generator.permutation(len(batches))]


def _numpy_seed() -> int:
    return int(torch.randint(1 << 62, ()))
