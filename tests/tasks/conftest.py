"""A tokenizer for the tasks' tests, and what all of them bind to."""

import pytest

from glm_dist.tasks import TASKS, Binding, build_task
from glm_dist.tasks.examples import Example
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

WORDS = "the film was really a story of one man and his dog in town it good bad great how are you"
CHINESE = "这部电影很好看。我不喜欢它，太长了。北京的天气怎么样？很好差财经体育新闻"


@pytest.fixture(scope="session")
def tokenizer():
    """Knows words and Han characters."""
    words = WORDS.split()
    texts = [" ".join(words[start:] + words[:start]) for start in range(len(words))]
    settings = TokenizerSettings(vocab_size=520, character_coverage=1.0)
    return train_tokenizer([*texts * 10, *[CHINESE] * 50], settings)


@pytest.fixture(scope="session")
def make_task(tokenizer):
    """A task of some kind, completed by the fields of its training examples."""

    def make(kind, examples, *, max_tokens=96, **settings):
        task_class = TASKS[kind]
        shown = [Example(fields, f"line {n}") for n, fields in enumerate(examples, start=1)]
        complete = task_class.complete(task_class.Settings(**settings), shown)
        return build_task(complete, Binding(tokenizer, max_tokens)), shown

    return make
