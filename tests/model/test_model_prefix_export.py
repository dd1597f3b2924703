"""Models that no Hugging Face class covers: opened by a file of their own, without this package."""

import json
import subprocess
import sys

import pytest
import torch

from glm_dist.model import ModelSettings, build_model
from glm_dist.model.huggingface import (
    PREFIX_FILE,
    prefix_config,
    prefix_source,
    without_padding,
)
from glm_dist.model.weight_files import write_folder

SMALL = {"num_layers": 2, "vocab_size": 90, "pad_vocab_multiple": 32, "init_std": 0.15}
NARROW = {"hidden_size": 48, "num_heads": 6, "ffn_hidden_size": 80}
FAMILIES = {
    "GLM 2021": {"preset": "glm-base", **NARROW},
    "our own": {"preset": "glm-tiny", **NARROW, "num_kv_heads": 2, "query_key_norm": True},
    "GLM-130B": {"preset": "glm-130b", **NARROW},
    "ChatGLM-6B": {"preset": "chatglm-6b", **NARROW},
    "GLM-4": {"preset": "glm-4-9b-0414", **NARROW, "head_dim": 8, "num_kv_heads": 3},
}
READER = """
import sys
sys.modules["glm_dist"] = None
import torch
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
given = torch.load(folder + "/given.pt", weights_only=True)
with torch.no_grad():
    logits = model(given["tokens"], given["positions"], given["prefix"]).logits
    padded = torch.nn.functional.pad(given["tokens"], (0, 3))
    places = torch.nn.functional.pad(given["positions"], (0, 3))
    seen = (torch.arange(padded.shape[1]) < given["tokens"].shape[1]).expand(len(padded), -1)
    again = model(padded, places, given["prefix"], seen).logits[:, : -3]
model.save_pretrained(folder + "/again")
torch.save({"logits": logits, "padded": again}, folder + "/found.pt")
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_model_opens_without_this_package_and_computes_alike(tmp_path, family):
    settings = ModelSettings(**SMALL, **FAMILIES[family])
    settings = settings.model_copy(
        update={"embedding_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}
    )
    ours = build_model(settings).eval()
    weights = without_padding(iter(ours.state_dict().items()), settings)
    documents = {
        "config.json": prefix_config(settings, torch.float32),
        PREFIX_FILE: prefix_source(),
    }
    folder = write_folder(tmp_path / "export", weights, documents, shard_bytes=30_000)
    torch.manual_seed(1)
    tokens, prefix = torch.randint(0, 90, (2, 12)), torch.tensor([7, 4])
    index = torch.arange(12)
    in_answer = index >= prefix[:, None]
    places = torch.where(in_answer, torch.tensor([[3], [2]]), index)
    blocks = torch.where(in_answer, index - prefix[:, None] + 1, 0)
    given = {"tokens": tokens, "positions": torch.stack((places, blocks), 1), "prefix": prefix}
    torch.save(given, folder / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(folder / "found.pt", weights_only=True)

    mask = (index <= index[:, None]).expand(2, 12, 12)
    if not settings.causal:
        mask = mask | (index < prefix[:, None])[:, None, :]
    with torch.no_grad():
        hidden = ours.hidden_states(tokens, places, blocks, mask[:, None])
        expected = ours.logits(hidden)[..., :90]
    torch.testing.assert_close(found["logits"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["padded"], expected, rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "again" / "config.json").read_text())["auto_map"]
