"""What a sample will be, drawn before it is built: mode, spans in Part B's order, length.

The row table needs only the length, rows need everything; both draw the same plan from one key.
"""

import hashlib
import random
import struct
from dataclasses import dataclass

import numpy as np

from glm_dist.objective.settings import BlankInfillSettings, Mode
from glm_dist.objective.spans import (
    Span,
    draw_length,
    draw_lengths,
    place_in_documents,
    place_in_runs,
)


@dataclass(frozen=True)
class InfillPlan:
    """One sample's cut."""

    mode: Mode
    spans: tuple[Span, ...]
    """In the order they stand in Part B."""
    is_suffix: bool
    """One span to the text's end, generated without `<eop>`."""
    infilled_length: int
    """Tokens of Part A and Part B together."""
    corruption_seed: int | None = None
    """Seed of the draw of `[dBLOCK]` positions, or of what masked tokens become."""


def piece_rng(seed: int, epoch: int, document: int, start: int) -> random.Random:
    """The generator of one piece, keyed by a hash of all four, so that no two keys add up alike."""
    packed = struct.pack("<4q", seed, epoch, document, start)
    return random.Random(hashlib.blake2b(packed, digest_size=16).digest())


def draw_plan(
    tokens: np.ndarray, loss_mask: np.ndarray, rng: random.Random, settings: BlankInfillSettings
) -> InfillPlan:
    """Draw mode and spans in the reference's order (GLM_SPEC 1.2); `tokens` begin with ENC."""
    rng.random()  # the draw for short sequences, which is decided before a sample is made
    mode, single_span = draw_mode(rng, settings)
    return draw_plan_of(mode, single_span, tokens, loss_mask, rng, settings)


def draw_mode(rng: random.Random, settings: BlankInfillSettings) -> tuple[Mode, bool]:
    """The mode, and whether token mode takes a single span."""
    options = settings.options
    if rng.random() < options.single_span_probability:
        return Mode.TOKEN, True
    draw = rng.random()
    for mode, probability in options.mode_probabilities.items():
        if draw < probability:
            return mode, False
        draw -= probability
    return Mode.DOCUMENT, False


