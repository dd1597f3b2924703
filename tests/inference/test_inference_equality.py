"""What is trained is what is served: one model, one set of logits, in rows and beside a cache."""

import dataclasses

import pytest
import torch

from glm_dist.inference import Engine, EngineLimits, SamplingSettings
from glm_dist.model import Batch
from glm_dist.model.attention import build_attend

TEXTS = [
    "the list returns a number of items when",
    "a number of [MASK] when the given value is not",
    "[MASK] value is not in a [sMASK] of the items [MASK] a range when the list returns",
    "the [MASK] a [MASK] of [MASK] items [gMASK]",
    " ".join(["the given value is not in a range"] * 9) + " [MASK] items",
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def training_row(requests, answers, special):
    """All texts with their filled blanks as samples of one packed row, and where answers begin.

    A blank's tokens are the targets of `<sop>` and of the tokens before them, behind Part A and the
    blanks before it.
    """
    fields = {name: [] for name in Batch._fields}
    starts = {}
    for segment, request in enumerate(requests, start=1):
        first, count = len(fields["tokens"]), len(request.tokens)
        parts = [(list(request.tokens), [0] * count, list(range(count)), [0] * count, [0] * count)]
        for number, blank in enumerate(request.blanks):
            tokens = answers[request.id, 0, number][0]
            starts[request.id, number] = first + sum(len(part[0]) for part in parts)
            fed, size = [special.sop, *tokens], len(tokens) + 1
            parts.append(
                (fed, [*tokens, special.eop], [blank.place] * size, range(1, size + 1), [1] * size)
            )
        names = ("tokens", "targets", "position_ids", "block_position_ids", "loss_mask")
        for part in parts:
            for name, values in zip(names, part, strict=True):
                fields[name].extend(values)
        size = sum(len(part[0]) for part in parts)
        fields["segment_ids"] += [segment] * size
        fields["prefix_ends"] += [first + count] * size
    return Batch(*(torch.tensor([fields[name]]) for name in Batch._fields)), starts


@torch.no_grad()
def row_logprobs(model, batch):
    """Log-probabilities [S, V] of a packed row, by the layers and the attention of training."""
    ends = torch.zeros_like(batch.prefix_ends) if model.settings.causal else batch.prefix_ends
    attend = build_attend(model.settings, batch.segment_ids, ends, training=False)
    words = model._embed(batch.tokens)
    hidden = model.transformer(words, batch.position_ids, batch.block_position_ids, attend)
    return model.logits(hidden)[0].log_softmax(-1)


@pytest.mark.parametrize("causal", [False, True], ids=["prefix", "causal"])
def test_a_packed_row_and_the_engine_give_equal_logits(
    family, causal, tokenizer, make_model, make_request, collect
):
    """Texts of one blank and of several, chunked where that may be, batched in few slots."""
    model = make_model(family, causal=causal)
    sampling = SamplingSettings(max_tokens=9, num_logprobs=20, ignore_eos=True)
    requests = [make_request(text, str(i), sampling) for i, text in enumerate(TEXTS)]
    engine = Engine(model, tokenizer, EngineLimits(max_running=3, prefill_tokens=64))
    answers = collect(engine.generate(requests))
    batch, starts = training_row(requests, answers, tokenizer.special)
    logprobs = row_logprobs(model, batch)
    with torch.no_grad():
        losses = model(*batch).token_losses.flatten()
    for (request_id, number), start in starts.items():
        tokens, found, _, alternatives, _ = answers[request_id, 0, number]
        places = slice(start, start + len(tokens))
        assert len(tokens) == 9
        torch.testing.assert_close(torch.tensor(found), -losses[places], **CLOSE)
        for place, best in zip(logprobs[places], alternatives, strict=True):
            ids = [each.token for each in best]
            torch.testing.assert_close(
                torch.tensor([each.logprob for each in best]), place[ids], **CLOSE
            )


def test_blanks_side_by_side_are_samples_of_their_own(tokenizer, make_model, make_request, collect):
    """Blanks side by side are samples of their own in training: each sees the text alone."""
    model = make_model("rotary_2d")
    sampling = SamplingSettings(max_tokens=6, num_logprobs=0, ignore_eos=True)
    whole = make_request(TEXTS[3], "a", sampling, is_joint=False)
    answers = collect(Engine(model, tokenizer).generate([whole]))
    singles = [
        dataclasses.replace(whole, id=str(number), blanks=[blank])
        for number, blank in enumerate(whole.blanks)
    ]
    alone = {(str(number), 0, 0): answers["a", 0, number] for number in range(len(singles))}
    batch, starts = training_row(singles, alone, tokenizer.special)
    with torch.no_grad():
        losses = model(*batch).token_losses.flatten()
    for (request_id, _), start in starts.items():
        tokens, found, *_ = alone[request_id, 0, 0]
        torch.testing.assert_close(
            torch.tensor(found), -losses[start : start + len(tokens)], **CLOSE
        )
