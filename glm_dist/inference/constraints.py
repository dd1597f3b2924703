"""Which tokens may come next so that an answer stays what was asked for: choices, or a grammar.

The only file that imports llguidance. It stands apart from the sampler, which gets a mask of the
whole batch. Grammars are compiled once and kept while there is room; all work on them is counted
in the library's fuel, never in time, so a pattern that blows up is refused alike on any machine.
"""

import json
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from glm_dist.errors import RequestError
from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.requests import SamplingSettings
from glm_dist.tokenizer import Tokenizer

MAX_REMEMBERED = 64
"""Compiled constraints that are kept for requests to come."""
MAX_CHARACTERS = {"regex": 4096, "json_schema": 65_536, "grammar": 65_536, "choices": 65_536}
"""Longest text of each kind; a regular expression is a line, a schema may be a page."""
MAX_DEPTH = 32
"""Arrays and objects of a schema within each other."""
FUEL = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
"""Bounds of llguidance; at its speeds some 50 ms to compile and 50 ms a token."""
NUM_PROBED = 4
"""Tokens, the longest ones allowed, that a grammar is tried with: what blows up does so early."""
JSON_FORM = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}
"""On one line with a space after a separator or none: a small model would fill pages with white
space where any is allowed. What a schema asks for and cannot be held is refused."""
MAX_REASON = 300
"""Characters of what the library says that an answer repeats."""


class Matcher(ABC):
    """How far one answer has come in its constraint."""

    @abstractmethod
    def allow(self, words: np.ndarray) -> None:
        """Set the bits of the tokens that may come next; an end's exactly where it may end.

        Args:
            words: int32 [V / 32], overwritten.
        """

    @abstractmethod
    def take(self, token: int) -> None:
        """Go on with a token that was allowed."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether nothing but the end can follow."""

    @abstractmethod
    def fork(self) -> "Matcher":
        """One that goes its own way from here."""

    @property
    def error(self) -> str:
        """Why it allows nothing more, where the constraint is too much work; else nothing."""
        return ""


Matchers: TypeAlias = Mapping[int, Matcher]
"""Of those blanks of a request that are constrained, before their first token."""


class ChoiceMatcher(Matcher):
    """Answers that are one of some token sequences."""

    def __init__(self, choices: Sequence[Sequence[int]], ends: Sequence[int]) -> None:
        """Args: choices: what is left of each of those that are possible."""
        self._choices, self._ends = choices, ends

    def allow(self, words: np.ndarray) -> None:
        """The next token of each choice."""
        following = {choice[0] for choice in self._choices if choice}
        if not all(self._choices):
            following.update(self._ends)
        words.fill(0)
        _set_bits(words, following)

    def take(self, token: int) -> None:
        """Only choices that go on with the token are left."""
        self._choices = [choice[1:] for choice in self._choices if choice and choice[0] == token]

    @property
    def is_over(self) -> bool:
        """Whether a choice is complete and begins no other."""
        return not any(self._choices)

    def fork(self) -> "ChoiceMatcher":
        """A copy."""
        return ChoiceMatcher(self._choices, self._ends)


class GrammarMatcher(Matcher):
    """Answers of a grammar."""

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        """Args: matcher: of llguidance, for whom the first end ends an answer."""
        self._matcher, self._ends = matcher, ends

    def allow(self, words: np.ndarray) -> None:
        """All tokens after which the grammar can still be fulfilled."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self.error:
            words.fill(0)
        elif _has_bit(words, self._ends[0]):
            _set_bits(words, self._ends)

    def take(self, token: int) -> None:
        """The token's bytes are a part of the text from now on."""
        self._matcher.consume_token(token)

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and no byte can follow."""
        return self._matcher.is_stopped() and not self.error

    def fork(self) -> "GrammarMatcher":
        """A copy of the parser's state."""
        return GrammarMatcher(self._matcher.deep_copy(), self._ends)

    @property
    def error(self) -> str:
        """What the library says of a parser that gave up."""
        return self._matcher.get_error() if self._matcher.is_error() else ""


