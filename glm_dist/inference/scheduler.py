"""Who computes what in the next step, and who gives blocks back when there are none left.

It stands apart as plain bookkeeping: no tensor, no token and no text. A step is one prefill pass
and one decoding pass. Prompts of a causal model are cut into chunks; a prompt that sees all of
itself is computed whole. An answer that lost its blocks computes its prompt again and then its
tokens, by the same passes that computed them first, so it goes on as if nothing had been.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from glm_dist.inference.blocks import BlockPool
from glm_dist.inference.paged import QUERY_TILE
from glm_dist.inference.sequences import Sequence
from glm_dist.inference.settings import EngineLimits


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt to compute."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """A token of a Part B to compute."""

    sequence: Sequence
    index: int


@dataclass
class Plan:
    """The work of a step."""

    chunks: list[Chunk] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class Scheduler:
    """Holds all answers that have not ended, and the blocks."""

    def __init__(self, limits: EngineLimits, pool: BlockPool, *, causal: bool) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._limits, self._pool, self._causal = limits, pool, causal

    def add(self, sequence: Sequence) -> None:
        """A new answer joins those that wait."""
        bisect.insort(self.waiting, sequence, key=lambda each: each.order)

    def remove(self, sequence: Sequence) -> None:
        """An answer has ended, in whatever state it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._pool.release([*sequence.prompt_blocks, *sequence.answer_blocks])
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def discard(self, sequence: Sequence) -> list[int]:
        """As `remove`, for a broken one: blocks that are free now and must not be read as they are.

        A block of it that another holds is broken for that one too, or was sound before.
        """
        if sequence in self.running:
            self.running.remove(sequence)
            return self._pool.discard([*sequence.prompt_blocks, *sequence.answer_blocks])
        self.remove(sequence)
        return []

    def fork(self, parent: Sequence, children: tuple[Sequence, ...]) -> list[tuple[int, int]]:
        """Children of one token more take a parent's place; blocks to copy, from and to, come back.

        They share its full blocks. The last one, which each will write to, goes to the first child;
        the others get copies of it, or compute all again where no block is left.
        """
        if parent not in self.running or not children:
            self.remove(parent)
            for child in children:
                self.add(child)
            return []
        full = parent.answer_blocks[: parent.num_computed // self._limits.block_tokens]
        rest = parent.answer_blocks[len(full) :]
        copies: list[tuple[int, int]] = []
        for child in children[1:]:
            own = self._pool.take(len(rest))
            if own is None:
                self.add(child)
                continue
            for block in (*parent.prompt_blocks, *full):
                self._pool.hold(block)
            self._inherit(child, parent, [*full, *own])
            copies += zip(rest, own, strict=True)
        self._inherit(children[0], parent, parent.answer_blocks)
        self.running.remove(parent)
        return copies

    def plan(self) -> Plan:
        """The next step's work; blocks for it are taken."""
        plan = self._plan()
        while self.running and self.waiting and all(each.is_idle for each in self.running):
            # They wait for answers that have no place.
            self._preempt(self.running[-1], plan)
            plan = self._plan()
        return plan

    def _plan(self) -> Plan:
        plan = Plan()
        budget = self._limits.prefill_tokens
        budget -= self._plan_rows(plan, budget)
        self._plan_prefill(plan, budget)
        return plan

    def prefilled(self, chunk: Chunk) -> None:
        """A chunk is computed; what its blocks hold can be shared from now on."""
        sequence = chunk.sequence
        sequence.prompt_computed = chunk.end
        size, keys = self._limits.block_tokens, sequence.group.keys
        last = len(keys) if sequence.is_prefilled else chunk.end // size
        for place in range(chunk.start // size, last):
            self._pool.name(sequence.prompt_blocks[place], keys[place])

    def _inherit(self, child: Sequence, parent: Sequence, answer_blocks: list[int]) -> None:
        child.prompt_blocks, child.answer_blocks = [*parent.prompt_blocks], [*answer_blocks]
        child.prompt_computed, child.num_computed = parent.prompt_computed, parent.num_computed
        bisect.insort(self.running, child, key=lambda each: each.order)

    def _plan_rows(self, plan: Plan, budget: int) -> int:
        """A token of each answer, and more of those that are known; how many more comes back."""
        more = 0
        for sequence in list(self.running):
            if sequence not in self.running or not sequence.is_prefilled:
                continue
            known = min(sequence.num_pending, 1 + max(0, budget - more), self._limits.decode_rows)
            if not known or not self._reserve(sequence, sequence.num_computed + known, plan):
                continue
            first = sequence.num_computed
            plan.rows.extend(Row(sequence, first + offset) for offset in range(known))
            more += known - 1
        return more

    def _reserve(self, sequence: Sequence, num_tokens: int, plan: Plan) -> bool:
        """Blocks for that many answer tokens; where none is left the last to come gives its own."""
        missing = -(-num_tokens // self._limits.block_tokens) - len(sequence.answer_blocks)
        while missing > 0:
            blocks = self._pool.take(missing)
            if blocks is not None:
                sequence.answer_blocks += blocks
                return True
            last = max(self.running, key=lambda each: each.order)
            self._preempt(last, plan)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        plan.rows = [row for row in plan.rows if row.sequence is not sequence]
        self.remove(sequence)
        sequence.forget()
        if not sequence.is_idle:
            self.add(sequence)
        self.num_preemptions += 1

    def _plan_prefill(self, plan: Plan, budget: int) -> None:
        for sequence in self._unfinished_prompts():
            budget -= self._plan_chunk(plan, sequence, budget)
        while self.waiting and self._has_place(self.waiting[0]):
            sequence = self.waiting[0]
            if self._is_being_computed(sequence) or not self._fits_budget(sequence, budget, plan):
                return
            if not self._admit(sequence):
                return
            if not sequence.is_prefilled:
                budget -= self._plan_chunk(plan, sequence, budget)

    def _has_place(self, sequence: Sequence) -> bool:
        units = {each.unit for each in self.running}
        return sequence.unit in units or len(units) < self._limits.max_running

    def _unfinished_prompts(self) -> Iterator[Sequence]:
        return (sequence for sequence in self.running if not sequence.is_prefilled)

    def _plan_chunk(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """As much of a prompt as the budget allows; a cut comes between two tiles of queries."""
        start, end = sequence.prompt_computed, len(sequence.group.tokens)
        if self._causal and end - start > budget:
            end = start + budget // QUERY_TILE * QUERY_TILE
        if end > start:
            plan.chunks.append(Chunk(sequence, start, end))
        return max(0, end - start)

    def _fits_budget(self, sequence: Sequence, budget: int, plan: Plan) -> bool:
        if self._causal:
            return budget >= QUERY_TILE
        # What needs no computing costs nothing; what cannot be cut may have a pass to itself.
        is_cached = self._num_cached(sequence) == len(sequence.group.tokens)
        return is_cached or not plan.chunks or len(sequence.group.tokens) <= budget

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Whether another computes the same prompt now, so that it is there in the next step."""
        key = sequence.group.keys[-1]
        return not sequence.group.wants_hidden and any(
            other.group.keys[-1] == key for other in self._unfinished_prompts()
        )

    def _admit(self, sequence: Sequence) -> bool:
        """Begin with an answer where there are blocks for its prompt and its first token."""
        cached = self._cached_blocks(sequence)
        missing = len(sequence.group.keys) - len(cached)
        kept = sum(map(self._pool.is_kept, cached))
        if missing + kept + 1 > self._pool.num_available:
            return False
        for block in cached:
            self._pool.hold(block)
        taken = self._pool.take(missing)
        assert taken is not None
        sequence.prompt_blocks = cached + taken
        sequence.prompt_computed = self._num_cached_tokens(sequence, cached)
        if sequence.group.cached_tokens is None:
            sequence.group.cached_tokens = sequence.prompt_computed
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=lambda each: each.order)
        return True

    def _num_cached(self, sequence: Sequence) -> int:
        return self._num_cached_tokens(sequence, self._cached_blocks(sequence))

    def _num_cached_tokens(self, sequence: Sequence, cached: list[int]) -> int:
        return min(len(sequence.group.tokens), len(cached) * self._limits.block_tokens)

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks at the beginning of the prompt that are there already."""
        keys = sequence.group.keys
        if sequence.group.wants_hidden:
            return []
        found: list[int] = []
        for key in keys:
            block = self._pool.find(key)
            if block is None:
                break
            found.append(block)
        if len(found) == len(keys):
            return found
        # Without all of it, nothing that sees the whole is there; the rest begins with a tile.
        size = QUERY_TILE // self._limits.block_tokens
        return found[: len(found) // size * size] if self._causal else []
