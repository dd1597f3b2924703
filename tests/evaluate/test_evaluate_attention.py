"""Attention that is written out is that of the model."""

import numpy as np
import pytest
import torch
from finetune_scenarios import small_tokenizer

from glm_dist.evaluate.attention import attended, embedded, hidden_states, seen
from glm_dist.model import ModelSettings, build_model
from glm_dist.model.attention import dense_attend
from glm_dist.objective import BlankInfillSettings, ObjectiveSettings, supervised_sample


@pytest.mark.parametrize("causal", [False, True])
def test_rows_sum_to_one_and_give_what_the_model_computes(causal):
    tokenizer = small_tokenizer()
    special = tokenizer.special
    prompt = np.array([special.enc, *tokenizer.encode("the old"), special.mask], dtype=np.int32)
    infill = BlankInfillSettings(ObjectiveSettings(), special, tokenizer.sentence_end)
    sample = supervised_sample(prompt, tokenizer.encode("man"), infill)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}
    model = build_model(
        ModelSettings(preset=None, causal=causal, vocab_size=tokenizer.vocab_size, **shape)
    ).eval()
    layers = attended(model, sample)
    assert len(layers) == 2
    mask = seen(model, sample)[0, 0]
    for layer in layers:
        assert torch.allclose(layer.shares.sum(-1), torch.ones(4, len(sample.tokens)))
        assert not layer.shares[:, ~mask].any()
    words = embedded(model, torch.from_numpy(sample.tokens))[None]
    outputs = []

    def attend(query, key, value):
        outputs.append(dense_attend(seen(model, sample))(query, key, value)[0])
        return outputs[-1][None]

    with torch.no_grad():
        hidden_states(model, sample, words, attend)
    for layer, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(layer.output, output, atol=1e-5, rtol=1e-4)
    is_prefix = bool(mask[0, sample.part_a_length - 1])
    assert is_prefix is not causal