class Constraints:
    """Compiles what requests ask for; several threads may ask it."""

    def __init__(
        self, tokenizer: Tokenizer, texts: TokenTexts, vocab_size: int, ends: Sequence[int]
    ) -> None:
        """Args: vocab_size: width of the logits; ends: ids that end an answer."""
        self._tokenizer, self._texts = tokenizer, texts
        self._vocab_size, self._ends = vocab_size, tuple(ends)
        self._remembered: OrderedDict[tuple[str, Any], Matcher] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, sampling: SamplingSettings) -> Matcher | None:
        """The state before the first token of an answer, to be forked; None where all is allowed.

        Raises:
            RequestError: when the constraint is none, or too much work.
        """
        wanted = sampling.constraint
        if wanted is None:
            return None
        with self._lock:
            known = self._remembered.get(wanted)
            if known is not None and not known.error:
                self._remembered.move_to_end(wanted)
                return known
        matcher = self._compile(*wanted)
        with self._lock:
            self._remembered[wanted] = matcher
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return matcher

    def allowed(self, matchers: Sequence[Matcher | None], num_rows: int) -> Tensor | None:
        """What may come next in each row, bool [num_rows, V]; None where nothing is constrained."""
        if not any(matchers):
            return None
        words = np.full((num_rows, -(-self._vocab_size // 32)), -1, dtype=np.int32)
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                matcher.allow(words[row])
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        return torch.from_numpy(bits[:, : self._vocab_size].view(np.bool_))

    def _compile(self, kind: str, source: Any) -> Matcher:
        _check_size(kind, source)
        if kind == "choices":
            choices = [self._tokenizer.encode(choice).tolist() for choice in source]
            return ChoiceMatcher(choices, self._ends)
        library = self._library(kind)
        matcher = GrammarMatcher(
            library.LLMatcher(
                self._vocabulary,
                _grammar(library, kind, source),
                log_level=0,
                limits=library.LLParserLimits(**FUEL),
            ),
            self._ends,
        )
        self._probe(kind, matcher)
        return matcher

    def _probe(self, kind: str, matcher: GrammarMatcher) -> None:
        """Refuse a grammar that is none, allows nothing, or gives up within a few tokens."""
        probe = matcher.fork()
        for _ in range(NUM_PROBED):
            allowed = self.allowed([probe], 1)
            assert allowed is not None
            if not allowed.any():
                raise _refusal(kind, probe.error or "no text fulfils it")
            allowed[0, list(self._ends)] = False
            if not allowed.any():
                return
            probe.take(int((allowed[0] * self._sizes).argmax()))
            if probe.error:
                raise _refusal(kind, probe.error)

    def _library(self, kind: str) -> Any:
        try:
            import llguidance
        except ImportError:
            raise RequestError(
                f"{kind} takes the package llguidance, which is not installed here; "
                'pip install "glm-dist[constraints]", or give choices',
                param=kind,
            ) from None
        return llguidance

    @cached_property
    def _sizes(self) -> Tensor:
        """Bytes of each id, [V]."""
        return torch.tensor([len(self._texts.of(token)) for token in range(self._vocab_size)])

    @cached_property
    def _vocabulary(self) -> Any:
        import llguidance

        # Its own types ask for a class of the library; it looks for the names alone.
        vocabulary: Any = _Vocabulary(self._tokenizer, self._texts, self._vocab_size, self._ends[0])
        return llguidance.LLTokenizer(vocabulary)


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of each id, and how texts are encoded."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, texts: TokenTexts, vocab_size: int, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.special_token_ids = [end]
        # Ids without a text, roles among them, are no part of any grammar.
        self.tokens = [texts.of(token) for token in range(vocab_size)]
        self.tokens[end] = b"<end>"

    def __call__(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text).tolist()


def _grammar(library: Any, kind: str, source: str) -> str:
    """A grammar in llguidance's own form."""
    if kind == "json_schema":
        return library.LLMatcher.grammar_from_json_schema(_schema(source), overrides=JSON_FORM)
    if kind == "regex":
        return library.LLMatcher.grammar_from_regex(source)
    try:
        lark = library.gbnf_to_lark.any_to_lark(source)
    # The converter has no exception of its own.
    except Exception as error:
        raise _refusal("grammar", str(error)) from None
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _schema(source: str) -> dict[str, Any]:
    """A JSON schema, if it is one and not too deep."""
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise _refusal("json_schema", f"it is no JSON: {error}") from None
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise _refusal("json_schema", "it is no object")
    depth = _depth(schema)
    if depth > MAX_DEPTH:
        raise _refusal("json_schema", f"it is {depth} levels deep, and {MAX_DEPTH} are the most")
    return schema


def _depth(value: Any) -> int:
    """Arrays and objects within each other, at the deepest place."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [
            part for each in level for part in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _check_size(kind: str, source: Any) -> None:
    size = sum(map(len, source)) if kind == "choices" else len(source)
    if size > MAX_CHARACTERS[kind]:
        raise _refusal(kind, f"it has {size} characters, and {MAX_CHARACTERS[kind]} are the most")


def _refusal(kind: str, reason: str) -> RequestError:
    # llguidance appends a dump of its parser.
    reason = " ".join(reason.partition("<state>")[0].split())[:MAX_REASON]
    return RequestError(f"{kind}: {reason}; correct or simplify it", param=kind)


def _set_bits(words: np.ndarray, tokens: Iterable[int]) -> None:
    bits = words.view(np.uint32)
    for token in tokens:
        bits[token // 32] |= np.uint32(1 << token % 32)


def _has_bit(words: np.ndarray, token: int) -> bool:
    return bool(int(words[token // 32]) >> token % 32 & 1)
