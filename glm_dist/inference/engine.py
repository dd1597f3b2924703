"""Requests in, tokens out: continuous batching over one model and one cache.

It stands apart as the only part that knows all others: each step takes the scheduler's plan, runs
the passes, chooses tokens and says what became of every answer. It is not thread-safe; whoever
serves many clients calls it from one thread.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from glm_dist.engine.adapters import AdapterFolder
from glm_dist.errors import RequestError
from glm_dist.inference.adapters import Adapters
from glm_dist.inference.admission import check_adapter, check_request
from glm_dist.inference.beam import Beam, BeamSearch
from glm_dist.inference.blocks import BlockPool, block_keys
from glm_dist.inference.constraints import Constraints, Matchers
from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.edits import build_rule
from glm_dist.inference.requests import (
    NONE_ALLOWED,
    PROMPT_REQUESTS,
    TOO_COMPLEX,
    AnyRequest,
    Delta,
    Embedding,
    EmbedRequest,
    EngineStats,
    Failure,
    Labelled,
    LabelRequest,
    Output,
    Request,
    SamplingSettings,
    ScoreRequest,
    Scores,
    Usage,
)
from glm_dist.inference.runner import Runner
from glm_dist.inference.sampling import Choice, Rule, Sampler, noise_key
from glm_dist.inference.scheduler import Chunk, Row, Scheduler
from glm_dist.inference.sequences import (
    EmbeddedPrompt,
    Generated,
    Group,
    Growing,
    LabelledPrompt,
    Scored,
)
from glm_dist.inference.sequences import Sequence as Answer
from glm_dist.inference.settings import EngineLimits
from glm_dist.inference.vocabulary import ending_ids, forbidden_ids
from glm_dist.inference.work import Work
from glm_dist.model import GLM
from glm_dist.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Engine:
    """Answers requests with one model, many at a time."""

    def __init__(
        self,
        model: GLM,
        tokenizer: Tokenizer,
        limits: EngineLimits | None = None,
        adapters: Mapping[str, AdapterFolder] | None = None,
    ) -> None:
        """Args: a model on its device; its tokenizer; sizes; adapters by the requests' names."""
        self.tokenizer, self.settings = tokenizer, model.settings
        self.limits = limits or EngineLimits()
        self.texts = TokenTexts(tokenizer)
        num_blocks = self.limits.cache_tokens // self.limits.block_tokens
        self._pool = BlockPool(num_blocks)
        beside = Adapters(adapters)
        self.adapters = beside.names
        """Names of the adapters that requests can ask for."""
        self._runner = Runner(model, self.limits, num_blocks, beside)
        self._scheduler = Scheduler(self.limits, self._pool, causal=model.settings.causal)
        self._ends = ending_ids(model.settings, tokenizer)
        device = next(model.parameters()).device
        self._sampler = Sampler(forbidden_ids(model.settings, tokenizer).to(device))
        self._constraints = Constraints(
            tokenizer, self.texts, model.settings.padded_vocab_size, sorted(self._ends)
        )
        self._work = Work()
        self._arrivals = self._steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return len(self._work) > 0

    def is_in_work(self, request_id: str) -> bool:
        """Whether more outputs of a request may come."""
        return self._work.find(request_id) is not None

    @property
    def stats(self) -> EngineStats:
        """What it holds and what it has done."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            free_blocks=self._pool.num_available,
            total_blocks=self._pool.num_blocks,
            prompt_tokens=self._work.prompt_tokens,
            cached_tokens=self._work.cached_tokens,
            generated_tokens=self._work.generated_tokens,
            preemptions=self._scheduler.num_preemptions,
            steps=self._steps,
        )

    def prepare(self, request: AnyRequest) -> Matchers:
        """Compile the constraints of a request; any thread may call this.

        Raises:
            RequestError: when one of them is none, or too much work.
        """
        blanks = request.blanks if isinstance(request, Request) else ()
        found = {i: self._constraints.prepare(blank.sampling) for i, blank in enumerate(blanks)}
        return {blank: matcher for blank, matcher in found.items() if matcher is not None}

    def add(self, request: AnyRequest, matchers: Matchers | None = None) -> None:
        """Take a request in; its outputs come from the steps that follow.

        Args:
            request: what is asked for.
            matchers: what `prepare` gave for it; null to have that done here.

        Raises:
            RequestError: when it cannot be answered, or too many wait.
        """
        if self.is_in_work(request.id):
            raise RequestError(f"request id {request.id!r} is in work already", param="id")
        if len(self._scheduler.waiting) >= self.limits.max_waiting:
            raise RequestError(
                f"{self.limits.max_waiting} answers are waiting already; try again later",
                code="overloaded",
            )
        check_adapter(request, self.adapters)
        check_request(request, self.settings, self.tokenizer, self.limits)
        group = self._open(request, self.prepare(request) if matchers is None else matchers)
        answers = list(self._begin(group))
        self._work.begin(group, answers)
        for answer in answers:
            self._scheduler.add(answer)

    def cancel(self, request_id: str) -> Usage | None:
        """Drop a request and free its blocks at once; None where it is not in work."""
        group = self._work.find(request_id)
        if group is None:
            return None
        usage = self.usage(request_id)
        for answer in self._work.drop(group):
            self._scheduler.remove(answer)
        return usage

    def usage(self, request_id: str) -> Usage | None:
        """Tokens of a request in work so far; ask when its last output has come, at the latest."""
        return self._work.usage(request_id)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """One prefill pass and one decoding pass; what they gave."""
        plan = self._scheduler.plan()
        outputs: list[Output] = []
        self._work.forget_ended()
        if plan.chunks:
            outputs += self._prefill(plan.chunks)
        size = self._runner.max_decode_rows
        for start in range(0, len(plan.rows), size):
            rows = plan.rows[start : start + size]
            outputs += self._decode([row for row in rows if row.sequence.group.num_open])
        self._steps += 1
        return outputs

    def generate(self, requests: Iterable[AnyRequest]) -> list[Output]:
        """All outputs of these requests, in the order of their coming."""
        for request in requests:
            self.add(request)
        outputs: list[Output] = []
        while self.has_work:
            outputs += self.step()
        return outputs

    def forget_prompts(self) -> None:
        """Compute every prompt anew, whatever was computed before."""
        self._pool.clear()

    def _open(self, request: AnyRequest, matchers: Matchers) -> Group:
        tokens = np.asarray(request.tokens, dtype=np.int64)
        salt = "" if isinstance(request, PROMPT_REQUESTS) else request.cache_salt
        name = request.adapter
        self._arrivals += 1
        keys = block_keys(
            tokens,
            self.limits.block_tokens,
            causal=self.settings.causal,
            salt=repr((salt, name, None if self.limits.shares_prompts else self._arrivals)),
        )
        number = 0 if name is None else 1 + self.adapters.index(name)
        return Group(request, self._arrivals, tokens, keys, number, matchers)

    def _begin(self, group: Group) -> Iterator[Answer]:
        """The answers that a request asks for."""
        request, special = group.request, self.tokenizer.special
        if isinstance(request, EmbedRequest):
            yield EmbeddedPrompt(group, 0)
        elif isinstance(request, LabelRequest):
            yield LabelledPrompt(group, 0)
        elif isinstance(request, ScoreRequest):
            for number in range(len(request.options)):
                yield Scored.begin(group, number, special)
        else:
            blanks = list(range(len(request.blanks)))
            shares = [blanks] if request.is_joint else [[blank] for blank in blanks]
            for share in shares if request.beams else ():
                ends = self._ends_of(request.blanks[share[0]].sampling)
                yield Beam.begin(group, share, special, ends)
            for sample in range(0 if request.beams else request.num_samples):
                for share in shares:
                    yield Generated.begin(group, sample, share, special, self.texts)

    def _prefill(self, chunks: Sequence[Chunk]) -> Iterator[Output]:
        hidden = self._runner.prefill(chunks)
        for place, chunk in enumerate(chunks):
            self._scheduler.prefilled(chunk)
            answer = chunk.sequence
            if hidden is None or not isinstance(answer, EmbeddedPrompt | LabelledPrompt):
                continue
            if isinstance(answer, EmbeddedPrompt):
                answer.add(hidden[place])
            else:
                answer.add(chunk.start, hidden[place])
            if answer.is_prefilled:
                yield self._look_at(answer)

    def _look_at(self, answer: EmbeddedPrompt | LabelledPrompt) -> Output:
        """What the hidden states of a whole prompt give."""
        name = answer.group.request.id
        if isinstance(answer, EmbeddedPrompt):
            numbers = answer.mean
        else:
            numbers = self._runner.label_scores(answer.hidden).cpu().numpy()
        if not np.isfinite(numbers).all():
            return self._fail(answer.group, "the model gave no number")
        self._close(answer)
        if isinstance(answer, EmbeddedPrompt):
            return Embedding(name, tuple(numbers.tolist()))
        return Labelled(name, tuple(map(tuple, numbers.tolist())))

    def _decode(self, rows: Sequence[Row]) -> Iterator[Output]:
        """One pass: its tokens into the cache, and what is chosen after them."""
        if not rows:
            return
        logits = self._runner.decode(rows)
        for row in rows:
            row.sequence.num_computed = row.index + 1
        choosing = [row.sequence.chooses_after(row.index) for row in rows]
        yield from self._choose(logits, rows, choosing)
        yield from self._search(logits, rows, choosing)
        yield from self._score(logits, rows, choosing)

    def _choose(
        self, logits: Tensor, rows: Sequence[Row], choosing: Sequence[bool]
    ) -> Iterator[Output]:
        rules: list[Rule | None] = [None] * len(rows)
        keys = [0] * len(rows)
        for place, row in enumerate(rows):
            if choosing[place] and isinstance(row.sequence, Generated):
                rules[place], keys[place] = self._rule(row.sequence), _key(row.sequence)
        if not any(rules):
            return
        answers = [row.sequence if rule else None for row, rule in zip(rows, rules, strict=True)]
        choices = self._sampler.choose(logits, rules, keys, self._allowed(answers, len(logits)))
        for row, choice in zip(rows, choices, strict=True):
            if choice is not None and row.sequence.group.num_open:
                assert isinstance(row.sequence, Generated)
                yield self._take(row.sequence, choice)

    def _rule(self, answer: Growing) -> Rule:
        """How the current blank is filled; made once for it."""
        if answer.rule is None:
            ends = sorted(self._ends_of(answer.sampling))
            answer.rule = build_rule(answer, self.texts, ends)
        return answer.rule

    def _allowed(self, answers: Sequence[Answer | None], num_rows: int) -> Tensor | None:
        """What the constraints of these answers leave."""
        return self._constraints.allowed(
            [answer.matcher if isinstance(answer, Growing) else None for answer in answers],
            num_rows,
        )

    def _ends_of(self, settings: SamplingSettings) -> frozenset[int]:
        return self._ends.union(settings.stop_tokens)

    def _take(self, answer: Generated, choice: Choice) -> Output:
        """What a chosen token makes of an answer."""
        if not choice.is_finite:
            return self._fail_to_choose(answer, is_possible=choice.is_possible)
        ends = self._ends_of(answer.sampling)
        taken = answer.take(choice.token, ends, self.tokenizer.special, self.texts)
        is_kept = taken.token is not None
        if is_kept:
            self._work.count(answer.group, 1)
        if answer.is_over:
            self._close(answer)
        has_logprobs = is_kept and choice.logprob is not None
        return Delta(
            request_id=answer.group.request.id,
            sample=answer.number,
            blank=taken.blank,
            tokens=(choice.token,) if is_kept else (),
            text=taken.text,
            logprobs=(choice.logprob,) if has_logprobs else (),  # type: ignore[arg-type]
            alternatives=(choice.alternatives,) if has_logprobs and choice.alternatives else (),
            finish_reason=taken.finish_reason,
            stopped_by=taken.stopped_by,
            is_last=not answer.group.num_open,
        )

    def _search(
        self, logits: Tensor, rows: Sequence[Row], choosing: Sequence[bool]
    ) -> Iterator[Output]:
        beams = [
            row.sequence if is_choosing and isinstance(row.sequence, Beam) else None
            for row, is_choosing in zip(rows, choosing, strict=True)
        ]
        if not any(beams):
            return
        rules = [None if beam is None else self._rule(beam) for beam in beams]
        widths = [0 if beam is None else beam.search.width for beam in beams]
        allowed = self._allowed(beams, len(logits))
        found = self._sampler.continue_beams(logits, rules, widths, allowed)
        for beam, continuations in zip(beams, found, strict=True):
            if beam is None or continuations is None or not beam.group.num_open:
                continue
            beam.continuations = continuations
            if not continuations.is_finite or beam.error:
                yield self._fail_to_choose(beam, is_possible=True)
            elif beam.search.is_ready:
                yield from self._advance(beam.search)

    def _advance(self, search: BeamSearch) -> Iterator[Output]:
        """All beams know how to go on: the next ones take their places, or the search ends."""
        children = search.advance()
        if search.is_over:
            yield from self._end_search(search, list(children))
            return
        copies = []
        for parent, forks in children.items():
            copies += self._scheduler.fork(parent, tuple(forks))
            for fork in forks:
                self._work.enter(fork)
            self._work.leave(parent)
        self._runner.cache.copy(copies)

    def _end_search(self, search: BeamSearch, beams: Sequence[Beam]) -> Iterator[Output]:
        """The best answers; a search for the next blank goes on behind the very best."""
        group = beams[0].group
        assert isinstance(group.request, Request)
        if not search.found:
            yield self._fail_to_choose(beams[0], is_possible=False)
            return
        best = search.found[0].beam
        if best.blanks[1:]:
            ends = self._ends_of(group.request.blanks[best.blanks[1]].sampling)
            following = best.begin_next(self.tokenizer.special, ends)
            self._work.enter(following)
            self._scheduler.add(following)
        for beam in beams:
            self._close(beam)
        answers = search.found[: group.request.num_samples]
        for sample, answer in enumerate(answers):
            is_last = not group.num_open and sample == len(answers) - 1
            self._work.count(group, len(answer.beam.answer))
            yield answer.delta(self.texts, sample, is_last=is_last)

    def _score(
        self, logits: Tensor, rows: Sequence[Row], choosing: Sequence[bool]
    ) -> Iterator[Output]:
        targets = [
            row.sequence.targets[row.index]
            if is_choosing and isinstance(row.sequence, Scored)
            else None
            for row, is_choosing in zip(rows, choosing, strict=True)
        ]
        if all(target is None for target in targets):
            return
        for row, choice in zip(rows, self._sampler.score(logits, targets), strict=True):
            if choice is not None and row.sequence.group.num_open:
                assert isinstance(row.sequence, Scored)
                yield from self._note(row.sequence, choice)

    def _note(self, answer: Scored, choice: Choice) -> Iterator[Output]:
        """Take down the log-probability of a given token; all of a request's come together."""
        if not choice.is_finite or choice.logprob is None:
            yield self._fail(answer.group, "the model gave no number")
            return
        group, request = answer.group, answer.group.request
        assert isinstance(request, ScoreRequest)
        if not answer.note(choice.logprob, choice.token, choice.alternatives):
            return
        self._close(answer)
        if not group.num_open:
            yield Scores(request.id, tuple(score for _, score in sorted(group.scores.items())))

    def _close(self, answer: Answer) -> None:
        """An answer has ended; with the last one its request."""
        self._scheduler.remove(answer)
        self._work.leave(answer)

    def _fail_to_choose(self, answer: Growing, *, is_possible: bool) -> Failure:
        """Nothing can come next."""
        if answer.error:
            reason = f"the constraint takes too much work ({answer.error}); simplify it"
            return self._fail(answer.group, reason, TOO_COMPLEX)
        if not is_possible:
            reason = "all tokens that could come next are forbidden; allow more of them"
            return self._fail(answer.group, reason, NONE_ALLOWED)
        return self._fail(answer.group, "the model gave no number")

    def _fail(self, group: Group, reason: str, code: str | None = None) -> Failure:
        """One request breaks; the others go on."""
        logger.warning("request %s failed: %s", group.request.id, reason)
        for answer in self._work.drop(group):
            self._runner.cache.wipe(self._scheduler.discard(answer))
        return Failure(group.request.id, reason, code)


def _key(answer: Growing) -> int:
    blank = answer.blanks[0]
    return noise_key(answer.sampling.seed, answer.number, blank, answer.num_generated)
