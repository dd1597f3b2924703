"""The objective's settings, and the same bound to a vocabulary."""

from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import model_validator

from glm_dist.config import Settings
from glm_dist.tokenizer import SpecialTokenIds


class Mode(IntEnum):
    """How a sample was cut; losses are reported by mode."""

    TOKEN = 0
    SENTENCE = 1
    DOCUMENT = 2
    CAUSAL = 3
    SUPERVISED = 4
    MASKED = 5


class ObjectiveSettings(Settings):
    """Autoregressive blank infilling: shares of the modes and how each cuts its spans.

    The defaults are GLM-10B's first stage (THUDM/GLM `config/ds_block_10B.sh`).
    """

    token_probability: float = 0.5
    """Share of samples with short spans, `[MASK]`."""
    sentence_probability: float = 0.3
    """Share of samples with whole sentences cut, `[sMASK]`."""
    document_probability: float = 0.2
    """Share of samples with one long span or suffix cut, `[gMASK]`."""
    causal_probability: float = 0.0
    """Share of samples generated whole, from `[ENC] [gMASK]` alone."""
    masked_probability: float = 0.0
    """Share of samples with single tokens masked and predicted in place, as BERT is trained."""
    token_mask_ratio: float = 0.15
    """Token and masked mode: share of tokens cut or masked."""
    sentence_mask_ratio: float = 0.15
    """Sentence mode: share of tokens cut."""
    mean_span_length: int = 3
    """Token mode: lambda of the Poisson law of span lengths, in tokens."""
    max_span_length: int = 39
    """Token mode: longest span, in tokens."""
    document_min_ratio: float = 0.25
    """Document mode: shortest generated part as a share of the sample."""
    document_suffix_probability: float = 0.5
    """Document mode: share of single-document samples cut as a suffix rather than inside."""
    single_span_probability: float = 0.0
    """Share of samples with a single short span, before the mode is drawn."""
    short_sequence_probability: float = 0.02
    """Share of pieces cut short, to between 32 tokens and the row."""
    corrupt_probability: float = 0.1
    """Token mode: share of Part B's input tokens replaced by `[dBLOCK]`; targets stay."""
    use_task_masks: bool = True
    """`[sMASK]` and `[gMASK]` for their modes; off: `[MASK]` for all."""
    shuffle_spans: bool = True
    """Spans stand in Part B in a random order; off: left to right."""
    use_block_positions: bool = True
    """The second position counts inside each span; off: it is 1 there."""

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveSettings":
        for name, value in self.model_dump().items():
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}; a share lies between 0 and 1")
        total = sum(self.mode_probabilities.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the mode probabilities add up to {total:g}; they must add up to 1: give "
                "token_, sentence_, document_, causal_ and masked_probability together"
            )
        if self.mean_span_length < 1 or self.max_span_length < 1:
            raise ValueError("mean_span_length and max_span_length must be at least 1 token")
        return self

    @property
    def mode_probabilities(self) -> dict[Mode, float]:
        """Shares of the modes that are drawn, in the order they are drawn in."""
        return {
            Mode.TOKEN: self.token_probability,
            Mode.SENTENCE: self.sentence_probability,
            Mode.DOCUMENT: self.document_probability,
            Mode.CAUSAL: self.causal_probability,
            Mode.MASKED: self.masked_probability,
        }


@dataclass(frozen=True)
class BlankInfillSettings:
    """The objective bound to a vocabulary; what `blank_infill` takes."""

    options: ObjectiveSettings
    special: SpecialTokenIds
    sentence_end: np.ndarray
    """bool [V]: the token holds a sentence end mark."""
    reference_compatible: bool = False
    """Repeat the reference's defects 3 to 5 (GLM_SPEC 1.9), to be equal to it token for token."""

    def mask_id(self, mode: Mode) -> int:
        """The token that stands in Part A for what a mode cuts."""
        if not self.options.use_task_masks or mode in (Mode.TOKEN, Mode.MASKED):
            return self.special.mask
        return self.special.smask if mode is Mode.SENTENCE else self.special.gmask

    @cached_property
    def word_ids(self) -> np.ndarray:
        """Ids of text, which a masked sample draws its random tokens from; special ones apart."""
        return np.setdiff1d(np.arange(len(self.sentence_end)), list(asdict(self.special).values()))


def reference_settings(options: dict[str, Any]) -> BlankInfillSettings:
    """The reference's behaviour for its own option names, with the golden figures' vocabulary."""
    token, sentence = options.get("bert_prob", 0.5), options.get("gap_sentence_prob", 0.0)
    settings = ObjectiveSettings(
        token_probability=token,
        sentence_probability=sentence,
        document_probability=max(0.0, 1 - token - sentence),
        document_suffix_probability=options.get("gpt_infill_prob", 0.5),
        document_min_ratio=options.get("gpt_min_ratio", 0.5),
        single_span_probability=options.get("single_span_prob", 0.0),
        short_sequence_probability=options.get("short_seq_prob", 0.0),
        corrupt_probability=0.0,
        use_task_masks=options.get("task_mask", False),
        shuffle_spans=options.get("shuffle_blocks", True),
    )
    special = SpecialTokenIds(
        pad=0, unk=-1, eos=0, enc=1, mask=2, sop=3, eop=4, gmask=5, smask=6, dblock=7, sep=-1
    )
    sentence_end = np.zeros(1 << 16, dtype=bool)
    sentence_end[10] = True
    return BlankInfillSettings(settings, special, sentence_end, reference_compatible=True)
