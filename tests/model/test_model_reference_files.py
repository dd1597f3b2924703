"""Checkpoints of the 2021 reference, split over model-parallel ranks, are the model they were."""

import pytest
import torch

from glm_dist.engine.export import import_model
from glm_dist.errors import ModelError
from glm_dist.inference.load import read_model
from glm_dist.model import ModelSettings, build_model

RANKS = 2


@pytest.fixture
def model():
    shape = {"num_layers": 2, "hidden_size": 128, "num_heads": 2, "ffn_hidden_size": 96}
    settings = ModelSettings(
        preset=None, **shape, vocab_size=128, positions="learned", max_position_embeddings=33
    )
    model = build_model(settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def share(name, weight, rank):
    """What a rank of the reference keeps: heads, columns and rows of its own (mpu/layers.py)."""
    if "query_key_value" in name:
        by_head = weight.view(3, 2, 64, *weight.shape[1:])  # q, k, v; heads; their width
        return by_head[:, rank].reshape(3 * 64, *weight.shape[1:])
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return weight[:, rank * weight.shape[1] // 2 :][:, : weight.shape[1] // 2]
    if "dense_h_to_4h" in name or name == "word_embeddings.weight":
        return weight[rank * len(weight) // 2 :][: len(weight) // 2]
    return weight


def write_ranks(folder, model):
    folder.mkdir()
    for rank in range(RANKS):
        state = {name: share(name, w, rank).clone() for name, w in model.state_dict().items()}
        wrapped = {"module": state, "iteration": 7, "optimizer": None}
        torch.save(wrapped, folder / f"mp_rank_{rank:02d}_model_states.pt")


def test_ranks_are_joined_to_the_model_they_were_cut_from(model, tmp_path):
    write_ranks(tmp_path / "cut", model)
    settings = import_model(tmp_path / "cut", tmp_path / "ours")
    assert (settings.num_heads, settings.positions) == (2, "learned")
    found, expected = read_model(tmp_path / "ours").state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_that_would_run_code_is_not_opened(tmp_path):
    folder = tmp_path / "cut"
    folder.mkdir()
    torch.save({"module": {"word_embeddings.weight": Trap()}}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin: is not opened.*more than weights"):
        import_model(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


class Trap:
    def __reduce__(self):
        return (print, ("the trap is sprung",))


def test_files_of_several_checkpoints_are_refused_by_name(model, tmp_path):
    write_ranks(tmp_path / "cut", model)
    path = tmp_path / "cut" / "mp_rank_01_model_states.pt"
    state = torch.load(path, weights_only=True)
    state["module"]["another.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"mp_rank_01_model_states.pt: another.weight is not in"):
        import_model(tmp_path / "cut", tmp_path / "ours")
