import torch

from glm_dist.inference import Engine, SamplingSettings

TEXTS = [
    "the list returns",
    "a [MASK] of items is [MASK] in the [MASK]",
    "[MASK] value [sMASK]",
    "the " + "list returns a number of items when " * 5 + "[gMASK]",
]


def test_greedy_answers_are_those_of_the_uncached_forward(
    family, tokenizer, make_model, make_request, uncached, collect
):
    model = make_model(family)
    sampling = SamplingSettings(max_tokens=12, num_logprobs=0)
    requests = [make_request(text, str(i), sampling) for i, text in enumerate(TEXTS)]
    answers = collect(Engine(model, tokenizer).generate(requests))
    for request in requests:
        for blank, (tokens, logprobs) in enumerate(uncached(model, request)):
            got = answers[request.id, 0, blank]
            assert got[0] == tokens
            torch.testing.assert_close(got[1], logprobs, rtol=1e-4, atol=1e-4)
