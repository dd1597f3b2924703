import pytest

from glm_dist.errors import ModelError
from glm_dist.inference import GenerationSettings, Generator
from glm_dist.model import ModelSettings, TuningSettings, build_model
from glm_dist.model.tuning import apply_tuning


@pytest.fixture(scope="module", params=["rotary_2d", "ours", "glm_4", "130b", "p_tuning"])
def generator(request, make_model, tokenizer):
    family = "ours" if request.param == "p_tuning" else request.param
    model = make_model(family, max_position_embeddings=128)
    if request.param == "p_tuning":
        apply_tuning(model, TuningSettings(kind="p_tuning", num_prefix_tokens=3))
    return Generator(model, tokenizer)


TEXTS = ["the list returns", "a [MASK] of items is [MASK] in the [MASK]", "[MASK] value [MASK]"]


def test_greedy_blanks_are_those_of_the_uncached_forward(generator, make_request, uncached):
    settings = GenerationSettings(max_new_tokens=12)
    for text in TEXTS:
        [generation] = generator.generate([text], settings)
        request = make_request(text, sampling=settings.sampling)
        answers = [tokens for tokens, _ in uncached(generator.model, request)]
        assert generation.blanks == [generator.tokenizer.decode(tokens) for tokens in answers]


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


def test_each_text_may_have_settings_of_its_own(generator):
    each = [GenerationSettings(temperature=1.5, seed=seed) for seed in range(len(TEXTS))]
    together = generator.generate(TEXTS, each)
    for text, settings, generation in zip(TEXTS, each, together, strict=True):
        assert generator.generate([text], settings) == [generation]


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
