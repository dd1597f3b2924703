"""Beam search: which beginnings of an answer are gone on with, and which answers are the best.

It stands apart from the engine, which computes and stores, as bookkeeping over log-probabilities.
The rules are those of `generate` in transformers 5: of the likeliest continuations of all beams,
those among the first `num_beams` that end become answers, and the first `num_beams` of the others
are the next beams.
"""

import copy
from dataclasses import dataclass

from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.requests import Alternative, Delta, FinishReason, Request
from glm_dist.inference.sampling import Continuation, Continuations
from glm_dist.inference.sequences import Group, Growing
from glm_dist.tokenizer import SpecialTokenIds


@dataclass(eq=False, kw_only=True)
class Beam(Growing):
    """A beginning of an answer."""

    search: "BeamSearch"
    score: float = 0.0
    """Sum of the scores of its tokens, of an end too."""
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    continuations: Continuations | None = None
    """Known as soon as its newest token is computed; from then on it waits for the others."""

    @classmethod
    def begin(
        cls, group: Group, blanks: list[int], special: SpecialTokenIds, ends: frozenset[int]
    ) -> "Beam":
        """The first beam for the first of these blanks, its start token fed."""
        assert isinstance(group.request, Request)
        beam = cls(group, 0, blanks=blanks, search=BeamSearch(group.request, blanks[0], ends))
        beam.search.live = [beam]
        beam.begin_blank(special)
        return beam

    def begin_next(self, special: SpecialTokenIds, ends: frozenset[int]) -> "Beam":
        """The first beam for the next blank, which sees this answer."""
        beam = self.forked()
        assert isinstance(self.group.request, Request)
        beam.number, beam.score, beam.logprobs, beam.alternatives = 0, 0.0, (), ()
        beam.blanks = self.blanks[1:]
        beam.search = BeamSearch(self.group.request, beam.blanks[0], ends)
        beam.search.live = [beam]
        beam.begin_blank(special)
        return beam

    @property
    def unit(self) -> object:
        """The beams of a search count as one answer."""
        return self.search

    @property
    def is_idle(self) -> bool:
        """Whether it waits for the other beams, and needs no blocks for that."""
        return self.continuations is not None

    def chooses_after(self, index: int) -> bool:
        """Only after the newest token, and once."""
        return not self.is_idle and super().chooses_after(index)

    def extended(self, last: Continuation, *, is_end: bool) -> "Beam":
        """The beam with one more token, which is no text where it is an end."""
        child = self.forked()
        child.score += last.score
        if not is_end:
            assert self.continuations is not None
            child.logprobs += (last.logprob,)
            child.alternatives += (self.continuations.likeliest,)
            child.grow(last.token)
            child.feed_newest()
        return child

    def forked(self) -> "Beam":
        """A copy without blocks, of which nothing is known yet."""
        child = copy.copy(self)
        child.tokens, child.generated = [*self.tokens], [*self.generated]
        child.positions, child.block_positions = [*self.positions], [*self.block_positions]
        child.matcher = None if self.matcher is None else self.matcher.fork()
        child.continuations = child.rule = None
        child.forget()
        return child


@dataclass(frozen=True)
class Found:
    """An answer."""

    beam: Beam
    score: float
    finish_reason: FinishReason
    end: int | None = None
    """The token that ended it, which is no part of it."""

    def delta(self, texts: TokenTexts, sample: int, *, is_last: bool) -> Delta:
        """What comes out of the engine: the whole answer at once."""
        beam, settings = self.beam, self.beam.sampling
        return Delta(
            request_id=beam.group.request.id,
            sample=sample,
            blank=beam.blanks[0],
            tokens=tuple(beam.answer),
            text=texts.join(beam.answer).removeprefix(" " if beam.blank.behind_space else ""),
            logprobs=() if settings.num_logprobs is None else beam.logprobs,
            alternatives=beam.alternatives if settings.num_logprobs else (),
            finish_reason=self.finish_reason,
            stopped_by=self.end if self.end in settings.stop_tokens else None,
            score=self.score,
            is_last=is_last,
        )


class BeamSearch:
    """The search for the answers to one blank."""

    def __init__(self, request: Request, blank: int, ends: frozenset[int]) -> None:
        """Args: request: one that asks for beams; blank: its index; ends: ids that end it."""
        assert request.beams is not None
        self._settings, self._ends = request.beams, ends
        self._max_tokens = request.blanks[blank].sampling.max_tokens
        self.live: list[Beam] = []
        """Those that are gone on with, best first."""
        self.found: list[Found] = []
        """As many answers as beams at most, best first."""

    @property
    def width(self) -> int:
        """Continuations wanted of each beam, so that enough of them are no ends."""
        return max(2, 1 + len(self._ends)) * self._settings.num_beams

    @property
    def is_ready(self) -> bool:
        """Whether all beams know what they may go on with."""
        return all(beam.is_idle for beam in self.live)

    @property
    def is_over(self) -> bool:
        """Whether no better answer is sought."""
        if not self.live:
            return True
        if len(self.found) < self._settings.num_beams:
            return False
        if self._settings.early_stopping is True:
            return True
        length = self.live[0].num_generated
        if self._settings.early_stopping == "never" and self._settings.length_penalty > 0:
            length = self._max_tokens
        return self._score(self.live[0].score, length) <= self.found[-1].score

    def advance(self) -> dict[Beam, list[Beam]]:
        """The next beams, by the one that each goes on from."""
        options = [
            (beam, last)
            for beam in self.live
            for last in (beam.continuations.best if beam.continuations else ())
        ]
        options.sort(key=lambda option: -(option[0].score + option[1].score))
        children: dict[Beam, list[Beam]] = {beam: [] for beam in self.live}
        self.live = []
        for rank, (beam, last) in enumerate(options[: self.width]):
            is_end = last.token in self._ends
            if is_end or beam.num_generated + 1 == self._max_tokens:
                if rank < self._settings.num_beams:
                    self._end(beam, last, is_end=is_end)
            elif len(self.live) < self._settings.num_beams:
                child = beam.extended(last, is_end=False)
                child.number = len(self.live)
                self.live.append(child)
                children[beam].append(child)
        return children

    def _end(self, beam: Beam, last: Continuation, *, is_end: bool) -> None:
        ended = beam.extended(last, is_end=is_end)
        score = self._score(ended.score, beam.num_generated + 1)
        reason: FinishReason = "stop" if is_end else "length"
        same = next((each for each in self.found if each.beam.answer == ended.answer), None)
        if same is not None:
            # One text, ended by another of the ends.
            if same.score >= score:
                return
            self.found.remove(same)
        self.found.append(Found(ended, score, reason, last.token if is_end else None))
        self.found.sort(key=lambda each: -each.score)
        del self.found[self._settings.num_beams :]

    def _score(self, total: float, length: int) -> float:
        return total / length**self._settings.length_penalty
