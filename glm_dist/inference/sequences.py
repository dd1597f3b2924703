"""One answer being generated or scored, and the request that it belongs to.

They stand apart from the scheduler, which asks how many tokens are still to be computed, and from
the engine, which says what was chosen.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from glm_dist.inference.constraints import Matcher, Matchers
from glm_dist.inference.detokenize import TextStream, TokenTexts
from glm_dist.inference.paged import QUERY_TILE
from glm_dist.inference.requests import (
    PROMPT_REQUESTS,
    Alternative,
    AnyRequest,
    Blank,
    FinishReason,
    LabelRequest,
    OptionScore,
    Request,
    SamplingSettings,
    ScoreRequest,
)
from glm_dist.inference.sampling import Rule
from glm_dist.tokenizer import SpecialTokenIds


@dataclass(eq=False)
class Group:
    """A request in work."""

    request: AnyRequest
    arrival: int
    tokens: np.ndarray
    """Part A, int64."""
    keys: list[bytes]
    """What the content of each of its blocks is known by."""
    adapter: int = 0
    """Which of the engine's adapters it asks for, from 1; 0 for the model alone."""
    matchers: Matchers = field(default_factory=dict)
    num_open: int = 0
    """Answers that have not ended."""
    cached_tokens: int | None = None
    """Of the prompt; null until the first answer begins."""
    generated_tokens: int = 0
    scores: dict[int, OptionScore] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Smaller goes first."""
        return self.request.priority, self.arrival

    @property
    def wants_hidden(self) -> bool:
        """Whether the prompt's hidden states are what is asked for."""
        return isinstance(self.request, PROMPT_REQUESTS)


@dataclass(eq=False)
class Sequence:
    """Part A and one Part B behind it."""

    group: Group
    number: int
    """Sample of a request, option of a scored one."""
    tokens: list[int] = field(default_factory=list)
    """Part B, start tokens included: those with keys in the cache, then those to be fed."""
    positions: list[int] = field(default_factory=list)
    block_positions: list[int] = field(default_factory=list)
    prompt_blocks: list[int] = field(default_factory=list)
    answer_blocks: list[int] = field(default_factory=list)
    prompt_computed: int = 0
    num_computed: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller goes first, and gives its blocks back last."""
        return *self.group.order, self.number

    @property
    def unit(self) -> object:
        """What counts as one of the answers that run at a time."""
        return self

    @property
    def is_idle(self) -> bool:
        """Whether it waits for other answers, and needs no blocks for that."""
        return False

    @property
    def is_prefilled(self) -> bool:
        """Whether all keys of the prompt are there."""
        return self.prompt_computed == len(self.group.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens of Part B that are known and not yet computed."""
        return len(self.tokens) - self.num_computed

    def chooses_after(self, index: int) -> bool:
        """Whether the logits of this token of Part B are needed."""
        raise NotImplementedError

    def forget(self) -> None:
        """Its blocks are gone; all is to be computed again."""
        self.prompt_blocks, self.answer_blocks = [], []
        self.prompt_computed = self.num_computed = 0

    def _feed(self, token: int, position: int, block_position: int) -> None:
        self.tokens.append(token)
        self.positions.append(position)
        self.block_positions.append(block_position)


@dataclass(eq=False)
class Prompt(Sequence):
    """A prompt whose hidden states are looked at."""

    def chooses_after(self, index: int) -> bool:
        """Never: it has no Part B."""
        return False


@dataclass(eq=False)
class EmbeddedPrompt(Prompt):
    """Its hidden states are summed, a tile of queries at a time."""

    total: np.ndarray | None = None

    def add(self, hidden: Tensor) -> None:
        """Those of the next part; the sum does not depend on where parts are cut."""
        for tile in hidden.double().split(QUERY_TILE):
            part = tile.sum(dim=0).cpu().numpy()
            self.total = part if self.total is None else self.total + part

    @property
    def mean(self) -> np.ndarray:
        """Of the whole prompt, fp32 [hidden size]."""
        assert self.total is not None
        mean: np.ndarray = (self.total / len(self.group.tokens)).astype(np.float32)
        return mean


@dataclass(eq=False)
class LabelledPrompt(Prompt):
    """Those of its tokens that are labelled are kept."""

    kept: dict[int, Tensor] = field(default_factory=dict)
    """By their places."""

    def add(self, start: int, hidden: Tensor) -> None:
        """The hidden states of the part that begins at this token."""
        for place in self._places:
            if start <= place < start + len(hidden):
                self.kept[place] = hidden[place - start]

    @property
    def hidden(self) -> Tensor:
        """[places, hidden size]."""
        return torch.stack([self.kept[place] for place in self._places])

    @property
    def _places(self) -> list[int]:
        assert isinstance(self.group.request, LabelRequest)
        return list(self.group.request.places)


