"""Patterns say what is frozen, and mistakes in them are named."""

import pytest

from glm_dist.errors import ConfigError
from glm_dist.model import ModelSettings
from glm_dist.model.tuning import meta_model
from glm_dist.model.tuning_settings import TuningSettings

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
