"""Which sizes of a pass round alike is tried, and nothing else is used."""

import numpy as np
import pytest
import torch

from glm_dist.inference import Engine, EngineLimits, SamplingSettings
from glm_dist.inference.alike import alike_sizes


@pytest.fixture
def model(make_model):
    return make_model("ours", num_layers=1)


def test_sizes_whose_rows_differ_in_a_bit_are_left_out(model):
    rows = torch.randn(8, 5)

    def compute(size):
        outputs = rows[torch.arange(size) % 8].clone()
        if size == 32:
            outputs[17, 3] = torch.nextafter(outputs[17, 3], torch.tensor(9.0))
        if size == 4:
            outputs[0, 0] = -outputs[0, 0]
        return outputs

    assert alike_sizes(model, compute, 8, (2, 4, 16, 32, 64)) == (2, 8, 16, 64)


def test_a_size_is_alike_where_the_reference_gives_no_number(model):
    rows = torch.full((8, 2), torch.nan, dtype=torch.float32)
    found = alike_sizes(model, lambda size: rows[torch.arange(size) % 8], 8, (4, 16), "nan")
    assert found == (4, 8, 16)


def test_what_was_tried_is_not_tried_again(model):
    tried = []

    def compute(size):
        tried.append(size)
        return torch.zeros(size, 1)

    for key in ("a", "a", "b"):
        alike_sizes(model, compute, 8, (16,), key)
    assert tried == [8, 16, 8, 16]


def test_an_engine_that_found_no_other_size_answers_the_same(
    family, tokenizer, make_model, random_requests, collect, monkeypatch
):
    model = make_model(family)
    requests = random_requests(np.random.default_rng(4), 12, longest=150)
    expected = collect(Engine(model, tokenizer).generate(requests))
    monkeypatch.setattr("glm_dist.inference.runner.DECODE_SIZES", ())
    monkeypatch.setattr("glm_dist.inference.runner.PREFILL_SIZES", ())
    engine = Engine(model, tokenizer)
    assert engine._runner.max_decode_rows == engine.limits.decode_rows
    assert collect(engine.generate(requests)) == expected


def test_free_shapes_fill_nothing_up_and_give_nearly_the_same(
    tokenizer, make_model, make_request, collect
):
    model = make_model("glm_4")
    fixed, free = (
        Engine(model, tokenizer, EngineLimits(fixed_shapes=fixed)) for fixed in (True, False)
    )
    shapes, head = [], free._runner._head
    free._runner._head = lambda hidden: shapes.append(len(hidden)) or head(hidden)
    sampling = SamplingSettings(max_tokens=6, num_logprobs=0, ignore_eos=True)
    requests = [make_request(text, text, sampling) for text in ("the list", "a number of")]
    [(_, logprobs, *_), _] = collect(fixed.generate(requests)).values()
    [(_, found, *_), _] = collect(free.generate(requests)).values()
    torch.testing.assert_close(logprobs, found, rtol=1e-4, atol=1e-4)
    assert set(shapes) <= {1, 2}
