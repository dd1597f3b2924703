import numpy as np
import torch

from glm_dist.objective import dense_mask, flex_mask_mod, visible_keys


def random_rows(seed, rows=4, length=40):
    rng = np.random.default_rng(seed)
    segments, prefix_ends = np.zeros((2, rows, length), dtype=np.int32)
    for row in range(rows):
        start, segment = 0, 1
        while start < length - 3 and rng.random() < 0.9:
            size = int(rng.integers(1, length - start))
            part_a = int(rng.integers(0, size + 1))
            segments[row, start : start + size] = segment
            prefix_ends[row, start : start + size] = start + part_a
            start, segment = start + size, segment + 1
    return segments, prefix_ends


def test_part_a_is_seen_by_its_sample_and_part_b_only_from_behind():
    mask = dense_mask(np.array([1, 1, 1, 2, 2, 0]), np.array([2, 2, 2, 4, 4, 0]))
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask.astype(int).tolist() == expected


def test_torch_and_numpy_agree_and_the_predicate_is_the_mask():
    for seed in range(10):
        segments, prefix_ends = random_rows(seed)
        mask = dense_mask(segments, prefix_ends)
        tensors = torch.from_numpy(segments), torch.from_numpy(prefix_ends)
        assert np.array_equal(dense_mask(*tensors).numpy(), mask)
        batch, query, key = torch.meshgrid(
            torch.arange(4), torch.arange(40), torch.arange(40), indexing="ij"
        )
        assert np.array_equal(flex_mask_mod(*tensors)(batch, 0, query, key).numpy(), mask)


def test_the_count_of_visible_keys_is_the_masks():
    for seed in range(20):
        segments, prefix_ends = random_rows(seed)
        expected = dense_mask(segments, prefix_ends).sum(-1) * (segments > 0)
        assert np.array_equal(visible_keys(segments, prefix_ends), expected)
