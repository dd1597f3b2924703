import subprocess
import sys

import pytest
import torch

from glm_dist.config import dump_config, load_config
from glm_dist.errors import ConfigError
from glm_dist.model import GLM, PRESETS, ModelSettings

PUBLISHED = {  # GLM_SPEC 2.1, in millions
    "glm-base": 109.3,
    "glm-large": 334.7,
    "glm-410m": 410.3,
    "glm-515m": 514.6,
    "glm-roberta-large": 354.9,
    "glm-large-chinese": 355.7,
    "glm-2b": 1920,
    "glm-10b": 9880,
    "glm-10b-chinese": 9880,
    "glm-130b": 128_700,
    "chatglm-6b": 6708,
    "chatglm2-6b": 6240,
    "chatglm3-6b": 6240,
    "glm-4-9b": 9400,
}


def count_on_meta(settings):
    with torch.device("meta"):
        model = GLM(settings)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("preset", "millions"), PUBLISHED.items())
def test_published_presets_have_the_published_number_of_parameters(preset, millions):
    settings = ModelSettings(preset=preset)
    tolerance = 0.05 if millions < 1000 else max(5, millions / 1000)
    assert count_on_meta(settings) / 1e6 == pytest.approx(millions, abs=tolerance)
    assert settings.padded_vocab_size == settings.vocab_size


@pytest.mark.parametrize("preset", PRESETS)
def test_the_formula_counts_what_the_model_has(preset):
    settings = ModelSettings(preset=preset).with_vocab_size(5001)
    assert settings.num_parameters == count_on_meta(settings)


def test_position_tables_have_one_row_more_than_positions():
    with torch.device("meta"):
        model = GLM(ModelSettings(preset="glm-base"))
    assert model.transformer.position_embeddings.weight.shape == (513, 768)
    assert model.transformer.block_position_embeddings.weight.shape == (513, 768)


def test_the_defaults_are_the_default_preset():
    fields = ModelSettings.model_fields
    bare = {name: fields[name].default for name in fields}
    assert dict(ModelSettings()) == bare


def test_fields_beside_a_preset_win_and_the_mlp_follows_the_width():
    settings = ModelSettings(preset="glm-base", hidden_size=384)
    assert (settings.num_layers, settings.hidden_size) == (12, 384)
    assert settings.ffn_hidden_size == 4 * 384
    assert settings.attention_dropout == 0.1


def test_a_dump_reads_back_to_the_same_settings(tmp_path):
    settings = ModelSettings(preset="glm-mini", ffn_hidden_size=500).with_vocab_size(777)
    path = tmp_path / "model.yaml"
    path.write_text(dump_config(settings))
    assert load_config(ModelSettings, path) == settings


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("preset=glm-larg", "did you mean 'glm-large'?"),
        ("num_heads=5", "hidden_size 192 is not a multiple of num_heads 5"),
        ("num_kv_heads=3", "num_heads 4 is not a multiple of num_kv_heads 3"),
        ("head_dim=6", "rotary_2d turns pairs of elements, and heads of 6 are not a multiple of 4"),
        ("num_layers=0", "num_layers: got 0"),
        ("attention_dropout=1.5", "attention_dropout: got 1.5"),
        ("atention=sdpa", "did you mean 'attention'?"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(override, expected):
    with pytest.raises(ConfigError, match="^(?s:.*)$") as caught:
        load_config(ModelSettings, overrides=[override])
    assert expected in str(caught.value)


def test_flex_attention_with_dropout_is_refused():
    with pytest.raises(ConfigError, match="set it to 0, or attention to auto or sdpa"):
        load_config(ModelSettings, overrides=["attention=flex", "attention_dropout=0.1"])


def test_rows_longer_than_the_position_tables_are_refused():
    settings = ModelSettings(max_position_embeddings=128)
    settings.check_sequence_length(128)
    with pytest.raises(ValueError, match="sequence length 129 .* 128"):
        settings.check_sequence_length(129)


def test_settings_load_without_torch():
    code = "import sys; from glm_dist.model import ModelSettings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
