#!/usr/bin/env python3
"""Work out the self-attention of one sentence: positions, shapes of Q, K and V, a heat map.

python jobs/attention.py model=runs/RUN text='A list [MASK] its items.' answer='holds'
"""

import argparse
import sys
from typing import TYPE_CHECKING

from _job import model_path, run_job
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.errors import ConfigError

if TYPE_CHECKING:
    from glm_dist.evaluate.attention import Attended
    from glm_dist.objective import Sample
    from glm_dist.tokenizer import Tokenizer

SHOWN = 4


class AttentionSettings(Settings):
    """Which model looks at which sentence."""

    model: str
    """A finished run or model folder; below GLM_DIST_HOME if relative."""
    text: str = Field(min_length=1)
    """The sentence; `[MASK]` where the answer was, if there is one."""
    answer: str | None = None
    """What is generated at the mask: each of its tokens sees the text and those before it."""
    layer: int = Field(1, ge=1)
    """Which layer; the one that reads the word embeddings is 1."""
    output: str = "attention"
    """Folder of the pictures; below GLM_DIST_HOME if relative."""


def main(settings: AttentionSettings, arguments: argparse.Namespace) -> int:
    """Lay out the sentence, run the model, print the layer's shapes and draw who sees whom."""
    from glm_dist.evaluate.attention import attended, seen
    from glm_dist.evaluate.attention_picture import draw_attention
    from glm_dist.inference import load_model

    model, tokenizer = load_model(model_path(settings.model))
    sample = sample_of(settings, tokenizer, model.settings.max_position_embeddings)
    num_layers = model.settings.num_layers
    if settings.layer > num_layers:
        raise ConfigError(f"layer: got {settings.layer}; the model has layers 1 to {num_layers}")
    layer = attended(model, sample)[settings.layer - 1]
    tokens = [tokenizer.piece(int(token)) for token in sample.tokens]
    print_sample(tokens, sample)
    print_layer(layer, settings.layer, model.settings.hidden_size)
    print_looks(tokens, layer)
    folder = output_path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"layer-{settings.layer}.svg"
    titles = [f"head {head + 1}" for head in range(len(layer.shares))]
    draw_attention(path, tokens, layer.shares.numpy(), seen(model, sample)[0, 0].numpy(), titles)
    print(f"picture      {path}")
    return 0


def sample_of(settings: AttentionSettings, tokenizer: "Tokenizer", longest: int) -> "Sample":
    """The sentence as a sample: Part A, and Part B where there is an answer.

    Raises:
        ConfigError: when there is an answer and no mask, or no room for all tokens.
    """
    import numpy as np

    from glm_dist.objective import (
        BlankInfillSettings,
        ObjectiveSettings,
        labelled_sample,
        supervised_sample,
    )

    special = tokenizer.special
    masked = tokenizer.encode_masked(settings.text)
    text = np.array([special.enc, *masked.tokens], dtype=np.int32)
    if settings.answer is None:
        sample = labelled_sample(text, [0], [0])
    elif not len(masked.places):
        raise ConfigError(
            "text: has no [MASK] where the answer was; put one in, or leave answer out"
        )
    else:
        infill = BlankInfillSettings(ObjectiveSettings(), special, tokenizer.sentence_end)
        answer = tokenizer.encode_answer(settings.answer, masked.behind_space[-1])
        sample = supervised_sample(text, answer, infill)
    if len(sample.tokens) > longest:
        raise ConfigError(f"text: is {len(sample.tokens)} tokens long; the model reads {longest}")
    return sample


def print_sample(tokens: list[str], sample: "Sample") -> None:
    """Each token with its two positions."""
    size = max(len(token) for token in tokens) + 2
    print(f"{'token':<{size}} part  position  in its blank")
    places = zip(tokens, sample.position_ids, sample.block_position_ids, strict=True)
    for number, (token, position, block) in enumerate(places):
        part = "A" if number < sample.part_a_length else "B"
        print(f"{token:<{size}} {part:<5} {position:>8} {block:>13}")


def print_layer(layer: "Attended", number: int, hidden_size: int) -> None:
    """The shapes that a layer computes in."""
    heads, length, size = layer.query.shape
    print(f"\nlayer {number}: {length} tokens of {hidden_size} numbers each")
    for name, states in (("Q", layer.query), ("K", layer.key), ("V", layer.value)):
        print(f"  {name:<12} {list(states.shape)}   heads, tokens, numbers of a head")
    print(f"  Q Kᵀ / √{size:<4} [{heads}, {length}, {length}]   how well each query meets each key")
    print(f"  softmax      {list(layer.shares.shape)}   each row sums to 1")
    print(f"  softmax V    {list(layer.output.shape)}   joined again to [{length}, {hidden_size}]")


def print_looks(tokens: list[str], layer: "Attended") -> None:
    """Where each token looks most, in the mean over heads."""
    print("\nlooks most at, mean over heads")
    size = max(len(token) for token in tokens) + 2
    for token, shares in zip(tokens, layer.shares.mean(dim=0), strict=True):
        values, places = shares.topk(min(SHOWN, len(tokens)))
        pairs = zip(places.tolist(), values.tolist(), strict=True)
        looks = ", ".join(f"{tokens[place].strip()} {value:.2f}" for place, value in pairs if value)
        print(f"  {token:<{size}} {looks}")


if __name__ == "__main__":
    sys.exit(run_job(main, AttentionSettings, description=__doc__ or ""))
