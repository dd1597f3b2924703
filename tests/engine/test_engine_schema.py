"""Checkpoints of every released schema load, or are refused with what to do about it.

`python tests/engine/test_engine_schema.py` writes the golden checkpoint of the present schema; that
is done once for each, and never again.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from glm_dist.engine import Catalogue, EngineSettings, build_engine, checkpoint, load_checkpoint
from glm_dist.errors import CheckpointError
from glm_dist.model import Batch, ModelSettings, build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
SHAPE = {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "vocab_size": 16}


def make_engine():
    settings = ModelSettings(preset=None, **SHAPE, pad_vocab_multiple=16)
    options = EngineSettings(backend="torch", dtype="float32")
    return build_engine(lambda: build_model(settings), options)


def step(engine):
    tokens = torch.arange(12).view(1, 12)
    zeros, ones = torch.zeros_like(tokens), torch.ones_like(tokens)
    batch = Batch(tokens, (tokens * 5 + 3) % 16, tokens, zeros, ones, zeros + 12, ones.byte())
    loss = float(engine.backward(batch, 1 / 12, is_last=True).loss_sum.detach())
    engine.prepare()
    engine.apply(1e-2)
    return loss


@pytest.mark.parametrize("schema", range(1, checkpoint.SCHEMA_VERSION + 1))
def test_a_checkpoint_of_a_released_schema_goes_on_as_it_did_then(schema, tmp_path, faults):
    shutil.copytree(GOLDEN / f"schema_{schema}", tmp_path / "run")
    found = Catalogue(tmp_path / "run").newest()
    assert found.step == 3
    engine = make_engine()
    assert load_checkpoint(engine, found) == {"next_row": 24, "note": "三"}
    expected = json.loads((GOLDEN / f"schema_{schema}.json").read_text())
    assert [step(engine) for _ in expected] == pytest.approx(expected, rel=1e-5)
    faults.add("C10", 1, 1)


def test_an_unknown_schema_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", checkpoint.SCHEMA_VERSION + 1)
    Catalogue(tmp_path).save(1, make_engine(), {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="use a release that reads schema"):
        Catalogue(tmp_path).newest()


if __name__ == "__main__":
    golden = make_engine()
    for _ in range(3):
        step(golden)
    name = f"schema_{checkpoint.SCHEMA_VERSION}"
    Catalogue(GOLDEN / name).save(3, golden, {"next_row": 24, "note": "三"})
    (GOLDEN / f"{name}.json").write_text(json.dumps([step(golden) for _ in range(3)]) + "\n")
