"""From what a client asks to what the engine is asked: Part A and its blanks.

It stands apart as the one place that knows how texts and blanks become tokens.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from glm_dist.inference import Blank, EmbedRequest, Request, SamplingSettings, ScoreRequest
from glm_dist.inference.admission import TOO_LONG, room
from glm_dist.model import ModelSettings
from glm_dist.serve.checks import Checks
from glm_dist.serve.errors import ApiError
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.protocol import BlankOptions, CompletionRequest, InfillRequest
from glm_dist.tokenizer import MASKS, Tokenizer

DEFAULT_MAX_TOKENS = 16
"""Of text completions, as OpenAI has it."""
_MASK = re.compile("|".join(map(re.escape, MASKS)))
_ONE_POSITION = ("rotary_1d", "rotary_half")


@dataclass(frozen=True)
class Text:
    """One prompt of a request."""

    tokens: list[int]
    shown: str
    """As it is given back with `echo`."""


@dataclass(frozen=True)
class Completion:
    """What one prompt of a completion asks for."""

    text: Text
    request: Request | None
    """None where nothing is to be generated."""
    scoring: ScoreRequest | None = None
    """Asks for the log-probabilities of the prompt's own tokens."""


@dataclass(frozen=True)
class Infill:
    """A text whose blanks are to be filled."""

    request: Request
    pieces: tuple[str | int, ...]
    """Text, and blanks by their index in the text."""
    options: tuple[BlankOptions, ...]
    order: tuple[int, ...]
    """Index in the text of each of the request's blanks."""