def draw_plan_of(
    mode: Mode,
    single_span: bool,
    tokens: np.ndarray,
    loss_mask: np.ndarray,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> InfillPlan:
    """The plan of a mode that is drawn already."""
    if mode is Mode.CAUSAL:
        return _suffix(tokens, 1, Mode.CAUSAL)
    predictable = _predictable(tokens, loss_mask, settings)
    if mode is Mode.MASKED:
        return _masked(predictable, rng, settings)
    if mode is Mode.DOCUMENT:
        return _document(tokens, predictable, rng, settings)
    if mode is Mode.SENTENCE:
        spans = _sentences(tokens, predictable, rng, settings)
        if spans or settings.reference_compatible:
            return _spans(tokens, spans, Mode.SENTENCE, rng, settings)
    return _token(tokens, predictable, single_span, rng, settings)


def _predictable(
    tokens: np.ndarray, loss_mask: np.ndarray, settings: BlankInfillSettings
) -> np.ndarray:
    """Tokens that may be cut: text with loss (the reference ignores the loss mask: defect 5)."""
    special = settings.special
    return (loss_mask > 0) & (tokens != special.eos) & (tokens != special.enc)


def _token(
    tokens: np.ndarray,
    predictable: np.ndarray,
    single_span: bool,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> InfillPlan:
    options = settings.options
    if single_span:
        lengths = [draw_length(rng, options.mean_span_length, options.max_span_length)]
    else:
        lengths = draw_lengths(rng, len(tokens), settings)
    spans = _place(tokens, predictable, lengths, rng, settings)
    return _spans(tokens, spans, Mode.TOKEN, rng, settings)


def _place(
    tokens: np.ndarray,
    predictable: np.ndarray,
    lengths: list[int],
    rng: random.Random,
    settings: BlankInfillSettings,
) -> list[Span]:
    rng.shuffle(lengths)  # the reference shuffles twice, in two functions
    rng.shuffle(lengths)
    if settings.reference_compatible:
        return place_in_documents(tokens, lengths, rng, settings)
    return place_in_runs(predictable, lengths, rng, settings)


def _sentences(
    tokens: np.ndarray,
    predictable: np.ndarray,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> list[Span]:
    """Sentences in random order until the masked share is reached; adjacent ones may both be cut.

    Where the text is a single sentence there is nothing left to see, so none is taken (the
    reference takes it, or gives a sample without loss: defect 4).
    """
    sentences = split_sentences(tokens, settings)
    if not settings.reference_compatible:
        sentences = [span for span in sentences if predictable[span[0] : span[1]].all()]
        if len(sentences) < 2:
            return []
    rng.shuffle(sentences)
    wanted = int(settings.options.sentence_mask_ratio * len(tokens))
    chosen: list[Span] = []
    masked = 0
    for start, end in sentences:
        if masked >= wanted and (chosen or settings.reference_compatible):
            break
        chosen.append((start, end))
        masked += end - start
    if not settings.reference_compatible and len(chosen) == len(sentences):
        chosen.pop()
    return chosen


def split_sentences(tokens: np.ndarray, settings: BlankInfillSettings) -> list[Span]:
    """Runs up to and with a sentence end; eos ends one without belonging to it (GLM_SPEC 1.5).

    In the reference the sentence after an eos begins with the next document's ENC (defect 3).
    """
    special = settings.special
    is_break = settings.sentence_end[tokens] | (tokens == special.eos)
    sentences = []
    start = 1 if tokens[0] == special.enc else 0
    for place in np.flatnonzero(is_break).tolist():
        is_eos = tokens[place] == special.eos
        end = place if is_eos else place + 1
        if start < end and not (is_eos and settings.reference_compatible):
            sentences.append((start, end))
        start = place + 1
        if not settings.reference_compatible and start < len(tokens):
            start += int(tokens[start] == special.enc)
    if start < len(tokens):
        sentences.append((start, len(tokens)))
    return sentences


def _document(
    tokens: np.ndarray,
    predictable: np.ndarray,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> InfillPlan:
    """One long part: a suffix, or a span inside where the text is a single document."""
    options = settings.options
    longest = len(tokens) - 2
    if longest < 1 and not settings.reference_compatible:
        return _token(tokens, predictable, True, rng, settings)
    shortest = min(int(options.document_min_ratio * len(tokens)), longest)
    if not settings.reference_compatible:
        shortest = max(1, shortest)
    generated = rng.randint(shortest, longest)
    has_more_documents = bool((tokens[:-1] == settings.special.eos).any())
    if has_more_documents or rng.random() < options.document_suffix_probability:
        start = len(tokens) - generated
        if predictable[start:].any() or settings.reference_compatible:
            return _suffix(tokens, start, Mode.DOCUMENT)
        return _token(tokens, predictable, True, rng, settings)
    spans = _place(tokens, predictable, [generated], rng, settings)
    return _spans(tokens, spans, Mode.DOCUMENT, rng, settings)


def _masked(
    predictable: np.ndarray, rng: random.Random, settings: BlankInfillSettings
) -> InfillPlan:
    """Single tokens anywhere; they stay in Part A, and there is no Part B (Devlin et al. 2019)."""
    places = np.flatnonzero(predictable).tolist()
    count = max(1, round(settings.options.token_mask_ratio * len(places)))
    chosen = sorted(rng.sample(places, min(count, len(places))))
    spans = tuple((place, place + 1) for place in chosen)
    return InfillPlan(Mode.MASKED, spans, False, len(predictable), rng.getrandbits(64))


def _suffix(tokens: np.ndarray, start: int, mode: Mode) -> InfillPlan:
    return InfillPlan(mode, ((start, len(tokens)),), True, len(tokens) + 1)


def _spans(
    tokens: np.ndarray,
    spans: list[Span],
    mode: Mode,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> InfillPlan:
    if settings.options.shuffle_spans:
        rng.shuffle(spans)
    else:
        spans.sort()
    is_corrupted = mode is Mode.TOKEN and settings.options.corrupt_probability > 0
    seed = rng.getrandbits(64) if is_corrupted else None
    return InfillPlan(mode, tuple(spans), False, len(tokens) + 2 * len(spans), seed)
