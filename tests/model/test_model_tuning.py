"""Patterns say what is trained, and mistakes in them are named."""

import sys

import pytest
import torch

from glm_dist.errors import ConfigError, DependencyError
from glm_dist.model import ModelSettings, TuningSettings, build_model
from glm_dist.model.tuning import apply_tuning, meta_model, rate_share_of, target_names
from glm_dist.model.tuning_settings import LINEAR_MAPS

SETTINGS = ModelSettings(preset=None, num_layers=12, hidden_size=16, num_heads=2, vocab_size=50)


def trained(*patterns):
    model = meta_model(SETTINGS, TuningSettings(frozen=list(patterns)))
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_patterns_are_shell_wildcards_over_whole_names():
    everything = trained()
    left = trained("transformer.layers.[0-8].*", "*layernorm*", "word_embeddings.weight")
    assert left == {
        name
        for name in everything
        if name.startswith(
            ("transformer.layers.9.", "transformer.layers.10.", "transformer.layers.11.")
        )
        and "layernorm" not in name
    }
    assert trained("*.bias") == {name for name in everything if not name.endswith(".bias")}


def test_a_pattern_without_a_match_is_refused_with_close_names_and_all_at_once():
    with pytest.raises(ConfigError) as caught:
        trained("word_embedding.weight", "transformer.layers.12.*", "final_layernorm.*")
    first, second, third = caught.value.problems
    assert first.startswith(
        "tuning.frozen: 'word_embedding.weight' matches no parameter; close to it are "
        "word_embeddings.weight"
    )
    assert (
        "'transformer.layers.12.*' matches no parameter; close to it are transformer.la" in second
    )
    assert "transformer.final_layernorm.weight" in third


def test_a_run_with_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"'\*' leave nothing to train"):
        trained("*")


LOW_RANK = {"kind": "lora", "rank": 4, "alpha": 8}


def hidden_states(model):
    tokens = torch.arange(12).view(2, 6)
    places = torch.arange(6).expand(2, 6)
    return model.hidden_states(tokens, places, torch.zeros_like(places), None)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_begins_as_the_model_it_stands_beside_and_with_the_same_draws(kind):
    pytest.importorskip("peft")
    base = build_model(SETTINGS).eval()
    first = apply_tuning(build_model(SETTINGS), TuningSettings(kind=kind, rank=4)).eval()
    torch.manual_seed(99)
    second = apply_tuning(build_model(SETTINGS), TuningSettings(kind=kind, rank=4))
    torch.testing.assert_close(hidden_states(first), hidden_states(base), rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
        if ".lora_A." in name:
            assert 0.9 * one.shape[1] ** -0.5 < one.abs().max() <= one.shape[1] ** -0.5
        if ".lora_B." in name:
            assert not one.any()


def test_targets_are_last_parts_of_names_or_wildcards_over_whole_ones():
    model = meta_model(SETTINGS, TuningSettings())
    prefix = "transformer.layers"
    assert target_names(model, ["dense"]) == [f"{prefix}.{n}.attention.dense" for n in range(12)]
    assert target_names(model, [f"{prefix}.1[01].mlp.*", f"{prefix}.0.attention.dense"]) == [
        f"{prefix}.0.attention.dense",
        *(f"{prefix}.{n}.mlp.{part}" for n in (10, 11) for part in LINEAR_MAPS[2:]),
    ]
    with pytest.raises(ConfigError, match="'q_proj' matches no linear map; names are such as tr"):
        target_names(model, ["q_proj"])
    with pytest.raises(ConfigError, match="targets: is empty"):
        target_names(model, [])


def test_frozen_patterns_reach_into_adapters():
    pytest.importorskip("peft")
    tuning = TuningSettings(**LOW_RANK, frozen=["*.layers.[0-9].*"])
    model = meta_model(SETTINGS, tuning)
    left = {name for name, p in model.named_parameters() if p.requires_grad}
    assert left == {
        f"transformer.layers.{layer}.{part}.lora_{side}.default.weight"
        for layer in (10, 11)
        for part in (
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        )
        for side in "AB"
    }


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r"pip install 'glm-dist\[tuning\]'"):
        meta_model(SETTINGS, TuningSettings(**LOW_RANK))
    assert meta_model(SETTINGS, TuningSettings(kind="p_tuning")).num_prefix_tokens == 128


def test_settings_without_effect_are_named():
    assert TuningSettings(**LOW_RANK).warnings() == []
    assert TuningSettings(rank=4, num_prefix_tokens=3).warnings() == [
        "tuning.rank: has no effect, because tuning.kind is none",
        "tuning.num_prefix_tokens: has no effect, because tuning.kind is none",
    ]
    assert TuningSettings(kind="p_tuning", alpha=2).warnings() == [
        "tuning.alpha: has no effect, because tuning.kind is p_tuning"
    ]


def test_layers_near_the_text_learn_more_slowly():
    settings = SETTINGS.model_copy(update={"num_layers": 3})
    model = meta_model(settings, TuningSettings(layer_decay=0.5))
    shares = {name: rate_share_of(parameter) for name, parameter in model.named_parameters()}
    assert shares["transformer.final_layernorm.weight"] == 1.0
    for layer, share in enumerate((0.125, 0.25, 0.5)):
        names = [name for name in shares if name.startswith(f"transformer.layers.{layer}.")]
        assert {shares[name] for name in names} == {share}
    assert shares["word_embeddings.weight"] == 0.0625
    same = meta_model(settings, TuningSettings())
    assert {rate_share_of(parameter) for parameter in same.parameters()} == {1.0}
