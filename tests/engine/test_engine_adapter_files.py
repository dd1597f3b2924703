"""Adapters leave in peft's format, are merged without loss, and stand beside one model only."""

import json
import shutil

import pytest
import torch
import transformers

from glm_dist.engine import save_weights
from glm_dist.engine.adapter_export import export_adapter
from glm_dist.engine.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    AdapterFolder,
    hash_model,
    save_adapter,
)
from glm_dist.engine.export import export_model
from glm_dist.errors import ModelError
from glm_dist.inference.load import read_model
from glm_dist.model import ModelSettings, build_model
from glm_dist.model.tuning import apply_tuning, is_added
from glm_dist.model.tuning_settings import TuningSettings

SHAPE = {"num_layers": 2, "hidden_size": 48, "num_heads": 6, "ffn_hidden_size": 80}
SHAPE |= {"vocab_size": 90, "pad_vocab_multiple": 32, "init_std": 0.15, "num_kv_heads": 2}
PREFIX = ModelSettings(preset="glm-tiny", **SHAPE)
LABELS = {"kind": "sequence_classification", "labels": ["no", "perhaps", "yes"]}
CLASSIFIER = ModelSettings(preset="glm-tiny", **SHAPE, head=LABELS)
CAUSAL_CLASSIFIER = ModelSettings(preset="glm-4-9b", **SHAPE, head_dim=8, head=LABELS)
CAUSAL = ModelSettings(preset="glm-4-9b-0414", **SHAPE, head_dim=8)
TUNINGS = {
    "lora": TuningSettings(kind="lora", rank=4, dropout=0.3),
    "dora": TuningSettings(kind="dora", rank=3, targets=["*.attention.*", "dense_4h_to_h"]),
    "p_tuning": TuningSettings(kind="p_tuning", num_prefix_tokens=5),
    "projected": TuningSettings(kind="p_tuning", num_prefix_tokens=5, prefix_projection=True),
}
LOW_RANK = ("lora", "dora")
TOKENS = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(1))


class Tuned:
    """A model with an adapter whose every weight was moved, and both in folders."""

    def __init__(self, folder, settings, tuning, has_new_head=False):
        self.base, self.adapter = folder / "base", folder / "adapter"
        config = {"model": settings.model_dump(mode="json"), "name": "test"}
        model = build_model(settings)
        weights = model.state_dict()
        if has_new_head:
            del weights["score.weight"]
        save_weights(self.base, weights)
        (self.base / "config.json").write_text(json.dumps(config))
        self.model = apply_tuning(model, tuning).eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        trained = {n: p.detach() for n, p in self.model.named_parameters() if is_added(n)}
        base = {"folder": str(self.base), "sha256": hash_model(self.base)}
        config |= {"tuning": tuning.model_dump(mode="json"), "base": base}
        save_adapter(self.adapter, trained, config)

    def logits(self):
        return logits(self.model)


@torch.no_grad()
def logits(model):
    """Of TOKENS read causally."""
    seen = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    places = torch.arange(12).expand(2, 12)
    hidden = model.hidden_states(TOKENS, places, torch.zeros_like(places), seen)
    return model.logits(hidden)[..., :90]


