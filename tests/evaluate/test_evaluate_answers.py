"""A model's answers are those of the training forward, whatever else is asked beside them."""

import json

import numpy as np
import pytest
import torch
from answer_scenarios import CASES, tuned
from finetune_scenarios import small_tokenizer
from pydantic import ValidationError

from glm_dist.data.rows import RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.dev import LabelSetDev, build_dev
from glm_dist.evaluate.heldout import TokenOutputs
from glm_dist.evaluate.scores import micro_f1
from glm_dist.evaluate.task_report import PAGE, PREDICTIONS, SCORES, write_answers
from glm_dist.inference import BeamSettings, Blank, Engine, Request, SamplingSettings
from glm_dist.objective import ObjectiveSettings
from glm_dist.tasks import build_task
from glm_dist.tasks.dataset import build_dataset
from glm_dist.tasks.postprocess import postprocess
from glm_dist.tasks.settings import DecodingSettings
from glm_dist.train.stream import to_batch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module", params=CASES)
def asked(request, tokenizer):
    model, task, examples = tuned(request.param, tokenizer)
    return Answerer(model, tokenizer, task), model, task, examples


def test_an_answer_does_not_depend_on_its_neighbours_nor_on_padding(asked):
    answerer, _, _, examples = asked
    together = answerer.answer(examples)
    alone = [answerer.answer([example])[0] for example in examples]
    backwards = answerer.answer(examples[::-1])[::-1]
    assert [one.value for one in together] == [one.value for one in alone]
    assert [one.value for one in together] == [one.value for one in backwards]
    assert len({str(one) for one in together}) > 1
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("asked", ["beams"], indirect=True)
def test_a_task_is_answered_by_the_search_that_it_asks_for(asked, tokenizer):
    answerer, model, task, examples = asked
    sampling = SamplingSettings(max_tokens=6, no_repeat_ngram=2)
    beams = BeamSettings(num_beams=3, length_penalty=0.5)
    requests = [
        Request(
            str(number),
            question.tokens.tolist(),
            [Blank(question.places[0], sampling)],
            beams=beams,
        )
        for number, example in enumerate(examples)
        for question in task.questions(example)
    ]
    found = {one.request_id: one.text for one in Engine(model, tokenizer).generate(requests)}
    best = [postprocess(found[one.id], task.settings.postprocess) for one in requests]
    assert [one.value for one in answerer.answer(examples)] == best
    greedy = build_task(
        task.settings.model_copy(update={"decoding": DecodingSettings(max_tokens=6)}), task.binding
    )
    assert [one.value for one in Answerer(model, tokenizer, greedy).answer(examples)] != best


def test_a_search_that_draws_is_refused():
    with pytest.raises(ValidationError, match="num_beams: got 4 and temperature 1"):
        DecodingSettings(num_beams=4, temperature=1)


def cut_at(task, answer, threshold):
    pairs = zip(task.labels, answer.probabilities, strict=True)
    return [label for label, chance in pairs if chance >= threshold]


@pytest.mark.parametrize("asked", ["cloze", "head", "multi_label", "labelling"], indirect=True)
def test_what_is_measured_in_training_is_what_the_answers_are_worth(asked, tmp_path):
    """Packed rows of dev samples under their evaluator, against the questions of the same task."""
    answerer, model, task, examples = asked
    splits = {"train": examples, "validation": examples}
    dataset = build_dataset(tmp_path, task, splits, seed=0)
    rows = RowSettings(sequence_length=128)
    builder = build_row_builder(dataset, "validation", rows, ObjectiveSettings(), 0)

    @torch.no_grad()
    def forward(rows):
        output = model(*to_batch(rows, torch.device("cpu")))
        scores = output.label_scores
        return TokenOutputs(output.token_losses.numpy(), None if scores is None else scores.numpy())

    figures = build_dev(builder, 1000, 3).measure(forward, lambda values: values)
    answers = answerer.answer(examples)
    if task.scoring == "label_sets":
        micro = [
            micro_f1(list(map(task.gold, examples)), [cut_at(task, one, at) for one in answers])
            for at in LabelSetDev.THRESHOLDS
        ]
        assert 100 * figures["dev/micro_f1"] == pytest.approx(max(one.value for one in micro))
        return
    if task.scoring == "labels":
        right = [one.value == task.gold(e) for one, e in zip(answers, examples, strict=True)]
    else:
        pairs = zip(answers, examples, strict=True)
        right = [a == b for one, e in pairs for a, b in zip(one.value, task.gold(e), strict=True)]
    assert figures["dev/accuracy"] == pytest.approx(np.mean(right))


def test_predictions_and_scores_are_written_with_what_they_are_of(asked, tmp_path):
    answerer, _, task, examples = asked
    scores = write_answers(tmp_path, task, examples, answerer.answer(examples), {"model": "m"})
    lines = (tmp_path / PREDICTIONS).read_text().splitlines()
    assert [json.loads(line)["place"] for line in lines] == [one.place for one in examples]
    kept = json.loads((tmp_path / SCORES).read_text())
    assert kept["model"] == "m"
    assert kept["examples"] == len(examples)
    assert [one["name"] for one in kept["scores"]] == [one.name for one in scores]
    text = (tmp_path / PAGE).read_text()
    assert all(f"- {one}" in text for one in scores)
    its_own = tmp_path / examples[0].fields.get("task", "") / PAGE
    assert task.shown(examples[0]) in its_own.read_text()
    assert ("## By label" in text) == (task.scoring in ("labels", "label_sets"))
    assert all(one.low <= one.value + 1e-9 and one.value <= one.high + 1e-9 for one in scores)
