"""SentencePiece tokenizers with GLM's special tokens, which user text can never produce.

The only file that imports sentencepiece. Text survives a round trip byte for byte: no
normalisation, white space kept, unknown characters as bytes.
"""

import hashlib
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import sentencepiece

from glm_dist.config import Settings
from glm_dist.errors import TokenizerError

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
MAX_TRAINED_CHARACTERS = 40_000_000
"""SentencePiece's suffix array takes about 20 bytes for each."""
_WORD = re.compile(r" *[^ \t\n]+| +")
SENTENCE_END_MARKS = ".?!;:。？！；…\n"
"""GLM_SPEC 1.5: a token that holds one of them ends a sentence."""


@dataclass(frozen=True)
class SpecialTokenIds:
    """Ids of the tokens with a role; -1 where a vocabulary lacks one."""

    pad: int
    unk: int
    eos: int
    enc: int
    mask: int
    smask: int
    gmask: int
    sop: int
    eop: int
    dblock: int
    sep: int
    system: int = -1
    user: int = -1
    assistant: int = -1
    observation: int = -1


PIECES = {
    "pad": "<pad>",
    "unk": "<unk>",
    "eos": "<eos>",
    "enc": "[ENC]",
    "mask": "[MASK]",
    "smask": "[sMASK]",
    "gmask": "[gMASK]",
    "sop": "<sop>",
    "eop": "<eop>",
    "dblock": "[dBLOCK]",
    "sep": "[SEP]",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "observation": "<|observation|>",
}
"""Role → piece, in the order of their ids."""


MASKS = {PIECES[role]: role for role in ("mask", "smask", "gmask")}
"""A mask as texts name it → its role."""
_MASK = re.compile("(" + "|".join(map(re.escape, MASKS)) + ")")


@dataclass(frozen=True)
class Masked:
    """A text with masks as token ids."""

    tokens: np.ndarray
    """int32."""
    places: np.ndarray
    """Indices of the masks, ascending."""
    behind_space: tuple[bool, ...]
    """Whether what fills a mask begins with a space that the text has before it."""


class TokenizerSettings(Settings):
    """How a tokenizer is trained."""

    model_type: Literal["unigram", "bpe"] = "unigram"
    """SentencePiece's algorithm; unigram encodes about four times as fast as its bpe."""
    vocab_size: int = 32000
    """Pieces, special tokens and the 256 bytes included; less where the text gives less."""
    sample_bytes: int = 500_000_000
    """UTF-8 bytes of text trained on, drawn evenly over the sources; bounds the memory."""
    character_coverage: float = 0.9995
    """Share of characters with a piece of their own; the rest is spelt in bytes."""
    seed: int = 1234
    """Seed of the sample."""


