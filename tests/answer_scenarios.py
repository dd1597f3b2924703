"""A small model for every kind of task, with examples to ask it about."""

import random

from finetune_scenarios import FILLER, GOOD

from glm_dist.model import ModelSettings, build_model
from glm_dist.tasks import TASKS, Binding, build_task
from glm_dist.tasks.examples import Example

CASES = {
    "cloze": ("classification", {"verbalizers": {"x": "good", "y": "bad dull", "z": "man"}}),
    "head": ("classification", {"method": "head"}),
    "multi_label": ("multi_label", {}),
    "labelling": ("labelling", {}),
    "translation": ("translation", {"decoding": {"max_tokens": 6}}),
    "beams": (
        "translation",
        {
            "decoding": {
                "max_tokens": 6,
                "num_beams": 3,
                "length_penalty": 0.5,
                "no_repeat_ngram": 2,
            }
        },
    ),
    "infilling": ("infilling", {"decoding": {"max_tokens": 4}}),
    "dialogue": ("dialogue", {"decoding": {"max_tokens": 6}}),
    "reply_choice": ("reply_choice", {}),
    "mixture": (
        "mixture",
        {
            "tasks": {
                "kinds": {"kind": "classification", "verbalizers": {"x": "good", "y": "bad dull"}},
                "turned": {"kind": "translation", "decoding": {"max_tokens": 6}},
            }
        },
    ),
}


def examples_of(kind, count=12):
    """Of very different lengths, so that batches are padded."""
    rng, found = random.Random(0), []
    for number in range(count):
        words = rng.choices([*FILLER, *GOOD], k=4 + 3 * (number % 12))
        text = " ".join(words)
        tags = [rng.choice(["O", "B-A", "I-A"]) for _ in words]
        fields = {
            "classification": {"text": text, "label": "xyz"[number % 3]},
            "multi_label": {"text": text, "labels": list("xyz"[number % 3 : 1 + number % 5])},
            "labelling": {
                "tokens": words,
                "tags": tags,
            },
            "translation": {"source": text, "target": "a dog"},
            "infilling": {"text": text},
            "dialogue": {"messages": [text, "a dog"]},
            "reply_choice": {"messages": [text, "a dog"], "candidates": ["a dog", "man", text]},
        }
        fields["mixture"] = (
            {"task": "turned", **fields["translation"]}
            if number % 2
            else {"task": "kinds", **fields["classification"]}
        )
        found.append(Example(fields[kind], f"line {number}"))
    return found


def tuned(case, tokenizer, count=12):
    """A model of random weights, its task, and so many examples."""
    kind, settings = CASES[case]
    examples = examples_of(kind, count)
    complete = TASKS[kind].complete(TASKS[kind].Settings(**settings), examples)
    task = build_task(complete, Binding(tokenizer, 128))
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "init_std": 0.5}
    shape |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    model = build_model(ModelSettings(preset=None, **shape, head=task.head)).eval()
    return model, task, examples
