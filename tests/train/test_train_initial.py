"""Runs that begin with the weights of another model."""

import json

import pytest
import torch
from foreign_tokenizer import save_tokenizer
from train_scenarios import WORDS, Runner, make_dataset, make_settings

from glm_dist.engine import load_weights
from glm_dist.engine.export import export_model, import_model
from glm_dist.errors import ModelError
from glm_dist.model import build_model
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.initial import check_initial_weights, check_vocabulary, load_initial_weights
from glm_dist.model.settings import HeadSettings
from glm_dist.model.weight_files import WeightFolder
from glm_dist.tokenizer import Tokenizer
from glm_dist.train.initial import build_initial, check_initial


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def first(dataset, tmp_path_factory):
    """A finished run with learned positions."""
    settings = make_settings(dataset, model={"positions": "learned", "max_position_embeddings": 64})
    runner = Runner(dataset, settings, tmp_path_factory.mktemp("first"))
    runner.run()
    return runner


def begun_from(first, **model):
    shape = {"positions": "learned", "max_position_embeddings": 64, **model}
    return make_settings(first.dataset, model=shape, init_from=str(first.folder))


def heldout(runner):
    lines = (runner.folder / "metrics.jsonl").read_text().splitlines()
    return [line["heldout/loss"] for line in map(json.loads, lines) if "heldout/loss" in line]


def test_a_run_begins_where_the_other_model_ended(first, tmp_path):
    settings = begun_from(first)
    check_initial(settings, first.dataset.tokenizer)
    again = Runner(first.dataset, settings, tmp_path)
    again.run()
    assert heldout(again)[0] == pytest.approx(heldout(first)[-1], rel=1e-6)
    assert heldout(again)[0] < heldout(first)[0]


def test_longer_tables_keep_their_rows_and_draw_the_others(first, caplog):
    settings = begun_from(first, max_position_embeddings=96, pad_vocab_multiple=512)
    check_initial(settings, first.dataset.tokenizer)
    assert "position_embeddings.weight has 65 rows there and gets 97" in caplog.text
    weights, old = build_initial(settings).state_dict(), load_weights(first.folder / "model")
    table = weights["transformer.position_embeddings.weight"]
    assert torch.equal(table[:65], old["transformer.position_embeddings.weight"])
    assert 0.01 < table[65:].std() < 0.03
    rows = first.dataset.tokenizer.vocab_size
    words = weights["word_embeddings.weight"]
    assert words.shape[0] == 512
    assert torch.equal(words[:rows], old["word_embeddings.weight"][:rows])


def test_another_shape_is_refused_by_each_name(first):
    settings = begun_from(first, ffn_hidden_size=64)
    with pytest.raises(ModelError, match=r"dense_h_to_4h.weight is .* and should be \[64, 32\]"):
        check_initial(settings, first.dataset.tokenizer)
    with pytest.raises(ModelError, match="position_embeddings.weight is unknown"):
        check_initial(begun_from(first, positions="rotary_2d"), first.dataset.tokenizer)


def test_a_vocabulary_that_means_something_else_is_refused():
    check_vocabulary(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ModelError, match=r"token 1 is 'b' there and 'x'.*tokenizer_path"):
        check_vocabulary(["a", "b"], ["a", "x"])


def test_a_published_model_is_trained_on_with_its_own_tokenizer(tmp_path):
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    block = {**shape, "ffn_hidden_size": 48, "preset": "glm-4-9b", "max_position_embeddings": 64}
    published = tmp_path / "published"
    import transformers

    config = transformers.GlmConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        vocab_size=512,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    transformers.GlmForCausalLM(config).save_pretrained(published)
    save_tokenizer(published, WORDS)
    import_model(published, tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    dataset = make_dataset(tmp_path / "data", tokenizer)
    assert dataset.tokenizer.sha256 == tokenizer.sha256
    settings = make_settings(dataset, model=block, init_from=str(tmp_path / "ours"))
    check_initial(settings, dataset.tokenizer)
    runner = Runner(dataset, settings, tmp_path / "run")
    runner.run()
    assert heldout(runner)[-1] < heldout(runner)[0]
    export_model(runner.folder, tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = " ".join(WORDS)
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist()
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").dtype


def test_a_classifier_begins_with_the_layers_of_a_language_model_and_a_new_head(first):
    folder = WeightFolder(first.folder / "model")
    head = {"kind": "sequence_classification", "labels": ["good", "bad"]}
    settings = first.settings.model.model_copy(update={"head": HeadSettings(**head)})
    check_initial_weights(folder, our_shapes(settings), with_head=False)
    model, drawn = build_model(settings), build_model(settings)
    load_initial_weights(model, folder, first.dataset.tokenizer.vocab_size, with_head=False)
    assert torch.equal(model.score.weight, drawn.score.weight)
    name = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    assert torch.equal(model.get_parameter(name), folder[name])
    with pytest.raises(ModelError, match=r"score\.weight is missing"):
        check_initial_weights(folder, our_shapes(settings), with_head=True)