class Tokenizer:
    """A SentencePiece model with GLM's roles; `HuggingFaceTokenizer` is the other kind."""

    FILE: ClassVar[str] = MODEL_FILE

    def __init__(self, serialized: bytes, name: str = "tokenizer") -> None:
        self.serialized = serialized
        self._name = name
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        except (RuntimeError, TypeError) as error:
            raise TokenizerError(f"{name}: not a SentencePiece model ({error})") from None
        missing = [piece for piece in PIECES.values() if not self._is_control(piece)]
        if missing:
            raise TokenizerError(
                f"{name}: lacks the special tokens {' '.join(missing)} as control symbols; use a "
                "tokenizer that prepare_data trained"
            )

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.model` or `tokenizer.json`, or the one in a folder.

        Raises:
            TokenizerError: when it is missing or not a GLM tokenizer.
        """
        path = find_tokenizer(Path(path)) or Path(path) / MODEL_FILE
        try:
            serialized = path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from None
        if path.suffix == ".json":
            from glm_dist.tokenizer.huggingface import HuggingFaceTokenizer

            return HuggingFaceTokenizer(serialized, str(path))
        return Tokenizer(serialized, str(path))

    def save(self, folder: str | Path) -> Path:
        """Write its one file into a folder, atomically; the library it comes from opens it."""
        path = Path(folder) / self.FILE
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_bytes(self.serialized)
        os.replace(temporary, path)
        return path

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, str]]:
        return type(self), (self.serialized, self._name)

    @cached_property
    def sha256(self) -> str:
        """Hash of the model file."""
        return hashlib.sha256(self.serialized).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special tokens included."""
        return self._processor.vocab_size()

    @cached_property
    def special(self) -> SpecialTokenIds:
        """Ids of the roles."""
        return SpecialTokenIds(
            **{field.name: self._role_id(field.name) for field in fields(SpecialTokenIds)}
        )

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Ids of all roles, int32."""
        ids = [getattr(self.special, field.name) for field in fields(SpecialTokenIds)]
        return np.array(ids, dtype=np.int32)

    @cached_property
    def sentence_end(self) -> np.ndarray:
        """Whether each piece holds a sentence end mark, [V] bool."""
        pieces = map(self.piece, range(self.vocab_size))
        return np.array([any(mark in piece for mark in SENTENCE_END_MARKS) for piece in pieces])

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text each piece stands for, [V] int64; 0 for special tokens."""
        sizes = np.array([self._num_bytes(token) for token in range(self.vocab_size)])
        sizes[self.special_ids] = 0
        return sizes

    def piece(self, token: int) -> str:
        """The text a token stands for, or its name where it has a role."""
        return self._processor.id_to_piece(int(token)).replace("\u2581", " ")

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of the text a token stands for; one byte where it spells a part of a character."""
        if self._processor.is_byte(token):
            return bytes([int(self._processor.id_to_piece(token)[1:-1], 16)])
        return self.piece(token).encode()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32; no role's id ever comes out, whatever the text says."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32."""
        if not texts:
            return []
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.int32) for ids in encoded]

    def encode_masked(self, text: str) -> Masked:
        """A text in which `[MASK]`, `[sMASK]` and `[gMASK]` mean the mask tokens."""
        *pieces, rest = _MASK.split(text)  # texts and masks by turns
        parts, places, behind = list[np.ndarray](), list[int](), list[bool]()
        for before, mask in zip(pieces[::2], pieces[1::2], strict=True):
            before, is_behind = self.before_mask(before)
            parts += [self.encode(before), np.array([self.mask_id(mask)], np.int32)]
            places.append(sum(map(len, parts)) - 1)
            behind.append(is_behind)
        tokens = np.concatenate([*parts, self.encode(rest)])
        return Masked(tokens, np.array(places, np.int64), tuple(behind))

    def before_mask(self, text: str) -> tuple[str, bool]:
        """The text before a mask without a space at its end, and whether there was one.

        A piece begins with its space, and pretraining cuts whole pieces: a space before a mask
        belongs to what fills it.
        """
        is_behind = text.endswith(" ") and self._spaces_begin_words
        return (text[:-1] if is_behind else text), is_behind

    def encode_answer(self, text: str, behind_space: bool) -> np.ndarray:
        """Token ids, int32, of what fills a mask."""
        return self.encode(f" {text}" if behind_space else text)

    def mask_id(self, mask: str) -> int:
        """Id of a mask by its name in a text."""
        return getattr(self.special, MASKS[mask])

    @cached_property
    def _spaces_begin_words(self) -> bool:
        """Whether a word behind a space is another piece than one at a text's beginning."""
        behind, first = (self.token_bytes(int(self.encode(word)[0])) for word in (" a", "a"))
        return behind[:1] == b" " != first[:1]

    def decode(self, tokens: Sequence[int] | np.ndarray, *, keep_special: bool = False) -> str:
        """The text; roles are left out, or shown by name."""
        ids = [int(token) for token in tokens]
        if not keep_special:
            return self._text(ids)
        special, parts, run = set(self.special_ids.tolist()), list[str](), list[int]()
        for token in ids:
            if token in special:
                parts += [self._text(run), self.piece(token)]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._text(run)])

    def _text(self, ids: list[int]) -> str:
        """Without roles."""
        return self._processor.decode(ids)

    def _role_id(self, role: str) -> int:
        return self._processor.piece_to_id(PIECES[role])

    def _num_bytes(self, token: int) -> int:
        return 1 if self._processor.is_byte(token) else len(self.piece(token).encode())

    def to_huggingface(self) -> dict[str, Any]:
        """`tokenizer.json` and its settings, which transformers opens; ids are the same.

        There a role's name in a text means the role, as is usual for such files. A model that was
        not trained as unigram has no such form, and gives nothing.
        """
        if not self._has_scores():
            return {}
        ids = range(self.vocab_size)
        pieces = [self._processor.id_to_piece(token) for token in ids]
        added = [
            {
                "id": token,
                "content": pieces[token],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": pieces[token] != "\n",
            }
            for token in sorted({*self.special_ids.tolist(), pieces.index("\n")})
        ]
        vocabulary = [[pieces[token], self._processor.get_score(token)] for token in ids]
        space, mark = {"String": " "}, {"String": "\u2581"}
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": space, "content": "\u2581"},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": mark, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "Unigram",
                "unk_id": self.special.unk,
                "vocab": vocabulary,
                "byte_fallback": True,
            },
        }
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PIECES["pad"],
            "unk_token": PIECES["unk"],
            "eos_token": PIECES["eos"],
            "mask_token": PIECES["mask"],
            "clean_up_tokenization_spaces": False,
        }
        return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}

    def with_pieces_of(self, other: "Tokenizer", count: int) -> "Tokenizer":
        """This one, and behind its ids the other's likeliest pieces that it lacks, so many at most.

        Raises:
            TokenizerError: when pieces of either carry no likelihoods.
        """
        for one in (self, other):
            if not one._has_scores():
                raise TokenizerError(
                    f"{one._name}: its pieces have no likelihoods to be compared by; only unigram "
                    "tokenizers are extended"
                )
        theirs = other._processor
        known = {self._processor.id_to_piece(token) for token in range(self.vocab_size)}
        added = [
            (theirs.get_score(token), theirs.id_to_piece(token))
            for token in range(other.vocab_size)
            if not (theirs.is_control(token) or theirs.is_unknown(token) or theirs.is_byte(token))
            and theirs.id_to_piece(token) not in known
        ]
        # Fields of a message that follow another one are appended to its lists.
        more = b"".join(_as_message(*one) for one in sorted(added, reverse=True)[:count])
        return Tokenizer(self.serialized + more, self._name)

    def _has_scores(self) -> bool:
        """Whether pieces carry log-probabilities; merges of a BPE model count down from zero."""
        plain = [t for t in range(self.vocab_size) if not self._processor.is_byte(t)]
        scores = [self._processor.get_score(t) for t in plain if not self._processor.is_control(t)]
        return any(score != round(score) for score in scores)

    def _is_control(self, piece: str) -> bool:
        token = self._processor.piece_to_id(piece)
        known = self._processor.id_to_piece(token) == piece
        return known and (self._processor.is_control(token) or self._processor.is_unknown(token))


def _as_message(score: float, piece: str) -> bytes:
    """One of the `pieces` (field 1) of SentencePiece's ModelProto: piece (1) and score (2)."""
    text = piece.encode()
    inner = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score)
    return b"\x0a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    """A length as protocol buffers write it."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def find_tokenizer(path: Path) -> Path | None:
    """The tokenizer's file in a folder, ours before others'; a file is its own, if it is there."""
    if not path.is_dir():
        return path if path.exists() else None
    files = (path / name for name in (MODEL_FILE, JSON_FILE))
    return next((file for file in files if file.exists()), None)


def _counted_words(texts: Iterable[str]) -> Iterator[str]:
    """Each distinct word with the spaces before it, and how often it came, a line each.

    Pieces never reach over a space, so this is all SentencePiece learns from. Counts are scaled
    down together where they stand for more than MAX_TRAINED_CHARACTERS, since it lays every
    occurrence out in memory. A tab separates word and count in its input; one in a text is left to
    the byte pieces.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    characters = sum(len(word) * count for word, count in counts.items())
    scale = min(1.0, MAX_TRAINED_CHARACTERS / max(1, characters))
    for word, count in sorted(counts.items()):
        whole, rest = divmod(count * scale, 1)
        # Rounded up for as many words as the rest says, always the same ones.
        times = int(whole) + (zlib.crc32(word.encode()) / 2**32 < rest)
        if times:
            yield f"{word}\t{times}"


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """Train on the texts; the same texts and settings give the same model.

    Memory is bounded: beside the distinct words about a gigabyte, however much text there is.

    Raises:
        TokenizerError: when the texts are too few for any vocabulary.
    """
    model = io.BytesIO()
    controls = [piece for role, piece in PIECES.items() if role not in ("pad", "unk", "eos")]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_counted_words(texts),
            input_format="tsv",
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size,
            hard_vocab_limit=False,
            character_coverage=settings.character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            byte_fallback=True,
            user_defined_symbols=["\n"],
            control_symbols=controls,
            pad_id=0,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            pad_piece=PIECES["pad"],
            unk_piece=PIECES["unk"],
            eos_piece=PIECES["eos"],
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"tokenizer.vocab_size {settings.vocab_size}: SentencePiece cannot train it on this "
            f"text ({' '.join(str(error).split())}); give more text or a smaller vocabulary"
        ) from None
    return Tokenizer(model.getvalue())


def extend_tokenizer(
    tokenizer: Tokenizer, texts: Iterable[str], settings: TokenizerSettings
) -> Tokenizer:
    """A tokenizer of ours that keeps its ids, and gets pieces of the texts behind them.

    What it was trained on is still encoded in its pieces, but where new ones are likelier; a model
    of the old one goes on with more rows of its table.

    Raises:
        TokenizerError: when there is no room in `vocab_size`, or it is no unigram tokenizer.
    """
    room = settings.vocab_size - tokenizer.vocab_size
    if room <= 0:
        raise TokenizerError(
            f"tokenizer.vocab_size {settings.vocab_size}: the tokenizer that is extended has "
            f"{tokenizer.vocab_size} pieces already; raise it"
        )
    return tokenizer.with_pieces_of(train_tokenizer(texts, settings), room)
