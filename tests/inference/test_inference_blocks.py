import numpy as np

from glm_dist.inference.blocks import BlockPool, block_keys


def test_no_block_is_given_twice_and_none_is_lost():
    rng = np.random.default_rng(0)
    pool, held, named = BlockPool(40), [], {}
    for step in range(3000):
        if rng.random() < 0.5:
            count = int(rng.integers(1, 8))
            blocks = pool.take(count)
            assert (blocks is None) == (count > 40 - len({b for each in held for b in each}))
            if blocks is not None:
                assert not {b for each in held for b in each} & set(blocks)
                named = {key: block for key, block in named.items() if block not in blocks}
                held.append(blocks)
        elif held and rng.random() < 0.3:
            block = held[int(rng.integers(len(held)))][0]
            key = str(step).encode()
            pool.name(block, key)
            if pool.find(key) is not None:
                named[key] = block
        elif named and rng.random() < 0.3:
            key = list(named)[int(rng.integers(len(named)))]
            assert pool.find(key) == named[key]
            pool.hold(named[key])
            held.append([named[key]])
        elif held:
            pool.release(held.pop(int(rng.integers(len(held)))))
        assert pool.num_available == 40 - len({b for each in held for b in each})


def test_blocks_kept_longest_are_taken_first_and_the_end_of_a_text_before_its_beginning():
    pool = BlockPool(4)
    blocks = pool.take(4)
    for block in blocks:
        pool.name(block, bytes([block]))
    pool.release(blocks[:2])
    pool.release(blocks[2:])
    assert pool.take(3) == [blocks[1], blocks[0], blocks[3]]
    assert pool.find(bytes([blocks[2]])) == blocks[2]
    assert pool.find(bytes([blocks[0]])) is None


def test_causal_keys_depend_on_the_text_so_far_and_others_on_all_of_it():
    text = np.arange(40)
    changed = text.copy()
    changed[20] = 99
    for causal, same in ((True, [True, False, False]), (False, [False, False, False])):
        keys = block_keys(text, 16, causal=causal, salt="")
        others = block_keys(changed, 16, causal=causal, salt="")
        assert [a == b for a, b in zip(keys, others, strict=True)] == same
        salted = block_keys(text, 16, causal=causal, salt="x")
        assert not set(keys) & set(salted)
        assert len(set(keys)) == 3
    longer = block_keys(np.arange(41), 16, causal=True, salt="")
    assert longer[:2] == block_keys(text, 16, causal=True, salt="")[:2]
    assert longer[2] != block_keys(text, 16, causal=True, salt="")[2]
