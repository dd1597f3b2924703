"""Which block of the cache belongs to whom: allocation, sharing, and what is kept for later.

It stands apart from the tensors, so that the accounting is tested without any. A block is free,
held by one or more texts, or kept: held by nobody, but its content has a key and may be wanted
again; kept blocks are taken, oldest first, when no other is free.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class BlockPool:
    """Numbers 1 to `num_blocks`; block 0 is scratch, where padding rows write."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._holders = [0] * (num_blocks + 1)
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give, kept ones included."""
        return len(self._free) + len(self._kept)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks of unknown content, or None where there are not as many."""
        if count > self.num_available:
            return None
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        self._holders[block] = 1
        return block

    def find(self, key: bytes) -> int | None:
        """The block with this content, which nobody need hold."""
        return self._blocks.get(key)

    def is_kept(self, block: int) -> bool:
        """Whether nobody holds the block, so that holding it makes one fewer available."""
        return block in self._kept

    def hold(self, block: int) -> None:
        """One more holder of a block that `find` gave."""
        self._kept.pop(block, None)
        self._holders[block] += 1

    def name(self, block: int, key: bytes) -> None:
        """Say what a block holds, now that it is computed; the first of a content keeps the key."""
        if key not in self._blocks and block not in self._keys:
            self._blocks[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> list[int]:
        """One holder fewer of each; those that are free now come back.

        Those with a key are kept, the last of a text to be taken first.
        """
        free = []
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._kept[block] = None
            else:
                free.append(block)
        self._free += free
        return free

    def discard(self, blocks: Sequence[int]) -> list[int]:
        """As `release`, where the content must not be used again."""
        for block in blocks:
            self._forget(block)
        return self.release(blocks)

    def clear(self) -> None:
        """Forget all that is kept."""
        self._free.extend(self._kept)
        self._kept.clear()
        for block in list(self._keys):
            self._forget(block)

    def _forget(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._blocks[key]


def block_keys(tokens: np.ndarray, block_tokens: int, *, causal: bool, salt: str) -> list[bytes]:
    """What the keys and values of each block of a Part A depend on, as digests.

    In a causal model that is the text up to the block's end, so texts with the same beginning
    share it. In a model whose Part A sees all of itself it is the whole of it.
    """
    content = np.ascontiguousarray(tokens, dtype=np.int64)
    starts = range(0, len(content), block_tokens)
    chain = hashlib.blake2b(salt.encode(), digest_size=16)
    if not causal:
        chain.update(content.tobytes())
        whole = chain.digest()
        return [whole + start.to_bytes(8, "little") for start in starts]
    keys = []
    for start in starts:
        piece = content[start : start + block_tokens]
        chain.update(len(piece).to_bytes(8, "little") + piece.tobytes())
        keys.append(chain.digest())
    return keys
