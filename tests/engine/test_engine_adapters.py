"""Adapters train alike under every engine, and checkpoints hold them without the model."""

import adapter_scenarios as adapters
import pytest
from distributed import run_ranks

from glm_dist.model.tuning import is_added


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two ranks found."""
    pytest.importorskip("peft")
    return run_ranks(2, adapters.adapter_life, str(tmp_path_factory.mktemp("adapters")))


@pytest.fixture(params=adapters.TUNINGS)
def kind(request):
    return request.param


def test_the_twin_computes_what_torch_computes(found, kind):
    expected = adapters.plain_steps(kind, 5)
    assert found[0][kind, "twin"]["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "backend"), adapters.LIVES)
def test_losses_and_norms_equal_the_twins(found, kind, backend):
    twin, other = found[0][kind, "twin"], found[0][kind, backend]
    assert other["losses"] == pytest.approx(twin["losses"], rel=1e-6)
    assert other["norms"] == pytest.approx(twin["norms"], rel=1e-5)
    assert other["evaluated"] == pytest.approx(twin["evaluated"], rel=1e-6)


@pytest.mark.parametrize("kind", adapters.NARROW)
def test_zero_3_stays_close_to_the_twin_in_bf16(found, kind):
    twin, zero3 = found[0][kind, "narrow"]
    assert zero3 == pytest.approx(twin, rel=5e-3)


def test_checkpoints_and_results_hold_what_was_added_alone(found, kind):
    expected = {
        name: p
        for name, p in adapters.build(kind).named_parameters()
        if is_added(name) or not adapters.TUNINGS[kind].is_adapter
    }
    num_trained = sum(p.numel() for p in expected.values() if p.requires_grad)
    for backend in (backend for name, backend in adapters.LIVES if name == kind):
        life = found[0][kind, backend]
        assert life["saved"] == life["weights"].keys() == expected.keys()
        for name, p in expected.items():
            assert (life["weights"][name] == p.flatten().tolist()) is not p.requires_grad
        shares = 1 if backend in ("twin", "zero0") else 2
        assert life["bytes"] == pytest.approx(12 * num_trained / shares, rel=0.05)


@pytest.mark.parametrize(("kind", "move"), adapters.RESUMES)
def test_a_checkpoint_continues_the_curve_on_any_stage(found, kind, move):
    expected = found[0][kind, move[0]]["losses"][2:]
    assert found[0][kind, move] == pytest.approx(expected, rel=1e-6)
    if move[0] == move[1]:
        assert found[0][kind, move] == expected