@dataclass(eq=False)
class Scored(Sequence):
    """A given answer; `targets` are what its tokens should predict."""

    targets: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_greedy: bool = True
    alternatives: list[tuple] = field(default_factory=list)

    @classmethod
    def begin(cls, group: Group, number: int, special: SpecialTokenIds) -> "Scored":
        """An option, all of it to be fed."""
        request = group.request
        assert isinstance(request, ScoreRequest)
        option = [int(token) for token in request.options[number]]
        sequence = cls(group, number)
        sequence.targets = [*option, special.eop] if request.scores_end else option
        start = special.sop if request.start is None else request.start
        fed = [start, *option][: len(sequence.targets)]
        for place, token in enumerate(fed, start=1):
            sequence._feed(token, request.place, place)
        return sequence

    def chooses_after(self, index: int) -> bool:
        """Whether its logits have not been looked at, as they have before a preemption."""
        return index >= len(self.logprobs)

    def note(self, logprob: float, token: int, likeliest: tuple[Alternative, ...]) -> bool:
        """Take down what the next target got; whether it was the last one."""
        assert isinstance(self.group.request, ScoreRequest)
        num_shown = self.group.request.num_logprobs
        self.logprobs.append(logprob)
        self.is_greedy &= likeliest[0].token == token
        self.alternatives.append(likeliest[:num_shown])
        if len(self.logprobs) < len(self.targets):
            return False
        alternatives = tuple(self.alternatives) if num_shown else ()
        score = OptionScore(tuple(self.logprobs), self.is_greedy, alternatives)
        self.group.scores[self.number] = score
        return True


@dataclass(frozen=True)
class Taken:
    """What became of a token that was chosen."""

    blank: int
    token: int | None
    """None where it ends the blank."""
    text: str
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None


@dataclass(eq=False)
class Growing(Sequence):
    """An answer that grows by what is chosen, blank after blank."""

    blanks: list[int] = field(default_factory=list)
    """Those still to be filled, the current one first; indices into the request's."""
    num_generated: int = 0
    """Tokens of the current blank."""
    generated: list[int] = field(default_factory=list)
    """Tokens of all blanks so far, without start and end."""
    matcher: Matcher | None = None
    """What the current blank may go on with; None for all."""
    rule: Rule | None = None
    """How the current blank is filled; made when it is first asked for."""

    @property
    def is_over(self) -> bool:
        """Whether all blanks are filled."""
        return not self.blanks

    @property
    def blank(self) -> Blank:
        """The current one."""
        assert isinstance(self.group.request, Request)
        return self.group.request.blanks[self.blanks[0]]

    @property
    def sampling(self) -> SamplingSettings:
        """How the current blank is filled."""
        return self.blank.sampling

    @property
    def error(self) -> str:
        """Why its constraint allows nothing more; nothing where it does."""
        return "" if self.matcher is None else self.matcher.error

    @property
    def answer(self) -> list[int]:
        """Tokens of the current blank."""
        return self.generated[len(self.generated) - self.num_generated :]

    def chooses_after(self, index: int) -> bool:
        """Only after the newest token; those before it were chosen already."""
        return index == len(self.tokens) - 1

    def begin_blank(self, special: SpecialTokenIds) -> None:
        """Feed the start of the current blank."""
        self.num_generated, self.rule = 0, None
        matcher = self.group.matchers.get(self.blanks[0])
        self.matcher = None if matcher is None else matcher.fork()
        start = special.sop if self.blank.start is None else self.blank.start
        self._feed(start, self.blank.place, 1)

    def grow(self, token: int) -> None:
        """A token of text is chosen."""
        self.generated.append(token)
        self.num_generated += 1
        if self.matcher is not None:
            self.matcher.take(token)

    def feed_newest(self) -> None:
        """What comes next is to see the newest token."""
        self._feed(self.generated[-1], self.blank.place, self.num_generated + 1)


@dataclass(eq=False)
class Generated(Growing):
    """An answer whose text is given out as it is chosen."""

    stream: TextStream | None = None

    @classmethod
    def begin(
        cls,
        group: Group,
        number: int,
        blanks: list[int],
        special: SpecialTokenIds,
        texts: TokenTexts,
    ) -> "Generated":
        """A sample that is to fill these blanks, its first start token fed."""
        sequence = cls(group, number, blanks=blanks)
        sequence._begin(special, texts)
        return sequence

    def take(
        self, token: int, ends: frozenset[int], special: SpecialTokenIds, texts: TokenTexts
    ) -> Taken:
        """Go on with a chosen token, which may end the blank, and the blank the answer."""
        assert self.stream is not None
        blank, settings = self.blanks[0], self.sampling
        if token in ends:
            stopped = token if token in settings.stop_tokens else None
            taken = Taken(blank, None, self.stream.finish(), "stop", stopped)
        else:
            self.grow(token)
            taken = self._take_text(blank, token, settings)
        is_followed = taken.finish_reason is None or len(self.blanks) > 1
        if taken.token is not None and is_followed:
            self.feed_newest()
        if taken.finish_reason is not None:
            self.blanks = self.blanks[1:]
            if self.blanks:
                self._begin(special, texts)
        return taken

    def _take_text(self, blank: int, token: int, settings: SamplingSettings) -> Taken:
        assert self.stream is not None
        text = self.stream.push(token)
        is_complete = self.matcher is not None and self.matcher.is_over
        is_full = self.num_generated == settings.max_tokens
        if is_complete or is_full:
            text += self.stream.finish()
        if self.stream.stopped_by is not None:
            return Taken(blank, token, text, "stop", self.stream.stopped_by)
        reason: FinishReason | None = "stop" if is_complete else "length" if is_full else None
        return Taken(blank, token, text, reason)

    def _begin(self, special: SpecialTokenIds, texts: TokenTexts) -> None:
        self.begin_blank(special)
        self.stream = TextStream(texts, self.sampling.stop, behind_space=self.blank.behind_space)
