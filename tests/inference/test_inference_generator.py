import numpy as np
import pytest
import torch

from glm_dist.errors import ModelError
from glm_dist.inference import GenerationSettings, Generator
from glm_dist.model import ModelSettings, TuningSettings, build_model
from glm_dist.model.tuning import apply_tuning
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

WORDS = "the list returns a number of items when the given value is not in a range".split()


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, size=12)) for _ in range(400)]
    return train_tokenizer(lines, TokenizerSettings(vocab_size=320))


FAMILIES = {
    "rotary_2d": {},
    "ours": {"norm": "rmsnorm", "mlp": "swiglu", "num_kv_heads": 2, "bias": "none"},
    "causal": {"positions": "rotary_half", "num_kv_heads": 1, "head_dim": 16, "causal": True},
    "deepnorm": {"residual": "deepnorm", "positions": "rotary_1d", "tied_embeddings": False},
    "p_tuning": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def generator(request, tokenizer):
    settings = ModelSettings(
        preset=None,
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=128,
        init_std=0.5,
        **FAMILIES[request.param],
    )
    model = build_model(settings)
    if request.param == "p_tuning":
        apply_tuning(model, TuningSettings(kind="p_tuning", num_prefix_tokens=3))
    return Generator(model, tokenizer)


def uncached(generator, text, settings):
    """The same procedure without a cache: the whole sequence through the model at every step."""
    special = generator.tokenizer.special
    prompt = generator.encode(text)
    masks = np.flatnonzero(np.isin(prompt, generator._mask_ids))
    tokens, positions, blocks = prompt.tolist(), list(range(len(prompt))), [0] * len(prompt)
    blanks = []
    for place in masks:
        answer, token, block = [], special.sop, 1
        while True:
            tokens, positions, blocks = [*tokens, token], [*positions, place], [*blocks, block]
            length = len(tokens)
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            if not generator.model.settings.causal:
                mask[:, : len(prompt)] = True
            inputs = [torch.tensor([values]) for values in (tokens, positions, blocks)]
            with torch.inference_mode():
                hidden = generator.model.hidden_states(*inputs, mask[None, None])
                logits = generator.model.logits(hidden[0, -1])
            token = int(logits.masked_fill(generator._forbidden, -torch.inf).argmax())
            if token in (special.eop, special.eos):
                break
            answer.append(token)
            if block == settings.max_new_tokens:
                break
            block += 1
        blanks.append(answer)
    return [generator.tokenizer.decode(answer) for answer in blanks]


TEXTS = ["the list returns", "a [MASK] of items is [MASK] in the [MASK]", "[MASK] value [MASK]"]


def test_cached_decoding_equals_the_uncached_forward(generator):
    settings = GenerationSettings(max_new_tokens=12)
    for text in TEXTS:
        [generation] = generator.generate([text], settings)
        assert generation.blanks == uncached(generator, text, settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_generated_alike_alone_and_in_a_batch(generator, temperature):
    settings = GenerationSettings(max_new_tokens=10, temperature=temperature, top_p=0.9, seed=3)
    together = generator.generate(TEXTS, settings)
    for text, generation in zip(TEXTS, together, strict=True):
        assert generator.generate([text], settings) == [generation]


def test_sampling_repeats_under_a_seed_and_differs_under_another(generator):
    texts = {
        seed: generator.generate(TEXTS, GenerationSettings(temperature=1.5, seed=seed))
        for seed in (1, 2)
    }
    again = generator.generate(TEXTS, GenerationSettings(temperature=1.5, seed=1))
    assert texts[1] == again
    assert texts[1] != texts[2]


def test_top_k_of_one_is_greedy(generator):
    greedy = generator.generate(TEXTS, GenerationSettings())
    assert generator.generate(TEXTS, GenerationSettings(temperature=2.0, top_k=1)) == greedy


def test_each_mask_gets_an_answer_in_its_place(generator):
    [generation] = generator.generate([TEXTS[1]], GenerationSettings(max_new_tokens=5))
    assert len(generation.blanks) == 3
    filled = TEXTS[1]
    for answer in generation.blanks:
        filled = filled.replace("[MASK]", answer, 1)
    assert generation.text == filled


def test_a_prompt_longer_than_the_model_is_refused_with_both_lengths(generator):
    with pytest.raises(ModelError, match="128 positions"):
        generator.generate(["the list " * 200])


def test_a_classifier_is_refused_with_what_it_does(tokenizer):
    head = {"kind": "token_classification", "labels": ["a person", "a place"]}
    settings = ModelSettings(vocab_size=tokenizer.vocab_size, head=head)
    with pytest.raises(ModelError, match="scores the labels a person, a place and no tokens"):
        Generator(build_model(settings, device="meta"), tokenizer)