class Prompts:
    """Builds requests for one model."""

    def __init__(
        self, tokenizer: Tokenizer, settings: ModelSettings, limits: RequestLimits
    ) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._special, self.limits = tokenizer.special, limits
        self.checks = Checks(settings, limits)

    def of_completion(self, body: CompletionRequest) -> list[Completion]:
        """A request for each prompt."""
        self.checks.completion(body)
        return [self._completion(body, text) for text in self.texts(body.prompt)]

    def of_infill(self, body: InfillRequest) -> Infill:
        """The text with its masks as blanks."""
        self.checks.sampled(body)
        pieces, options = self._pieces(body)
        if not options:
            raise ApiError(
                400,
                "input: has no [MASK], [sMASK] or [gMASK] to fill",
                param="segments" if body.segments else "input",
            )
        self.checks.infill(body, len(options))
        part_a, blanks, text = [self._special.enc], list[Blank](), ""
        for piece in pieces:
            if isinstance(piece, str):
                part_a += self.encode(text, "input")
                text = piece
                continue
            sampling = self._sampling_of(body, options[piece])
            # What a grammar allows begins with no space.
            is_free = sampling.constraint is None or bool(sampling.choices)
            text, is_behind = self._tokenizer.before_mask(text) if is_free else (text, False)
            part_a += self.encode(text, "input")
            text = ""
            blanks.append(self.blank(sampling, len(part_a), body.seed, behind_space=is_behind))
            part_a.append(self._tokenizer.mask_id(options[piece].type))
        part_a += self.encode(text, "input")
        self.checks.length(len(part_a), "input")
        order = _order(body, len(blanks))
        request = Request(
            new_id(),
            part_a,
            [blanks[index] for index in order],
            body.num_samples,
            is_joint=body.order != "independent",
            beams=body.beams,
        )
        return Infill(request, tuple(pieces), tuple(options), order)

    def of_embedding(self, text: Text) -> EmbedRequest:
        """Part A alone."""
        return EmbedRequest(new_id(), [self._special.enc, *text.tokens])

    def of_score(self, text: str, answer: str) -> ScoreRequest:
        """The answer behind the text, its end not scored."""
        part_a = [self._special.enc, *self.encode(text, "text_1"), self._special.gmask]
        options = [self.encode(answer, "text_2")]
        if not options[0]:
            raise ApiError(400, "text_2: is an empty text", param="text_2")
        return ScoreRequest(new_id(), part_a, len(part_a) - 1, options, scores_end=False)

    def of_options(
        self, template: str, values: dict[str, str], labels: Sequence[str], param: str
    ) -> ScoreRequest:
        """Each label as an option at the mask of a template, in which only the values vary."""
        self.checks.count(param, len(labels), self.limits.max_options)
        part_a, place, is_behind = [self._special.enc], None, False
        slots = "|".join(re.escape(f"{{{name}}}") for name in values)
        # The values themselves are never searched for masks or slots.
        *pieces, rest = re.split(rf"({slots}|\[MASK\])", template)
        for text, slot in zip(pieces[::2], pieces[1::2], strict=True):
            if slot == "[MASK]" and place is None:
                before, is_behind = self._tokenizer.before_mask(text)
                part_a += self.encode(before, "input")
                place = len(part_a)
                part_a.append(self._special.mask)
            else:
                part_a += self.encode(text, "input")
                part_a += self.encode(values.get(slot[1:-1], slot), "input")
        part_a += self.encode(rest, "input")
        if place is None or any(f"{{{name}}}" not in template for name in values):
            wanted = ", ".join(f"{{{name}}}" for name in values)
            raise ApiError(400, f"template: has to hold {wanted} and [MASK]", param="template")
        self.checks.length(len(part_a), "input")
        options = [self.encode(f" {label}" if is_behind else label, param) for label in labels]
        return ScoreRequest(new_id(), part_a, place, options)

    def texts(
        self,
        given: str | Sequence[str] | Sequence[int] | Sequence[list[int]],
        param: str = "prompt",
    ) -> list[Text]:
        """Each text and its ids."""
        several: Sequence[object] = [given] if isinstance(given, str) else given
        if not several:
            raise ApiError(400, f"{param}: is empty; give at least one", param=param)
        if isinstance(several[0], int):
            several = [several]
        self.checks.count(param, len(several), self.limits.max_prompts)
        return [self._text(one, param) for one in several]

    def encode(self, text: str, param: str) -> list[int]:
        """Ids of a text that is not hopelessly long."""
        longest = self._settings.max_position_embeddings
        most = longest * self.limits.bytes_per_token
        if len(text) > most or len(text.encode()) > most:
            raise ApiError(
                400,
                f"{param}: has {len(text):,} characters, and this model has {longest} positions; "
                "shorten it",
                param=param,
                code=TOO_LONG,
                n_ctx=longest,
            )
        return self._tokenizer.encode(text).tolist()

    def blank(
        self,
        sampling: SamplingSettings,
        place: int,
        seed: int | None,
        start: int | None = None,
        *,
        behind_space: bool = False,
    ) -> Blank:
        """A blank, drawn by the client's seed, or by one of its own.

        Where the space before it is left to its answer, so it is to each of its choices.
        """
        drawn = uuid4().int >> 65 if seed is None else seed % (1 << 63)
        changes: dict[str, Any] = {"seed": drawn}
        if behind_space:
            changes["choices"] = tuple(f" {choice}" for choice in sampling.choices)
        return Blank(place, sampling.model_copy(update=changes), start, behind_space)

    def room(self, num_tokens: int, place: int) -> int:
        """The longest answer at a place of a prompt; at least 1."""
        return max(1, room(num_tokens, place, self._settings))

    def _completion(self, body: CompletionRequest, text: Text) -> Completion:
        special, ids = self._special, text.tokens
        part_a, is_behind = [special.enc, *ids, special.gmask], False
        place = len(part_a) - 1
        if body.suffix:
            is_behind = self._leaves_space(ids) and not body.constraint.keys() - {"choices"}
            place -= is_behind
            part_a = [*part_a[:place], special.mask, *self.encode(body.suffix, "suffix")]
        self.checks.length(len(part_a), "prompt")
        wanted = body.max_tokens
        if wanted is None:
            wanted = min(DEFAULT_MAX_TOKENS, self.room(len(part_a), place))
        request = None
        if wanted:
            beams, num_samples = body.beams, body.num_samples
            if beams is None:
                num_samples = max(num_samples, body.best_of or 1)
            num_logprobs = body.logprobs
            if num_samples > body.num_samples and num_logprobs is None:
                num_logprobs = 0
            sampling = body.sampling(wanted, num_logprobs)
            blank = self.blank(sampling, place, body.seed, behind_space=is_behind)
            request = Request(new_id(), part_a, [blank], num_samples, beams=beams)
        scoring = None
        if body.echo and body.logprobs is not None and ids:
            scoring = self._scoring(ids, max(1, body.logprobs))
        return Completion(text, request, scoring)

    def _leaves_space(self, ids: Sequence[int]) -> bool:
        """Whether the last token is a space and nothing else."""
        return bool(ids) and self._tokenizer.before_mask(self._tokenizer.decode(ids[-1:])) == (
            "",
            True,
        )

    def _scoring(self, ids: list[int], num_logprobs: int) -> ScoreRequest:
        """A prompt as an answer, from its first token on."""
        part_a = [self._special.enc, self._special.gmask]
        return ScoreRequest(new_id(), part_a, 1, [ids], scores_end=False, num_logprobs=num_logprobs)

    def _pieces(self, body: InfillRequest) -> tuple[list[str | int], list[BlankOptions]]:
        """Texts and blanks in the order of the text."""
        if (body.input is None) == (body.segments is None):
            raise ApiError(400, "input: give it or segments, and not both", param="input")
        pieces: list[str | int] = []
        options: list[BlankOptions] = []
        given = iter(body.blanks or [])
        for piece in self._parts(body):
            if isinstance(piece, BlankOptions):
                pieces.append(len(options))
                named = next(given, None) if body.segments is None else None
                options.append(named.model_copy(update={"type": piece.type}) if named else piece)
            else:
                pieces.append(piece)
        if next(given, None) is not None:
            raise ApiError(
                400,
                f"blanks: there are more of them than the {len(options)} in the text",
                param="blanks",
            )
        return pieces, options

    def _parts(self, body: InfillRequest) -> Iterable[str | BlankOptions]:
        if body.segments is not None:
            for segment in body.segments:
                if (segment.text is None) == (segment.blank is None):
                    raise ApiError(400, "segments: each is a text or a blank", param="segments")
                yield segment.blank or segment.text or ""
            return
        text, start = body.input or "", 0
        for found in _MASK.finditer(text) if body.parse_masks else ():
            yield text[start : found.start()]
            yield BlankOptions(type=found.group())  # type: ignore[arg-type]
            start = found.end()
        yield text[start:]

    def _sampling_of(self, body: InfillRequest, options: BlankOptions) -> SamplingSettings:
        changes: dict[str, object] = {}
        if options.stop is not None:
            stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop)
            self.checks.strings("stop", stop, self.limits.max_stops)
            changes["stop"] = stop
        if options.choices is not None:
            self.checks.count("choices", len(options.choices), self.limits.max_options, "blanks")
            changes["choices"] = tuple(options.choices)
        if options.json_schema is not None:
            changes["json_schema"] = json.dumps(options.json_schema)
        given = {"regex": options.regex, "grammar": options.grammar}
        changes |= {name: value for name, value in given.items() if value is not None}
        longest = options.max_tokens or body.max_tokens
        return body.sampling(longest, body.logprobs, **changes)

    def _text(self, given: object, param: str) -> Text:
        if isinstance(given, str):
            if not given:
                raise ApiError(400, f"{param}: is an empty text", param=param)
            return Text(self.encode(given, param), given)
        assert isinstance(given, list)
        if not given:
            raise ApiError(400, f"{param}: holds an empty list of ids", param=param)
        self.checks.length(len(given), param)
        if max(given) >= self._settings.vocab_size:
            raise ApiError(
                400,
                f"{param}: holds the id {max(given)}; this model knows 0 to "
                f"{self._settings.vocab_size - 1}",
                param=param,
            )
        return Text(given, self._tokenizer.decode(np.array(given), keep_special=True))


def new_id() -> str:
    """A name for a request that no other has."""
    return uuid4().hex


def _order(body: InfillRequest, num_blanks: int) -> tuple[int, ...]:
    """In which order blanks are filled, by their index in the text."""
    if isinstance(body.order, str):
        return tuple(range(num_blanks))
    if sorted(body.order) != list(range(num_blanks)):
        raise ApiError(
            400, f"order: has to name each of the {num_blanks} blanks once", param="order"
        )
    return tuple(body.order)
