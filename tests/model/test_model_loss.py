import pytest
import torch
from torch.nn import functional as F

from glm_dist.model.loss import LossOptions, loss_rows, tied_cross_entropy

VOCAB, PADDED, HIDDEN = 93, 96, 16


def inputs(dtype=torch.float32, rows=5, length=40, bearing=0.3):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype).requires_grad_()
    hidden = torch.randn(rows, length, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCAB, (rows, length), generator=generator, dtype=torch.int32)
    mask = (torch.rand(rows, length, generator=generator) < bearing).to(torch.uint8)
    return weight, hidden, targets, mask


def plain(weight, hidden, targets, mask):
    logits = F.linear(hidden, weight)[..., :VOCAB].float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
    losses = losses.view(mask.shape) * mask
    return losses.sum(), losses


def chunked(weight, hidden, targets, mask, *, gather, chunk_tokens, **extra):
    rows = loss_rows(mask) if gather else None
    chosen = hidden.flatten(0, 1)[rows] if gather else hidden
    options = LossOptions(VOCAB, chunk_tokens, **extra)
    output = tied_cross_entropy(weight, chosen, targets, mask, rows, options=options)
    return output.loss_sum, output.token_losses


def run(function, dtype=torch.float32, scale=0.37, bearing=0.3, **options):
    weight, hidden, targets, mask = inputs(dtype, bearing=bearing)
    loss, losses = function(weight, hidden, targets, mask, **options)
    (loss * scale).backward()
    return loss.detach(), losses.detach(), weight.grad, hidden.grad


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("chunk_tokens", [7, 64, 1024])
def test_chunked_loss_and_gradients_equal_the_plain_ones(gather, chunk_tokens):
    expected = run(plain)
    for got, want in zip(
        run(chunked, gather=gather, chunk_tokens=chunk_tokens), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gather", [True, False])
def test_half_precision_stays_within_its_rounding(gather):
    got = run(chunked, torch.bfloat16, gather=gather, chunk_tokens=16)
    want = run(plain, torch.bfloat16)
    assert got[0].dtype == torch.float32
    assert got[2].dtype == got[3].dtype == torch.bfloat16
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_padded_columns_get_no_probability_and_no_gradient():
    _, _, weight_grad, _ = run(chunked, gather=True, chunk_tokens=16)
    assert not weight_grad[VOCAB:].any()
    assert weight_grad[:VOCAB].any(dim=1).all()


@pytest.mark.parametrize("gather", [True, False])
def test_no_loss_bearing_token_gives_zeros_not_nothing(gather):
    loss, losses, weight_grad, hidden_grad = run(
        chunked, bearing=0.0, gather=gather, chunk_tokens=8
    )
    for result in (loss, losses, weight_grad, hidden_grad):
        assert result is not None
        assert not result.any()


def test_without_gradients_the_losses_are_the_same():
    weight, hidden, targets, mask = inputs()
    with torch.no_grad():
        loss, losses = chunked(weight, hidden, targets, mask, gather=False, chunk_tokens=16)
    assert not loss.requires_grad
    torch.testing.assert_close(losses, plain(weight, hidden, targets, mask)[1].detach())


def test_all_logits_never_exist_at_once(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda h, w: seen.append(len(h)) or linear(h, w))
    run(chunked, gather=False, chunk_tokens=32)
    assert max(seen) == 32
    assert sum(seen) == 200


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_smoothing_and_z_loss_are_minimised_but_not_reported(gather, smoothing, z_loss):
    def written_out(weight, hidden, targets, mask):
        logits = F.linear(hidden, weight)[..., :VOCAB]
        smoothed = F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten().long(),
            reduction="none",
            label_smoothing=smoothing,
        )
        penalty = z_loss * logits.logsumexp(-1) ** 2
        total = ((smoothed.view(mask.shape) + penalty) * mask).sum()
        return total, plain(weight, hidden, targets, mask)[1]

    extra = {"label_smoothing": smoothing, "z_loss": z_loss}
    got = run(chunked, torch.float64, gather=gather, chunk_tokens=16, **extra)
    for ours, theirs in zip(got, run(written_out, torch.float64), strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6, atol=1e-6)


def test_without_gradients_nothing_is_added_to_the_cross_entropy():
    weight, hidden, targets, mask = inputs()
    extra = {"label_smoothing": 0.2, "z_loss": 1e-2}
    with torch.no_grad():
        loss, _ = chunked(weight, hidden, targets, mask, gather=True, chunk_tokens=16, **extra)
    torch.testing.assert_close(loss, plain(weight, hidden, targets, mask)[0].detach())


def test_a_frozen_table_gets_no_gradient_and_hidden_states_the_same():
    _, _, _, expected = run(chunked, gather=True, chunk_tokens=16)
    weight, hidden, targets, mask = inputs()
    weight.requires_grad_(False)
    loss, _ = chunked(weight, hidden, targets, mask, gather=True, chunk_tokens=16)
    (loss * 0.37).backward()
    assert weight.grad is None
    assert torch.equal(hidden.grad, expected)
