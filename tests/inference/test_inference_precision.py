"""Precisions: how far they are from float32, and whether they fit into memory."""

import json

import pytest
import torch

from glm_dist.engine import save_weights
from glm_dist.errors import ModelError
from glm_dist.inference import Engine, EngineLimits, SamplingSettings, open_engine
from glm_dist.inference.precision import compute_dtype, engine_bytes, has_bfloat16
from glm_dist.model import ModelSettings

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path, make_model, tokenizer):
    """A model's folder, its weights in a type."""

    def save(dtype=torch.float32, family="glm_4"):
        model = make_model(family)
        folder = tmp_path / str(dtype)
        save_weights(folder, {name: w.to(dtype) for name, w in model.state_dict().items()})
        config = {"model": model.settings.model_dump(mode="json"), "name": "test"}
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer.save(folder)
        return folder

    return save


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_log_probabilities_stay_near_those_of_float32(
    family, dtype, most, tokenizer, make_model, make_request, collect
):
    model = make_model(family, init_std=0.1)
    sampling = SamplingSettings(max_tokens=1, num_logprobs=20, ignore_eos=True)
    request = make_request("the list returns a number of items [MASK]", sampling=sampling)
    found = {}
    for precision in ("float32", dtype):
        engine = Engine(model, tokenizer, EngineLimits(dtype=precision))
        [(_, _, _, [alternatives], _)] = collect(engine.generate([request])).values()
        found[precision] = {each.token: each.logprob for each in alternatives}
    common = found["float32"].keys() & found[dtype].keys()
    assert len(common) > 10
    apart = [abs(found["float32"][token] - found[dtype][token]) for token in common]
    assert 0 < max(apart) < most


def test_weights_set_the_precision_where_none_is_asked_for(saved):
    for dtype in (torch.float32, torch.bfloat16):
        engine = open_engine(saved(dtype))
        expected = (
            torch.bfloat16 if dtype == torch.bfloat16 and has_bfloat16(CPU) else torch.float32
        )
        assert engine._runner.cache.dtype == expected


def test_each_precision_has_its_type():
    assert compute_dtype("auto", torch.float32, CPU) == torch.float32
    assert compute_dtype("float32", torch.bfloat16, CPU) == torch.float32
    assert compute_dtype("bfloat16", torch.float32, CPU) == torch.bfloat16


def test_an_engine_opened_from_a_folder_answers_as_one_of_the_model(
    saved, tokenizer, make_model, make_request, collect
):
    request = make_request("the list")
    opened = collect(open_engine(saved()).generate([request]))
    assert opened == collect(Engine(make_model("glm_4"), tokenizer).generate([request]))


def test_an_engine_holds_about_what_was_said(make_model, tokenizer):
    settings = make_model("glm_4", num_layers=4, hidden_size=256, init_std=0.02).settings
    model = make_model("glm_4", num_layers=4, hidden_size=256, init_std=0.02)
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        limits = EngineLimits(dtype=dtype, cache_tokens=4096)
        engine = Engine(model, tokenizer, limits)
        weights = sum(p.numel() for p in model.parameters()) * size
        cache = sum(pages.nbytes for pages in engine._runner.cache.layers)
        said = engine_bytes(settings, limits, torch.float32, CPU)
        assert weights + cache < said < 2 * weights + cache + 1


@pytest.mark.parametrize(
    ("free", "message"),
    [(0.9, "largest precision that fits is bfloat16"), (0.01, "no precision fits")],
)
def test_what_does_not_fit_is_refused_before_it_is_read(saved, monkeypatch, free, message):
    folder = saved()
    settings = ModelSettings(**json.loads((folder / "config.json").read_text())["model"])
    needed = engine_bytes(settings, EngineLimits(), torch.float32, CPU)
    monkeypatch.setattr(
        "glm_dist.inference.precision.available_bytes", lambda device: int(free * needed)
    )
    monkeypatch.setattr("glm_dist.inference.load.read_model", pytest.fail)
    with pytest.raises(ModelError, match=message) as error:
        open_engine(folder)
    assert "cache_tokens 32768" in str(error.value)


def test_each_smaller_precision_takes_less():
    settings = ModelSettings(preset="glm-4-9b")
    sizes = [
        engine_bytes(settings, EngineLimits(dtype=dtype), torch.bfloat16, CPU)
        for dtype in ("float32", "bfloat16", "int8")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.85 * sizes[1]
