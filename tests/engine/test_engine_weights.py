"""Weights leave as safetensors, whole or not at all."""

import engine_scenarios as scenarios
import pytest
import torch

from glm_dist.engine import Catalogue, load_weights, save_weights
from glm_dist.engine.checkpoint import read_weights
from glm_dist.errors import CheckpointError


def test_weights_come_back_as_they_were(tmp_path):
    weights = {"a": torch.randn(3, 4).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    path = save_weights(tmp_path / "model", weights, {"source": "test"})
    assert path.name == "model.safetensors"
    for found in (load_weights(path), load_weights(tmp_path / "model")):
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        load_weights(tmp_path)


def test_a_checkpoint_of_several_ranks_gives_whole_weights(life):
    for backend in scenarios.BACKENDS:
        checkpoint = Catalogue(life.folder / backend).newest()
        weights = read_weights(checkpoint)
        assert weights["embedding.weight"].shape == (scenarios.VOCABULARY, scenarios.WIDTH)
        twin = read_weights(Catalogue(life.folder / "twin").newest())
        for name, tensor in twin.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)