def opened(folder, opener=transformers.AutoModelForCausalLM):
    """The exported model; classes of GLM-4 take its vocabulary's padding for granted."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 0}))
    return opener.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(params=TUNINGS)
def kind(request):
    if request.param in LOW_RANK:
        pytest.importorskip("peft")
    return request.param


@pytest.fixture(params=[PREFIX, CAUSAL], ids=["prefix", "causal"])
def settings(request):
    return request.param


@pytest.mark.parametrize("is_new", [False, True], ids=["a head of the base", "a new head"])
def test_a_head_that_was_trained_beside_an_adapter_comes_back_with_it(tmp_path, kind, is_new):
    tuned = Tuned(tmp_path, CLASSIFIER, TUNINGS[kind], is_new)
    found = logits(read_model(tuned.adapter))
    assert found.shape == (2, 12, 3)
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_peft_opens_an_adapter_with_its_head(tmp_path, kind):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, CLASSIFIER, TUNINGS[kind])
    export_model(tuned.base, tmp_path / "export")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "export", trust_remote_code=True
    )
    model = peft.PeftModel.from_pretrained(theirs, tuned.adapter).eval()
    assert isinstance(model, peft.PeftModelForSequenceClassification)
    places = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        found = model(input_ids=TOKENS).logits
        hidden = tuned.model.hidden_states(TOKENS, places, torch.zeros_like(places), None)
        expected = tuned.model.logits(hidden[:, 0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_loaded_adapter_computes_what_the_tuned_model_does(tmp_path, settings, kind):
    tuned = Tuned(tmp_path, settings, TUNINGS[kind])
    found = logits(read_model(tuned.adapter))
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)
    assert (found - logits(read_model(tuned.base))).abs().max() > 0.1


@pytest.mark.parametrize("kind", LOW_RANK)
def test_the_merged_model_opens_in_transformers_and_computes_alike(tmp_path, settings, kind):
    pytest.importorskip("peft")
    tuned = Tuned(tmp_path, settings, TUNINGS[kind])
    export_model(tuned.adapter, tmp_path / "export")
    with torch.no_grad():
        found = opened(tmp_path / "export")(TOKENS).logits
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_peft_itself_opens_the_adapter_on_the_exported_base(tmp_path, kind):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, PREFIX, TUNINGS[kind])
    export_model(tuned.base, tmp_path / "export")
    model = peft.PeftModel.from_pretrained(opened(tmp_path / "export"), tuned.adapter).eval()
    with torch.no_grad():
        found = model(input_ids=TOKENS).logits
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)
    config = json.loads((tuned.adapter / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(tuned.base)


@pytest.mark.parametrize("kind", TUNINGS)
def test_peft_opens_an_exported_adapter_on_transformers_own_class(tmp_path, kind):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, CAUSAL, TUNINGS[kind])
    export_model(tuned.base, tmp_path / "export")
    export_adapter(tuned.adapter, tmp_path / "adapter-export")
    base = opened(tmp_path / "export")
    assert type(base) is transformers.Glm4ForCausalLM
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter-export").eval()
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TUNINGS)
def test_peft_opens_an_exported_classifier_on_transformers_own_class(tmp_path, kind):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, CAUSAL_CLASSIFIER, TUNINGS[kind])
    export_model(tuned.base, tmp_path / "export")
    export_adapter(tuned.adapter, tmp_path / "adapter-export")
    base = opened(tmp_path / "export", transformers.AutoModelForSequenceClassification)
    assert type(base) is transformers.GlmForSequenceClassification
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter-export").eval()
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    expected = logits(tuned.model)[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_an_exported_adapter_of_our_own_class_opens_too(tmp_path, kind):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, PREFIX, TUNINGS[kind])
    export_model(tuned.base, tmp_path / "export")
    export_adapter(tuned.adapter, tmp_path / "adapter-export")
    base = opened(tmp_path / "export")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter-export").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, tuned.logits(), rtol=1e-4, atol=1e-4)


def test_the_job_exports_an_adapter_merged_or_by_itself(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    import export

    tuned = Tuned(tmp_path, PREFIX, TUNINGS["lora"])
    shutil.move(tuned.base, tmp_path / "moved")

    def job(*arguments):
        command = ["export.py", "--model", str(tuned.adapter), *map(str, arguments)]
        monkeypatch.setattr("sys.argv", command)
        return export.main(), capsys.readouterr()

    code, said = job("--output", tmp_path / "merged")
    assert code == 2
    assert "base model" in said.err
    assert job("--output", tmp_path / "merged", "--base", tmp_path / "moved")[0] == 0
    assert job("--output", tmp_path / "alone", "--adapter")[0] == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {ADAPTER_CONFIG, ADAPTER_FILE}


def test_a_prefix_that_no_exported_class_takes_is_refused(tmp_path):
    tuned = Tuned(tmp_path, PREFIX, TUNINGS["p_tuning"])
    with pytest.raises(ModelError, match="takes no keys and values from outside"):
        export_adapter(tuned.adapter, tmp_path / "adapter-export")


def test_a_prefix_is_seen_by_all_tokens_and_moves_no_position(tmp_path):
    """As transformers computes with these keys and values in its cache, and positions from 0."""
    tuned = Tuned(tmp_path, CAUSAL, TUNINGS["p_tuning"])
    export_model(tuned.base, tmp_path / "export")
    theirs = opened(tmp_path / "export")
    prefix = AdapterFolder(tuned.adapter).prefix
    layers = prefix.view(5, 2, 2, 2, 8).permute(1, 2, 3, 0, 4)  # P, L, key or value, heads, D
    cache = transformers.DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), number)
    places = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        found = theirs(TOKENS, position_ids=places, past_key_values=cache).logits
    torch.testing.assert_close(found, tuned.logits(), rtol=1e-4, atol=1e-4)


def test_the_layout_of_a_prefix_is_pefts(tmp_path):
    peft = pytest.importorskip("peft")
    tuned = Tuned(tmp_path, PREFIX, TUNINGS["projected"])
    config = peft.PeftConfig.from_pretrained(tuned.adapter)
    theirs = peft.PrefixEncoder(config)
    theirs.load_prompt_embeddings(AdapterFolder(tuned.adapter).prefix)
    flat = theirs(torch.arange(5)[None])
    heads = config.num_attention_heads
    size = config.token_dim // heads
    expected = flat.view(1, 5, config.num_layers * 2, heads, size).permute(2, 0, 3, 1, 4).split(2)
    for ours, layer in zip(tuned.model.prefix_encoder(), expected, strict=True):
        torch.testing.assert_close(ours, layer[:, 0])


def test_p_tuning_cannot_be_merged_and_the_error_says_so(tmp_path):
    tuned = Tuned(tmp_path, PREFIX, TUNINGS["p_tuning"])
    with pytest.raises(ModelError, match="cannot be merged"):
        export_model(tuned.adapter, tmp_path / "export")


def test_an_adapter_finds_its_base_where_it_is_said_to_be_and_takes_no_other(tmp_path):
    pytest.importorskip("peft")
    tuned = Tuned(tmp_path, PREFIX, TUNINGS["lora"])
    expected = logits(read_model(tuned.adapter))
    shutil.move(tuned.base, tmp_path / "moved")
    with pytest.raises(ModelError, match=r"base model .*base is not there.*--base"):
        read_model(tuned.adapter)
    assert torch.equal(logits(read_model(tuned.adapter, tmp_path / "moved")), expected)
    save_weights(
        tmp_path / "moved", build_model(PREFIX.model_copy(update={"init_seed": 5})).state_dict()
    )
    with pytest.raises(ModelError, match="other weights"):
        read_model(tuned.adapter, tmp_path / "moved")


def test_an_adapter_with_a_tensor_missing_is_refused_by_name(tmp_path):
    tuned = Tuned(tmp_path, PREFIX, TUNINGS["p_tuning"])
    (tuned.adapter / ADAPTER_FILE).unlink()
    with pytest.raises(ModelError, match=ADAPTER_FILE):
        read_model(tuned.adapter)
    config = json.loads((tuned.adapter / "config.json").read_text())
    save_weights(tuned.adapter, {"prompt_embeddings": torch.zeros(4, 64)})
    (tuned.adapter / "model.safetensors").rename(tuned.adapter / ADAPTER_FILE)
    with pytest.raises(ModelError, match=r"prompt_embeddings is \[4, 64\] and should be \[5, 64\]"):
        read_model(tuned.adapter)
    assert config["tuning"]["num_prefix_tokens"] == 5
