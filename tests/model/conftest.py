from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.model import Batch, ModelSettings, load_reference_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_logits.npz"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN) as figures:
        return {name: torch.tensor(figures[name]) for name in figures}


@pytest.fixture
def golden_batch(golden):
    tokens = golden["input_ids"]
    return Batch(
        tokens=tokens,
        targets=golden["target"],
        position_ids=golden["position_ids"][:, 0],
        block_position_ids=golden["position_ids"][:, 1],
        segment_ids=torch.ones_like(tokens),
        prefix_ends=golden["sep"][:, None].expand_as(tokens),
        loss_mask=golden["loss_mask"],
    )


@pytest.fixture
def load_golden(golden):
    weights = {name[2:]: value for name, value in golden.items() if name.startswith("w.")}
    return lambda **options: load_reference_weights(weights, num_heads=2, **options)


MODERN = {"norm": "rmsnorm", "mlp": "swiglu", "num_heads": 4, "num_kv_heads": 2}
GLM_4 = {**MODERN, "positions": "rotary_half", "bias": "qkv", "tied_embeddings": False}
FAMILIES = {
    "2021": {"positions": "learned"},
    "rotary_2d": {"positions": "rotary_2d"},
    "ours": {**MODERN, "bias": "none", "query_key_norm": True},
    "glm_4": {**GLM_4, "causal": True, "head_dim": 16},
    "glm_4_0414": {**GLM_4, "causal": True, "sandwich_norm": True, "num_kv_heads": 1},
    "130b": {"residual": "deepnorm", "mlp": "geglu", "positions": "rotary_1d"},
    "chatglm": {"residual": "deepnorm", "tied_embeddings": False},
}
"""The options of each published family, to be put on a small shape."""


@pytest.fixture(params=FAMILIES)
def tiny(request):
    def settings(**changes):
        shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 100}
        shape |= FAMILIES[request.param]
        return ModelSettings(**{**shape, "max_position_embeddings": 256, **changes})

    return settings


@pytest.fixture
def make_sample():
    """A sample [1, S] with Part A and one span of Part B, as named arrays."""

    def make(seed, part_a, part_b, vocab_size=100):
        rng = np.random.default_rng(seed)
        length = part_a + part_b
        mask_at = int(rng.integers(part_a))
        sample = {
            "tokens": rng.integers(vocab_size, size=length),
            "targets": rng.integers(vocab_size, size=length),
            "position_ids": np.r_[np.arange(part_a), np.full(part_b, mask_at)],
            "block_position_ids": np.r_[np.zeros(part_a), 1 + np.arange(part_b)],
            "segment_ids": np.ones(length),
            "prefix_ends": np.full(length, part_a),
            "loss_mask": np.r_[np.zeros(part_a), np.ones(part_b)],
        }
        return Batch(
            **{name: torch.tensor(a, dtype=torch.int32)[None] for name, a in sample.items()}
        )

    return make


@pytest.fixture
def pack():
    """Samples [1, S] side by side in one row, then padding."""

    def join(samples, length):
        fields = {name: [] for name in Batch._fields}
        start = 0
        for number, sample in enumerate(samples, start=1):
            moved = sample._replace(
                segment_ids=sample.segment_ids * number, prefix_ends=sample.prefix_ends + start
            )
            for name, field in moved._asdict().items():
                fields[name].append(field)
            start += sample.tokens.shape[1]
        padding = torch.zeros(1, length - start, dtype=torch.int32)
        return Batch(*(torch.cat([*parts, padding], dim=1) for parts in fields.values()))

    return join
