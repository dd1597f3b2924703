"""From text to token ids: SentencePiece tokenizers of ours, and those of published models."""

from glm_dist.tokenizer.sentence_piece import (
    JSON_FILE,
    MASKS,
    MODEL_FILE,
    PIECES,
    Masked,
    SpecialTokenIds,
    Tokenizer,
    TokenizerSettings,
    extend_tokenizer,
    find_tokenizer,
    train_tokenizer,
)

__all__ = [
    "JSON_FILE",
    "MASKS",
    "MODEL_FILE",
    "PIECES",
    "Masked",
    "SpecialTokenIds",
    "Tokenizer",
    "TokenizerSettings",
    "extend_tokenizer",
    "find_tokenizer",
    "train_tokenizer",
]
