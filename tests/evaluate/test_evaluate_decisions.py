"""A decision that is explained is the one that the answer was chosen by."""

import numpy as np
import pytest

from glm_dist.errors import ConfigError
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.decisions import decision_of
from glm_dist.evaluate.explain import explain
from glm_dist.model import ModelSettings, build_model
from glm_dist.tasks import TASKS, Answer, Binding, build_task
from glm_dist.tasks.examples import Example
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

TEXTS = ["a good story of one man", "a dull story of one dog in town"]


@pytest.fixture(scope="module")
def tokenizer():
    words = "the film was really a good great bad dull story of one man and his dog in town".split()
    texts = [" ".join(words[start:] + words[:start]) for start in range(len(words))] * 10
    return train_tokenizer(texts, TokenizerSettings(vocab_size=400))


def task_of(tokenizer, **changes):
    settings = TASKS["classification"].Settings(labels=["0", "1"], **changes)
    examples = [Example({"text": text, "label": str(n)}, "") for n, text in enumerate(TEXTS)]
    complete = TASKS["classification"].complete(settings, examples)
    return build_task(complete, Binding(tokenizer, 64)), examples


def model_of(task, tokenizer):
    settings = ModelSettings(
        preset=None,
        num_layers=1,
        hidden_size=32,
        num_heads=2,
        vocab_size=tokenizer.vocab_size,
        head=task.head,
    )
    return build_model(settings).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "head"},
        {"patterns": ["{text} It was [MASK]."], "verbalizers": {"0": "bad", "1": "great"}},
    ],
)
def test_log_odds_are_those_of_the_answer(tokenizer, changes):
    task, examples = task_of(tokenizer, **changes)
    model = model_of(task, tokenizer)
    for example, answer in zip(
        examples, Answerer(model, tokenizer, task).answer(examples), strict=True
    ):
        decision = decision_of(task, example, answer)
        found = explain(model, tokenizer, decision, answer.value)
        assert task.labels[decision.chosen] == answer.value
        if task.settings.method == "head":  # by cloze an answer's odds hold its later tokens too
            odds = np.log(max(answer.probabilities) / min(answer.probabilities))
            assert found.log_odds == pytest.approx(odds, abs=1e-3)
        assert found.gap < 0.02
        assert set(example.text("text").split()) & {token.strip() for token in found.tokens}


def test_words_with_a_common_beginning_are_told_apart_where_they_differ(tokenizer):
    words = {"0": "really bad", "1": "really great"}
    task, examples = task_of(tokenizer, patterns=["[MASK]: {text}"], verbalizers=words)
    decision = decision_of(task, examples[0], Answer("1"))
    bad, great = (tokenizer.encode(word) for word in words.values())
    shared = next(n for n, (a, b) in enumerate(zip(bad, great, strict=False)) if a != b)
    assert shared > 0
    assert decision.sample.tokens[decision.place] == great[shared - 1]
    assert decision.answers == [bad[shared], great[shared]]


def test_what_one_token_does_not_decide_is_refused(tokenizer):
    words = {"0": "good", "1": "good story"}
    task, examples = task_of(tokenizer, patterns=["[MASK]: {text}"], verbalizers=words)
    with pytest.raises(ConfigError, match="begin alike"):
        decision_of(task, examples[0], Answer("0"))
    dialogue = build_task(TASKS["dialogue"].Settings())
    with pytest.raises(ConfigError, match="dialogue chooses among no labels"):
        decision_of(dialogue, examples[0], Answer("0"))
