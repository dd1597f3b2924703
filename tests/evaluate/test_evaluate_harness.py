"""lm-evaluation-harness on our models: its likelihoods are those of the training forward."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetune_scenarios import small_tokenizer

from glm_dist.model import Batch, ModelSettings, build_model
from glm_dist.objective import supervised_sample
from glm_dist.tasks import Binding

lm_eval = pytest.importorskip("lm_eval", reason="needs glm-dist[harness]")
PAIRS = [("the man saw a", " good dog"), ("the man ", "saw"), ("", "a dog"), ("x " * 200, " man")]
TASK = """
task: dogs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module", params=[False, True], ids=["prefix", "causal"])
def asked(request, tokenizer):
    from glm_dist.evaluate.harness import HarnessModel

    torch.set_num_threads(1)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "init_std": 0.5}
    shape |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 128}
    model = build_model(ModelSettings(preset=None, causal=request.param, **shape)).eval()
    return model, HarnessModel(model, tokenizer)


def instances(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def trained_likelihood(model, tokenizer, part_a, part_b, count):
    """Of the last tokens of an answer, by the forward that training takes."""
    special = tokenizer.special
    prompt = np.array([special.enc, *part_a, special.gmask], dtype=np.int32)
    infill = Binding(tokenizer, 512).infill
    sample = supervised_sample(prompt, np.array(part_b, dtype=np.int32), infill)
    length = len(sample.tokens)
    rows = {
        "tokens": sample.tokens,
        "targets": sample.targets,
        "position_ids": sample.position_ids,
        "block_position_ids": sample.block_position_ids,
        "segment_ids": np.ones(length),
        "prefix_ends": np.full(length, sample.part_a_length),
        "loss_mask": sample.loss_mask,
    }
    fields = [
        torch.from_numpy(np.asarray(rows[name]).astype(np.int32))[None] for name in Batch._fields
    ]
    with torch.no_grad():
        losses = model(*fields).token_losses[0].numpy()
    learnt = losses[np.flatnonzero(sample.loss_mask)]
    return -learnt[:-1][len(part_b) - count :].sum()  # without the end


def test_likelihoods_are_those_of_training(asked, tokenizer):
    model, harness = asked
    found = harness.loglikelihood(instances(*PAIRS))
    for (context, continuation), (value, is_greedy) in zip(PAIRS, found, strict=True):
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = tokenizer.encode(stripped).tolist()
        if model.settings.causal:
            after = tokenizer.encode(stripped + continuation).tolist()[len(before) :]
        else:
            after = tokenizer.encode(continuation).tolist()
        before = before[-(128 - 3 - len(after)) :]
        part_a, part_b = ([], before + after) if model.settings.causal else (before, after)
        expected = trained_likelihood(model, tokenizer, part_a, part_b, len(after))
        assert value == pytest.approx(expected, abs=1e-4)
        assert isinstance(is_greedy, bool)


def test_a_whole_text_is_as_likely_as_its_windows_together(asked, tokenizer):
    model, harness = asked
    text = "the good man saw a dog " * 30
    [value] = harness.loglikelihood_rolling(instances((text,)))
    tokens, half = tokenizer.encode(text).tolist(), (128 - 3) // 2
    assert len(tokens) > 2 * half
    expected = 0.0
    for start in range(0, len(tokens), half):
        before, window = tokens[max(0, start - half) : start], tokens[start : start + half]
        part_a, part_b = ([], before + window) if model.settings.causal else (before, window)
        expected += trained_likelihood(model, tokenizer, part_a, part_b, len(window))
    assert value == pytest.approx(expected, abs=1e-3)


def test_answers_end_at_their_stop_strings_and_are_greedy_where_nothing_is_said(asked):
    _, harness = asked
    [whole] = harness.generate_until(instances(("the man", {"until": [], "max_gen_toks": 12})))
    assert whole
    stop = whole[len(whole) // 2 :]
    [cut] = harness.generate_until(instances(("the man", {"until": [stop], "max_gen_toks": 12})))
    assert cut == whole[: whole.index(stop)]


def test_the_harness_scores_a_task_of_ones_own(asked, tmp_path, tokenizer):
    from lm_eval.tasks import TaskManager

    _, harness = asked
    lines = [
        {
            "question": f"the man saw {'a' * (1 + n % 3)}",
            "choices": ["dog", "man"],
            "answer": n % 2,
        }
        for n in range(20)
    ]
    (tmp_path / "dogs.json").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "dogs.yaml").write_text(TASK.format(data=tmp_path / "dogs.json"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=harness, tasks=["dogs"], task_manager=manager, bootstrap_iters=0
    )
    pairs = [(line["question"], f" {choice}") for line in lines for choice in line["choices"]]
    values = [value for value, _ in harness.loglikelihood(instances(*pairs))]
    chosen = [int(values[2 * n + 1] > values[2 * n]) for n in range(len(lines))]
    accuracy = np.mean([line["answer"] == one for line, one in zip(lines, chosen, strict=True)])
    assert found["results"]["dogs"]["acc,none"] == pytest.approx(accuracy)
