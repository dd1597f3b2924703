import math

import pytest
import torch

from glm_dist.model import GLM, build_model, initialise_parameter


def run_grads(settings, batch, seed=0):
    model = build_model(settings)
    torch.manual_seed(seed)
    output = model(*batch)
    output.loss_sum.backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_initial_weights_have_the_published_statistics(tiny):
    settings = tiny(num_layers=4, hidden_size=256, vocab_size=2000)
    if settings.residual == "deepnorm":
        pytest.skip("DeepNorm's initial weights have a test of their own")
    for name, parameter in build_model(settings).named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "layernorm" in name:
            assert (parameter == 1).all(), name
        else:
            is_residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / math.sqrt(8) if is_residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(parameter.mean().item()) < expected / 50, name


def test_initial_weights_depend_on_seed_and_name_alone(tiny):
    settings = tiny()
    model, other = build_model(settings), build_model(tiny(init_seed=5))
    backwards = GLM(settings)
    torch.rand(3)
    for name, parameter in reversed(list(backwards.named_parameters())):
        initialise_parameter(name, parameter, settings)
    state = model.state_dict()
    for name, parameter in backwards.state_dict().items():
        assert torch.equal(parameter, state[name]), name
    name = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    assert not torch.equal(state[name], state[name.replace("layers.0", "layers.1")])
    assert not torch.equal(state[name], other.state_dict()[name])


def test_checkpointing_gives_the_same_loss_and_gradients_even_with_dropout(tiny, make_sample):
    batch = make_sample(1, 20, 10)
    dropout = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "embedding_dropout": 0.2}
    expected, grads = run_grads(tiny(**dropout), batch)
    output, again = run_grads(tiny(**dropout, activation_checkpointing="full"), batch)
    assert torch.equal(output.loss_sum, expected.loss_sum)
    for name, grad in grads.items():
        torch.testing.assert_close(again[name], grad, msg=name)


def test_dropout_acts_in_training_only(tiny, make_sample):
    batch = make_sample(1, 20, 10)
    model = build_model(tiny(hidden_dropout=0.5, attention_dropout=0.5))
    assert model(*batch).loss_sum != model(*batch).loss_sum
    model.eval()
    assert model(*batch).loss_sum == model(*batch).loss_sum


def test_gradient_shrink_scales_the_input_path_alone(tiny, make_sample):
    batch = make_sample(1, 20, 10)
    plain, whole = run_grads(tiny(), batch)
    shrunk, small = run_grads(tiny(embedding_gradient_shrink=0.25), batch)
    half, middle = run_grads(tiny(embedding_gradient_shrink=0.5), batch)
    assert torch.equal(plain.loss_sum, shrunk.loss_sum)
    name = "word_embeddings.weight"
    for other in whole.keys() - {name}:
        torch.testing.assert_close(small[other], whole[other], msg=other)
    # head + share * input is a straight line in the share
    torch.testing.assert_close(
        (whole[name] - small[name]) / 0.75,
        (middle[name] - small[name]) / 0.25,
        rtol=1e-4,
        atol=1e-5,
    )
    unseen = torch.ones(len(whole[name]), dtype=torch.bool)
    unseen[batch.tokens.flatten()] = False
    torch.testing.assert_close(small[name][unseen], whole[name][unseen])
    assert not torch.allclose(small[name], whole[name])


def test_a_few_steps_learn_a_batch_by_heart(tiny, make_sample):
    batch = make_sample(1, 20, 10)
    model = build_model(tiny())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(*batch).loss_sum.item()
    for _ in range(90):
        optimizer.zero_grad()
        loss = model(*batch).loss_sum
        loss.backward()
        optimizer.step()
    assert first / 10 == pytest.approx(math.log(100), abs=0.5)
    assert loss.item() < 0.1 * first


def test_bf16_follows_fp32_within_its_rounding(tiny, make_sample):
    batch = make_sample(1, 20, 10)
    expected, grads = run_grads(tiny(), batch)
    model = build_model(tiny()).bfloat16()
    output = model(*batch)
    output.loss_sum.backward()
    assert output.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-2)
    for name, parameter in model.named_parameters():
        want = grads[name]
        error = (parameter.grad.float() - want).norm()
        assert error <= 0.05 * want.norm() + 1e-3, name
