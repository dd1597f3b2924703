"""Requests in, tokens out: continuous batching over one model and one cache.

It stands apart as the only part that knows all others: each step takes the scheduler's plan, runs
the passes, chooses tokens and says what became of every answer. It is not thread-safe; whoever
serves many clients calls it from one thread.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from glm_dist.engine.adapters import AdapterFolder
from glm_dist.errors import RequestError
from glm_dist.inference.adapters import Adapters
from glm_dist.inference.admission import check_adapter, check_is_language_model, check_request
from glm_dist.inference.blocks import BlockPool, block_keys
from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.edits import build_edits
from glm_dist.inference.paged import QUERY_TILE
from glm_dist.inference.requests import (
    AnyRequest,
    Delta,
    Embedding,
    EmbedRequest,
    EngineStats,
    Failure,
    OptionScore,
    Output,
    ScoreRequest,
    Scores,
    Usage,
)
from glm_dist.inference.runner import Runner
from glm_dist.inference.sampling import Choice, Rule, Sampler, noise_key
from glm_dist.inference.scheduler import Chunk, Row, Scheduler
from glm_dist.inference.sequences import EmbeddedPrompt, Generated, Group, Scored
from glm_dist.inference.sequences import Sequence as Answer
from glm_dist.inference.settings import EngineLimits
from glm_dist.model import GLM
from glm_dist.tokenizer import JSON_FILE, Tokenizer

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
        check_is_language_model(model.settings)
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
        self._ends = _ends(model, tokenizer)
        self._sampler = Sampler(_forbidden(model, tokenizer, self._ends))
        self._groups: dict[str, Group] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._rules: dict[Answer, tuple[int, Rule]] = {}
        self._last: dict[str, Group] = {}
        self._arrivals = self._steps = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._groups)

    def is_in_work(self, request_id: str) -> bool:
        """Whether more outputs of a request may come."""
        return request_id in self._groups

    @property
    def stats(self) -> EngineStats:
        """What it holds and what it has done."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            free_blocks=self._pool.num_available,
            total_blocks=self._pool.num_blocks,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._scheduler.num_preemptions,
            steps=self._steps,
        )

    def add(self, request: AnyRequest) -> None:
        """Take a request in; its outputs come from the steps that follow.

        Raises:
            RequestError: when it cannot be answered, or too many wait.
        """
        if request.id in self._groups:
            raise RequestError(f"request id {request.id!r} is in work already", param="id")
        if len(self._scheduler.waiting) >= self.limits.max_waiting:
            raise RequestError(
                f"{self.limits.max_waiting} answers are waiting already; try again later",
                code="overloaded",
            )
        check_adapter(request, self.adapters)
        check_request(request, self.settings, self.tokenizer, self.limits)
        group = self._open(request)
        answers = list(self._begin(group))
        group.num_open = len(answers)
        self._groups[request.id], self._answers[request.id] = group, answers
        for answer in answers:
            self._scheduler.add(answer)

    def cancel(self, request_id: str) -> Usage | None:
        """Drop a request and free its blocks at once; None where it is not in work."""
        group = self._groups.get(request_id)
        if group is None:
            return None
        usage = self.usage(request_id)
        self._drop(group, self._scheduler.remove)
        return usage

    def usage(self, request_id: str) -> Usage | None:
        """Tokens of a request in work so far; ask when its last output has come, at the latest."""
        group = self._groups.get(request_id) or self._last.get(request_id)
        if group is None:
            return None
        return Usage(len(group.tokens), group.cached_tokens or 0, group.generated_tokens)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """One prefill pass and one decoding pass; what they gave."""
        plan = self._scheduler.plan()
        outputs: list[Output] = []
        self._last = {}
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

    def _open(self, request: AnyRequest) -> Group:
        tokens = np.asarray(request.tokens, dtype=np.int64)
        salt = "" if isinstance(request, EmbedRequest) else request.cache_salt
        name = request.adapter
        self._arrivals += 1
        keys = block_keys(
            tokens,
            self.limits.block_tokens,
            causal=self.settings.causal,
            salt=repr((salt, name, None if self.limits.shares_prompts else self._arrivals)),
        )
        self._prompt_tokens += len(tokens)
        number = 0 if name is None else 1 + self.adapters.index(name)
        return Group(request, self._arrivals, tokens, keys, number)

    def _begin(self, group: Group) -> Iterator[Answer]:
        """The answers that a request asks for."""
        request, special = group.request, self.tokenizer.special
        if isinstance(request, EmbedRequest):
            yield EmbeddedPrompt(group, 0)
        elif isinstance(request, ScoreRequest):
            for number in range(len(request.options)):
                yield Scored.begin(group, number, special)
        else:
            blanks = list(range(len(request.blanks)))
            shares = [blanks] if request.is_joint else [[blank] for blank in blanks]
            for sample in range(request.num_samples):
                for share in shares:
                    yield Generated.begin(group, sample, share, special, self.texts)

    def _prefill(self, chunks: Sequence[Chunk]) -> Iterator[Output]:
        hidden = self._runner.prefill(chunks)
        for place, chunk in enumerate(chunks):
            self._scheduler.prefilled(chunk)
            if hidden is not None and isinstance(chunk.sequence, EmbeddedPrompt):
                yield from self._embed(chunk, hidden[place])

    def _embed(self, chunk: Chunk, hidden: Tensor) -> Iterator[Output]:
        """Add a chunk's hidden states, tile by tile, so that the sum does not depend on cuts."""
        answer = chunk.sequence
        assert isinstance(answer, EmbeddedPrompt)
        for tile in hidden.double().split(QUERY_TILE):
            part = tile.sum(dim=0).cpu().numpy()
            answer.total = part if answer.total is None else answer.total + part
        if answer.is_prefilled:
            assert answer.total is not None
            vector = (answer.total / len(answer.group.tokens)).astype(np.float32)
            if not np.isfinite(vector).all():
                yield self._fail(answer.group, "the model gave no number")
                return
            self._close(answer)
            yield Embedding(answer.group.request.id, tuple(vector.tolist()))

    def _decode(self, rows: Sequence[Row]) -> Iterator[Output]:
        """One pass: its tokens into the cache, and what is chosen after them."""
        if not rows:
            return
        logits = self._runner.decode(rows)
        for row in rows:
            row.sequence.num_computed = row.index + 1
        choosing = [row.sequence.chooses_after(row.index) for row in rows]
        yield from self._choose(logits, rows, choosing)
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
        for row, choice in zip(rows, self._sampler.choose(logits, rules, keys), strict=True):
            if choice is not None and row.sequence.group.num_open:
                assert isinstance(row.sequence, Generated)
                yield self._take(row.sequence, choice)

    def _rule(self, answer: Generated) -> Rule:
        """How the current blank is filled; made once for it."""
        blank = answer.blanks[0]
        known = self._rules.get(answer)
        if known is None or known[0] != blank:
            settings = answer.sampling
            rule = Rule(
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                min_p=settings.min_p,
                num_logprobs=settings.num_logprobs,
                edits=build_edits(answer, self.tokenizer, self._ends_of(answer)),
            )
            known = self._rules[answer] = blank, rule
        return known[1]

    def _ends_of(self, answer: Generated) -> list[int]:
        return sorted(self._ends.union(answer.sampling.stop_tokens))

    def _take(self, answer: Generated, choice: Choice) -> Output:
        """What a chosen token makes of an answer."""
        if not choice.is_finite:
            return self._fail(
                answer.group, "no token is left to choose, or the model gave no number"
            )
        ends = self._ends.union(answer.sampling.stop_tokens)
        taken = answer.take(choice.token, ends, self.tokenizer.special, self.texts)
        is_kept = taken.token is not None
        if is_kept:
            answer.group.generated_tokens += 1
            self._generated_tokens += 1
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
        answer.logprobs.append(choice.logprob)
        answer.is_greedy &= choice.alternatives[0].token == choice.token
        answer.alternatives.append(choice.alternatives[: request.num_logprobs])
        if len(answer.logprobs) < len(answer.targets):
            return
        alternatives = tuple(answer.alternatives) if request.num_logprobs else ()
        group.scores[answer.number] = OptionScore(
            tuple(answer.logprobs), answer.is_greedy, alternatives
        )
        self._close(answer)
        if not group.num_open:
            yield Scores(request.id, tuple(score for _, score in sorted(group.scores.items())))

    def _close(self, answer: Answer) -> None:
        """An answer has ended; with the last one its request."""
        group = answer.group
        self._scheduler.remove(answer)
        self._rules.pop(answer, None)
        self._answers[group.request.id].remove(answer)
        group.num_open -= 1
        if not group.num_open:
            self._forget(group)

    def _forget(self, group: Group) -> None:
        del self._groups[group.request.id], self._answers[group.request.id]
        self._last[group.request.id] = group
        self._cached_tokens += group.cached_tokens or 0

    def _drop(self, group: Group, remove: Callable[[Answer], object]) -> None:
        for answer in self._answers[group.request.id]:
            remove(answer)
            self._rules.pop(answer, None)
        group.num_open = 0
        self._forget(group)

    def _fail(self, group: Group, reason: str) -> Failure:
        """One request breaks; the others go on."""
        logger.warning("request %s failed: %s", group.request.id, reason)
        self._drop(group, lambda answer: self._runner.cache.wipe(self._scheduler.discard(answer)))
        return Failure(group.request.id, reason)


def _key(answer: Generated) -> int:
    blank = answer.blanks[0]
    return noise_key(answer.sampling.seed, answer.number, blank, answer.num_generated)


def _ends(model: GLM, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer; published causal models end a turn with the role that is next."""
    special = tokenizer.special
    ends = {special.eop, special.eos}
    if model.settings.causal and tokenizer.FILE == JSON_FILE:
        ends |= {special.user, special.observation}
    return frozenset(end for end in ends if end >= 0)


def _forbidden(model: GLM, tokenizer: Tokenizer, ends: frozenset[int]) -> Tensor:
    """Ids that are never generated, bool [V]: roles but for the ends, and those without a text."""
    forbidden = torch.zeros(model.settings.padded_vocab_size, dtype=torch.bool)
    forbidden[torch.from_numpy(tokenizer.special_ids).long().clamp(min=0)] = True
    forbidden[sorted(ends)] = False
    forbidden[min(model.settings.vocab_size, tokenizer.vocab_size) :] = True
    return forbidden.to(next(model.parameters()).device)
