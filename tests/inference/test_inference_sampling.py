import numpy as np
import pytest
import torch

from glm_dist.inference.sampling import NUM_CANDIDATES, Rule, Sampler, noise_key

FREE = Sampler(torch.zeros(8, dtype=torch.bool))


def draws(sampler, logits, rule, count, rows=50):
    """Tokens that many keys draw from the same logits [V]."""
    tokens = []
    for start in range(0, count, rows):
        keys = [noise_key(7, 0, 0, start + row) for row in range(rows)]
        choices = sampler.choose(logits.expand(rows, -1).clone(), [rule] * rows, keys)
        tokens += [choice.token for choice in choices]
    return np.array(tokens)


def allowed(logits, rule):
    """The tokens that the limits leave, by their definition, in float64."""
    scaled = logits.double() / rule.temperature
    order = scaled.argsort(descending=True, stable=True)
    if rule.top_k:
        order = order[: rule.top_k]
    shares = scaled[order].softmax(-1)
    kept, total = [], 0.0
    for token, share in zip(order.tolist(), shares.tolist(), strict=True):
        if total >= rule.top_p and kept:
            break
        total += share
        if share >= rule.min_p * float(shares[0]):
            kept.append(token)
    return kept


@pytest.mark.parametrize(
    "rule",
    [
        Rule(temperature=1.0),
        Rule(temperature=0.5),
        Rule(temperature=1.0, top_k=3),
        Rule(temperature=1.3, top_p=0.7),
        Rule(temperature=1.0, min_p=0.2),
        Rule(temperature=2.0, top_k=6, top_p=0.8, min_p=0.1),
    ],
)
def test_draws_follow_the_softmax_of_what_the_limits_leave(rule):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.9, -3.0, 1.9, 0.0])
    count = 20_000
    tokens = draws(FREE, logits, rule, count)
    kept = allowed(logits, rule)
    shares = np.zeros(8)
    shares[kept] = (logits.double() / rule.temperature)[kept].softmax(-1)
    seen = np.bincount(tokens, minlength=8)
    assert set(np.flatnonzero(seen)) == set(kept)
    error = np.sqrt(shares * (1 - shares) / count)
    assert (np.abs(seen / count - shares) <= 4.5 * error).all()


@pytest.mark.parametrize("rule", [Rule(1.0, top_p=0.6), Rule(1.0, top_k=1500), Rule(1.0)])
def test_limits_past_the_candidates_hold_too(rule):
    size = 3 * NUM_CANDIDATES
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.3
    kept = allowed(logits, rule)
    assert len(kept) > NUM_CANDIDATES
    tokens = draws(Sampler(torch.zeros(size, dtype=torch.bool)), logits, rule, 3000)
    assert set(tokens) <= set(kept)
    assert len(set(tokens) - set(logits.topk(NUM_CANDIDATES).indices.tolist())) > 100


def test_a_row_is_drawn_alike_beside_any_others():
    generator = torch.Generator().manual_seed(1)
    size = 2 * NUM_CANDIDATES
    sampler = Sampler(torch.arange(size) % 7 == 0)
    logits = torch.randn(16, size, generator=generator)
    rng = np.random.default_rng(0)
    rules = [
        Rule(
            temperature=float(rng.choice([0, 0.8, 1.5])),
            top_k=int(rng.choice([0, 10])),
            top_p=float(rng.choice([1.0, 0.95, 0.5])),
            min_p=float(rng.choice([0, 0.01])),
            num_logprobs=int(rng.integers(4)),
        )
        for _ in range(16)
    ]
    keys = [noise_key(1, 2, 3, row) for row in range(16)]
    together = sampler.choose(logits, rules, keys)
    for row in range(16):
        mixed = torch.randn(16, size, generator=generator)
        place = int(rng.integers(16))
        mixed[place] = logits[row]
        others, other_keys = [None] * 16, [0] * 16
        others[place], other_keys[place] = rules[row], keys[row]
        assert sampler.choose(mixed, others, other_keys)[place] == together[row]
    assert all(choice.token % 7 for choice in together)


def test_logprobs_are_the_models_own_whatever_is_forbidden():
    sampler = Sampler(torch.tensor([True] + 7 * [False]))
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, 0.5, -1.0, -2.0, 1.5]])
    [choice] = sampler.choose(logits, [Rule(num_logprobs=3)], [0])
    expected = logits[0].double().log_softmax(-1)
    assert choice.token == 2
    assert choice.logprob == pytest.approx(float(expected[2]), abs=1e-6)
    assert [each.token for each in choice.alternatives] == [2, 7, 1]
    assert choice.alternatives[1].logprob == pytest.approx(float(expected[7]), abs=1e-6)


def test_keys_differ_in_every_coordinate():
    keys = {noise_key(*place) for place in np.ndindex(6, 6, 6, 6)}
    assert len(keys) == 6**4


def test_noise_at_neighbouring_places_is_independent():
    logits = torch.zeros(8)
    tokens = draws(FREE, logits, Rule(1.0), 40_000)
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
    expected = (len(tokens) - 1) / 64
    assert ((pairs - expected) ** 2 / expected).sum() < 120  # 63 degrees; p is about 2e-5
