"""Tokenizers of published models, read from `tokenizer.json`, with GLM's roles.

The only file that imports tokenizers. A role that the file does not name gets an id past all of
the file's, so that a model can learn it: its rows begin anew.
"""

import json
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from glm_dist.errors import TokenizerError
from glm_dist.tokenizer.sentence_piece import JSON_FILE, PIECES, SpecialTokenIds, Tokenizer

NAMES = {
    **{role: (piece,) for role, piece in PIECES.items()},
    "pad": ("<pad>", "<|endoftext|>", "[PAD]"),
    "eos": ("<eos>", "<|endoftext|>", "</s>"),
    "enc": ("[ENC]", "[CLS]"),
    "unk": ("<unk>", "[UNK]"),
}
"""Role → what files call it, the first that is there."""


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` with GLM's roles; ids are those of the file."""

    FILE: ClassVar[str] = JSON_FILE

    def __init__(self, serialized: bytes, name: str = "tokenizer") -> None:
        try:
            import tokenizers
        except ImportError:
            raise TokenizerError(
                f"{name}: reading it takes the package tokenizers, which is not installed; "
                'pip install "glm-dist[huggingface]"'
            ) from None
        self.serialized = serialized
        self._name = name
        try:
            document = json.loads(serialized)
            added = {token["content"]: int(token["id"]) for token in document["added_tokens"]}
            # Without them no text, whatever it says, becomes a role.
            document["added_tokens"] = [t for t in document["added_tokens"] if not t["special"]]
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
        except Exception as error:  # tokenizers raises no narrower one
            raise TokenizerError(f"{name}: is no tokenizer of Hugging Face ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._added = {token: content for content, token in added.items()}
        self._roles = self._find_roles(added)
        self._is_byte_level = "ByteLevel" in json.dumps(document.get("decoder"))
        self._check_roles()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, roles of ours included."""
        return 1 + max(self._num_known - 1, *self._roles.values())

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Ids of all roles and of all other tokens that no text gives, int32."""
        ids = {*self._roles.values(), *self._added} - set(self._plain_added)
        return np.array(sorted(ids), dtype=np.int32)

    def piece(self, token: int) -> str:
        """The text a token stands for, or its name where it has a role."""
        token = int(token)
        if token in self._role_names:
            return self._role_names[token]
        if token in self._added:
            return self._added[token]
        return self.token_bytes(token).decode(errors="replace")

    def encode_batch(self, texts: list[str] | Any) -> list[np.ndarray]:
        """Token ids of each text, int32."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def to_huggingface(self) -> dict[str, Any]:
        """The file itself, and the settings that `AutoTokenizer` wants."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": self.piece(self.special.pad),
            "eos_token": self.piece(self.special.eos),
            "clean_up_tokenization_spaces": False,
        }
        return {JSON_FILE: self.serialized, "tokenizer_config.json": settings}

    @cached_property
    def _num_known(self) -> int:
        return 1 + max([*self._tokenizer.get_vocab().values(), *self._added])

    @cached_property
    def _plain_added(self) -> set[int]:
        """Added tokens that are text, not roles."""
        return {token for token in self._added if self._tokenizer.id_to_token(token) is not None}

    @cached_property
    def _role_names(self) -> dict[int, str]:
        return {token: self._added.get(token, PIECES[role]) for role, token in self._roles.items()}

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """GPT-2's alphabet: the character by which a byte is written in the vocabulary."""
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        characters = [*shown, *range(256, 256 + len(hidden))]
        return {chr(c): byte for c, byte in zip(characters, [*shown, *hidden], strict=True)}

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8; nothing where no token has the id."""
        content = self._tokenizer.id_to_token(token)
        if content is None:
            return b""
        if self._is_byte_level:
            return bytes(self._byte_of[character] for character in content)
        if len(content) == 6 and content.startswith("<0x"):
            return bytes([int(content[3:5], 16)])
        return content.replace("\u2581", " ").encode()

    def _find_roles(self, added: dict[str, int]) -> dict[str, int]:
        vocabulary = self._tokenizer.get_vocab()
        free = 1 + max([*vocabulary.values(), *added.values()])
        roles = {}
        for field in fields(SpecialTokenIds):
            names = [name for name in NAMES[field.name] if name in added]
            roles[field.name] = added[names[0]] if names else free
            free += not names
        return roles

    def _check_roles(self) -> None:
        """A role's name in a text must stay text.

        Raises:
            TokenizerError: naming the role that does not.
        """
        taken = set(self._roles.values())
        for role, token in self._roles.items():
            name = self._added.get(token, PIECES[role])
            if taken & set(self._tokenizer.encode(name, add_special_tokens=False).ids):
                raise TokenizerError(
                    f"{self._name}: text that says {name} would become the token of that role; its "
                    "roles must be special tokens added to the vocabulary, not pieces of it"
                )

    def _text(self, ids: list[int]) -> str:
        special = set(self.special_ids.tolist())
        return self._tokenizer.decode([token for token in ids if token not in special])

    def _role_id(self, role: str) -> int:
        return self._roles[role]

    def _num_bytes(self, token: int) -> int:
        return len(self.token_bytes(token))
