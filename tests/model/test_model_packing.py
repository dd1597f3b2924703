import pytest
import torch

from glm_dist.model import build_model
from glm_dist.objective import dense_mask

SHAPES = [(9, 4), (20, 7), (3, 12), (30, 1)]


def grads(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def samples(make_sample):
    return [make_sample(seed, *shape) for seed, shape in enumerate(SHAPES)]


@pytest.fixture
def model(tiny):
    model = build_model(tiny(init_std=0.2))
    for parameter in model.parameters():  # so that no bias or norm is a neutral element
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return model


def test_packed_samples_have_the_logits_they_have_alone(model, samples, pack):
    def logits(batch):
        mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None]
        return model.logits(
            model.hidden_states(batch.tokens, batch.position_ids, batch.block_position_ids, mask)
        )

    packed = logits(pack(samples, length=100))
    start = 0
    for sample in samples:
        end = start + sample.tokens.shape[1]
        torch.testing.assert_close(packed[:, start:end], logits(sample), rtol=1e-5, atol=1e-5)
        start = end


@pytest.mark.parametrize("length", [86, 120])
def test_packed_samples_have_the_losses_and_gradients_they_have_alone(model, samples, pack, length):
    packed = model(*pack(samples, length))
    packed.loss_sum.backward()
    together = grads(model)
    model.zero_grad()
    alone = [model(*sample) for sample in samples]
    sum(output.loss_sum for output in alone).backward()
    losses = torch.cat([output.token_losses for output in alone], dim=1)
    torch.testing.assert_close(packed.token_losses[:, : losses.shape[1]], losses)
    for name, grad in grads(model).items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(together[name], grad, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_part_a_sees_both_ways_and_part_b_only_back(model, make_sample):
    sample = make_sample(0, part_a=6, part_b=4)
    with torch.no_grad():
        before = model(*sample).token_losses
        for changed, affected in ((5, range(6, 10)), (8, (8, 9))):
            tokens = sample.tokens.clone()
            tokens[0, changed] += 1
            after = model(*sample._replace(tokens=tokens)).token_losses
            different = (after != before)[0].nonzero().flatten().tolist()
            assert different == list(affected)


def test_a_batch_without_loss_gives_every_parameter_a_zero_gradient(model, make_sample):
    sample = make_sample(0, part_a=6, part_b=4)
    output = model(*sample._replace(loss_mask=torch.zeros_like(sample.loss_mask)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0
    for name, grad in grads(model).items():
        assert not grad.any(), name
