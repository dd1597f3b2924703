"""A model leaves as a folder that transformers opens, and comes back bit for bit."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from glm_dist.engine import save_weights
from glm_dist.engine.export import export_model, import_model
from glm_dist.errors import ModelError
from glm_dist.inference import Generator, load_model
from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = [
    "The list returns its items in order.\n",
    "Der Wert bleibt außerhalb; naïve façade, 漢字 😀\tend.",
    "  two  spaces, [MASK-like] text and numbers 3.14159",
] * 40
SHAPE = {"num_layers": 2, "hidden_size": 48, "num_heads": 6, "ffn_hidden_size": 80}
MODELS = {
    "prefix": {"preset": "glm-tiny", "num_kv_heads": 2},
    "glm": {"preset": "glm-4-9b", "num_kv_heads": 2, "head_dim": 8},
    "glm4": {"preset": "glm-4-9b-0414", "num_kv_heads": 2, "head_dim": 8},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=400))


@pytest.fixture(params=MODELS)
def model(request, tmp_path, tokenizer):
    """A finished model's folder."""
    settings = ModelSettings(**{**MODELS[request.param], **SHAPE}).with_vocab_size(
        tokenizer.vocab_size
    )
    folder = tmp_path / "model"
    save_weights(folder, build_model(settings).state_dict())
    tokenizer.save(folder)
    config = {"model": settings.model_dump(mode="json"), "name": request.param}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_exported_model_is_opened_as_it_lies(model, tmp_path):
    export_model(model, tmp_path / "export")
    (before, tokenizer), (after, found) = load_model(model), load_model(tmp_path / "export")
    assert found.sha256 == tokenizer.sha256
    texts = ["The list [MASK] its items.", "Der Wert"]
    expected, again = (Generator(each, tokenizer).generate(texts) for each in (before, after))
    assert again == expected
    export_model(tmp_path / "export", tmp_path / "twice")
    names = [path.name for path in (tmp_path / "twice").glob("*.safetensors")]
    for name in names:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "export" / name).read_bytes()


def test_an_export_whose_weights_do_not_fit_is_refused_by_name(model, tmp_path):
    config = export_model(model, tmp_path / "export")
    field = "num_hidden_layers" if "num_hidden_layers" in config else "num_layers"
    (tmp_path / "export" / "config.json").write_text(json.dumps({**config, field: 3}))
    with pytest.raises(ModelError, match="do not fit config.json: .* is missing"):
        load_model(tmp_path / "export")


def test_an_exported_model_comes_back_as_it_was(model, tmp_path, tokenizer):
    config = export_model(model, tmp_path / "export")
    before, _ = load_model(model)
    import_model(tmp_path / "export", tmp_path / "back")
    after, found_tokenizer = load_model(tmp_path / "back")
    assert found_tokenizer.sha256 == tokenizer.sha256
    rows = tokenizer.vocab_size
    found, expected = after.state_dict(), before.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        is_table = name in ("word_embeddings.weight", "output_layer.weight")
        kept = expected[name][:rows] if is_table else expected[name]
        assert torch.equal(found[name], kept), name
    assert config["model_type"] in ("glm_prefix", "glm", "glm4")
    mode = (tmp_path / "export" / "model.safetensors").stat().st_mode
    assert mode & stat.S_IRGRP  # others on shared storage can read it


def test_the_exported_tokenizer_gives_the_same_ids_and_texts(model, tmp_path, tokenizer):
    export_model(model, tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    for text in TEXTS[:3]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert theirs.mask_token_id == tokenizer.special.mask
    assert theirs.convert_ids_to_tokens(tokenizer.special.gmask) == "[gMASK]"


def test_weights_can_leave_in_another_precision(model, tmp_path):
    assert export_model(model, tmp_path / "export", torch.bfloat16)["dtype"] == "bfloat16"
    import_model(tmp_path / "export", tmp_path / "back")
    after, _ = load_model(tmp_path / "back")
    assert all(torch.equal(w, w.bfloat16().float()) for w in after.state_dict().values())


def test_nothing_is_overwritten_and_nothing_half_is_left(model, tmp_path):
    (tmp_path / "export").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        export_model(model, tmp_path / "export")
    with pytest.raises(ModelError, match=r"config.json: cannot be read"):
        import_model(tmp_path / "nowhere", tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "export"}


def test_the_jobs_say_where_things_lie_and_what_went_wrong_in_a_sentence(model, tmp_path):
    def job(name, *arguments):
        command = [sys.executable, f"jobs/{name}.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    export = ("--model", model, "--output", tmp_path / "export")
    assert f"exported     {tmp_path / 'export'}" in job("export", *export).stdout
    again = job("export", *export)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: ")
    assert "Traceback" not in again.stderr
    done = job("import_model", "--source", tmp_path / "export", "--output", tmp_path / "back")
    assert f"imported     {tmp_path / 'back'}" in done.stdout
