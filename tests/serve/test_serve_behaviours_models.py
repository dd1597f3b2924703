"""Dialogues as published models read them: equal to plain generation by transformers."""

import pytest
import torch
import transformers
from foreign_tokenizer import save_tokenizer

from glm_dist.engine.export import import_model
from glm_dist.inference import load_model
from glm_dist.serve.templates import ChatTemplate

TEXTS = ["The list returns its items in order.\n", "find", "大學之道，在明明德。"] * 20
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as GLM-4 is published, its model in transformers, and ours with its tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.GlmConfig(
        vocab_size=400, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, intermediate_size=80, max_position_embeddings=512,
        pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.GlmForCausalLM(config).eval()
    theirs.save_pretrained(folder / "theirs")
    save_tokenizer(folder / "theirs", TEXTS)
    import_model(folder / "theirs", folder / "ours")
    model, tokenizer = load_model(folder / "ours")
    return folder / "ours", theirs, model, tokenizer


def test_behaviour_52_a_published_models_turn_is_that_of_transformers(published, serve):
    folder, theirs, model, tokenizer = published
    template = ChatTemplate.of_model(folder, tokenizer, model.settings)
    assert template.name == "glm-4"
    server = serve(model=model, tokenizer=tokenizer, template=template)
    body = {"messages": [{"role": "user", "content": "The list?"}], "temperature": 0}
    tokens = server.http.post("/tokenize", json={"messages": body["messages"]}).json()["tokens"]
    special = tokenizer.special
    assert tokens[:3] == [special.gmask, special.sop, special.user]
    assert tokens[-1] == special.assistant
    reply = server.http.post("/v1/chat/completions", json={**body, "max_tokens": 12}).json()
    ends = {special.eos, special.eop, special.user, special.observation}
    without_text = range(tokenizer.vocab_size, model.settings.padded_vocab_size)
    banned = sorted({*tokenizer.special_ids.tolist(), *without_text} - ends)
    found = theirs.generate(
        torch.tensor([tokens]), max_new_tokens=12, do_sample=False, eos_token_id=sorted(ends),
        suppress_tokens=[token for token in banned if 0 <= token < 400],
    )[0, len(tokens) :].tolist()  # fmt: skip
    is_end = found[-1] in ends
    expected = tokenizer.decode(found[:-1] if is_end else found)
    assert reply["choices"][0]["message"]["content"] == expected
    assert reply["choices"][0]["finish_reason"] == ("stop" if is_end else "length")


def test_behaviour_57_a_published_model_calls_the_tool_it_has_to(published, serve):
    folder, _, model, tokenizer = published
    template = ChatTemplate.of_model(folder, tokenizer, model.settings)
    server = serve(model=model, tokenizer=tokenizer, template=template)
    other = {"type": "function", "function": {"name": "list"}}
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "temperature": 0}
    for choice in ("required", {"type": "function", "function": {"name": "find"}}):
        reply = server.http.post(
            "/v1/chat/completions", json={**body, "tools": [TOOL, other], "tool_choice": choice}
        )
        [call] = reply.json()["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] in ("find", "list")
