import pytest
import torch

from glm_dist.errors import ModelError
from glm_dist.model import load_reference_weights
from glm_dist.objective import dense_mask


def golden_grads(golden):
    return {name[5:]: value for name, value in golden.items() if name.startswith("grad.")}


def test_logits_equal_the_references(golden, golden_batch, load_golden):
    model = load_golden().eval()
    mask = dense_mask(golden_batch.segment_ids, golden_batch.prefix_ends)[:, None]
    hidden = model.hidden_states(
        golden_batch.tokens, golden_batch.position_ids, golden_batch.block_position_ids, mask
    )
    torch.testing.assert_close(model.logits(hidden), golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_loss_and_every_gradient_equal_the_references(
    golden, golden_batch, load_golden, checkpointing, chunk_tokens
):
    model = load_golden(activation_checkpointing=checkpointing, loss_chunk_tokens=chunk_tokens)
    loss = model(*golden_batch).loss_sum / golden_batch.loss_mask.sum()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), abs=1e-5)
    grads = golden_grads(golden)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == grads.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=0, atol=1e-5, msg=name)


def test_token_losses_sum_to_the_loss_and_carry_no_gradient(golden_batch, load_golden):
    output = load_golden()(*golden_batch)
    assert output.token_losses.shape == golden_batch.tokens.shape
    assert output.token_losses.dtype == output.loss_sum.dtype == torch.float32
    assert not output.token_losses.requires_grad
    assert not output.token_losses[golden_batch.loss_mask == 0].any()
    torch.testing.assert_close(output.token_losses.sum(), output.loss_sum.detach())


@pytest.mark.parametrize("wrap", [lambda s: {"module": s}, lambda s: {f"glm.{k}": s[k] for k in s}])
def test_wrapped_and_prefixed_checkpoints_load_the_same(golden_batch, load_golden, wrap):
    model = load_golden()
    again = load_reference_weights(wrap(model.state_dict()), num_heads=2)
    assert torch.equal(again(*golden_batch).loss_sum, model(*golden_batch).loss_sum)


def test_numpy_weights_load_and_are_copied(load_golden):
    state = {name: value.numpy() for name, value in load_golden().state_dict().items()}
    model = load_reference_weights(state, num_heads=2)
    state["word_embeddings.weight"][:] = 0
    assert model.word_embeddings.weight.abs().sum() > 0


def test_a_smaller_vocabulary_keeps_the_table_and_shuts_the_rest_out(load_golden):
    model = load_golden(vocab_size=60)
    assert model.word_embeddings.weight.shape[0] == 64
    logits = model.logits(torch.randn(1, 3, 16))
    assert torch.isinf(logits[..., 60:]).all()
    assert torch.isfinite(logits[..., :60]).all()


def test_a_missing_a_foreign_and_a_misshapen_weight_are_all_named(load_golden):
    state = dict(load_golden().state_dict())
    del state["transformer.final_layernorm.bias"]
    state["transformer.extra"] = torch.zeros(1)
    state["transformer.layers.1.attention.dense.weight"] = torch.zeros(16, 8)
    with pytest.raises(ModelError) as caught:
        load_reference_weights(state, num_heads=2)
    for part in ("final_layernorm.bias is missing", "extra is unknown", "[16, 8]", "[16, 16]"):
        assert part in str(caught.value)


def test_unknown_head_count_is_asked_for(load_golden):
    with pytest.raises(ModelError, match="give num_heads"):
        load_reference_weights(load_golden().state_dict())
