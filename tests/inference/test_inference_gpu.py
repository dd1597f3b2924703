"""On CUDA the engine answers as on the processor, through recorded passes and its own kernel."""

import copy

import numpy as np
import pytest
import torch
from test_inference_batch import check_batches

from glm_dist.inference import Engine, EngineLimits, SamplingSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
TEXTS = ["the list returns", "a [MASK] of items is [MASK] in the [MASK]", "number of " * 60]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "block_tokens"),
    [(4, 2, 8, 16), (4, 1, 16, 8), (8, 8, 32, 64), (6, 2, 24, 16), (16, 2, 128, 16)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_attends_as_the_formula_says(heads, kv_heads, size, block_tokens, dtype):
    from glm_dist.inference.paged_kernel import paged_attention

    torch.manual_seed(0)
    lengths = [(5, 2), (100, 33), (64, 70), (0, 0)]
    pages = torch.randn(64, block_tokens, 2, kv_heads, size, device="cuda", dtype=dtype)
    query = torch.randn(len(lengths), heads, size, device="cuda", dtype=dtype)
    table = torch.zeros(30, len(lengths), dtype=torch.int64)
    spans = torch.zeros(3, len(lengths), dtype=torch.int64)
    expected = torch.zeros(query.shape)
    free = (torch.randperm(63) + 1).tolist()
    for row, (prompt, answer) in enumerate(lengths):
        counts = [-(-tokens // block_tokens) for tokens in (prompt, answer)]
        blocks = [free.pop() for _ in range(sum(counts))]
        table[: len(blocks), row] = torch.tensor(blocks)
        start = counts[0] * block_tokens
        spans[:, row] = torch.tensor([prompt, start, start + answer])
        seen = [*range(prompt), *range(start, start + answer)]
        keys, values = pages[blocks].flatten(0, 1)[seen].float().cpu().unbind(1)
        for head in range(heads if seen else 0):
            shared = head // (heads // kv_heads)
            scores = query[row, head].float().cpu() @ keys[:, shared].T * size**-0.5
            expected[row, head] = scores.softmax(-1) @ values[:, shared]
    found = paged_attention(query, pages, table.cuda(), spans.cuda()).float().cpu()
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


def test_greedy_answers_are_those_of_the_uncached_forward(
    family, tokenizer, make_model, make_request, uncached, collect
):
    model = make_model(family)
    sampling = SamplingSettings(max_tokens=12, num_logprobs=0)
    requests = [make_request(text, str(i), sampling) for i, text in enumerate(TEXTS)]
    engine = Engine(copy.deepcopy(model).cuda(), tokenizer)
    answers = collect(engine.generate(requests))
    for request in requests:
        for blank, (tokens, logprobs) in enumerate(uncached(model, request)):
            got = answers[request.id, 0, blank]
            assert got[0] == tokens
            torch.testing.assert_close(got[1], logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_the_batch(dtype, tokenizer, make_model, random_requests, collect):
    model = make_model("ours").cuda()
    check_batches(model, tokenizer, random_requests, collect, 4, seed=0, dtype=dtype)


def test_recorded_passes_give_the_bits_of_played_ones(
    tokenizer, make_model, random_requests, collect
):
    model = make_model("glm_4").cuda()
    requests = random_requests(np.random.default_rng(1), 12)
    answers = []
    for is_recorded in (True, False):
        engine = Engine(model, tokenizer, EngineLimits(dtype="bfloat16"))
        if not is_recorded:
            engine._runner._recorded = None
        answers.append(collect(engine.generate(requests)))
    assert answers[0] == answers[1]
