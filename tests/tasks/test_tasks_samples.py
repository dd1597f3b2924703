"""From example to sample and from reply to answer: both ends of every task meet."""

import numpy as np
import pytest

from glm_dist.errors import DataError
from glm_dist.tasks import Reply
from glm_dist.tasks.examples import Example

PAIRS = [{"source": "the film", "target": "der Film"}, {"source": "a dog", "target": "ein Hund"}]
CHAT = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "really great"},
    {"role": "user", "content": "and his dog"},
    {"role": "assistant", "content": "bad"},
]
EXAMPLES = {
    "translation": PAIRS,
    "summarisation": PAIRS,
    "correction": [{"target": "the film was really a great story of one man and his dog"}],
    "question_answering": [{"question": "how", "context": "a great film", "answers": ["great"]}],
    "dialogue": [{"messages": CHAT}],
    "infilling": [{"text": "the film was really a great story of one man and his dog in town"}],
    "classification": [{"text": "the film", "label": "good"}, {"text": "a dog", "label": "bad"}],
}
FREE = [kind for kind in EXAMPLES if kind != "classification"]


def learnt(task, sample):
    """Text of the tokens with loss, piece by piece."""
    special, targets = task.tokenizer.special, sample.targets[sample.loss_mask > 0]
    assert targets[-1] == special.eop
    ends = np.flatnonzero(targets == special.eop)
    starts = [0, *(ends[:-1] + 1)]
    return [task.tokenizer.decode(targets[a:b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("kind", FREE)
def test_what_is_learnt_is_what_is_asked_and_a_right_reply_is_the_gold_answer(make_task, kind):
    task, examples = make_task(kind, EXAMPLES[kind])
    for example in examples:
        assert task.problems(example) == []
        sample = task.training_samples(example)[-1].sample
        (question,) = task.questions(example)
        assert sample.tokens[: sample.part_a_length].tolist() == question.tokens.tolist()
        answer = task.answer(example, [Reply(texts=tuple(learnt(task, sample)))])
        gold = task.compared(example, task.gold(example))
        said = task.compared(example, answer.value)
        assert said == gold or [said] == gold


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_loss_is_on_the_answer_behind_the_prompt_alone(make_task, kind):
    task, examples = make_task(kind, EXAMPLES[kind])
    special = task.tokenizer.special
    for sample in (one.sample for e in examples for one in task.training_samples(e)):
        part_a = sample.part_a_length
        assert not sample.loss_mask[:part_a].any()
        assert sample.loss_mask[part_a:].all()
        begins = np.flatnonzero(sample.tokens == special.sop)
        assert sample.block_position_ids[begins].tolist() == [1] * len(begins)
        masks = [special.mask, special.smask, special.gmask]
        assert set(sample.tokens[sample.position_ids[part_a:]]) <= set(masks)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_samples_and_questions_fit_their_rows_whatever_the_length(make_task, kind):
    task, (example, *_) = make_task(kind, EXAMPLES[kind], max_tokens=48)
    # A blank keeps its place in a text that is cut; the others lose what does not fit.
    long = {
        name: (value if name in ("label", "answers") else _lengthened(value))
        for name, value in example.fields.items()
    }
    for sample in task.training_samples(Example(long, "line 1")):
        assert len(sample.sample.tokens) <= 48
        assert sample.sample.loss_mask.any()
    for question in task.questions(Example(long, "line 1")):
        assert len(question.tokens) < 48


def _lengthened(value):
    if isinstance(value, list):
        return [{**one, "content": " ".join([one["content"]] * 50)} for one in value]
    return " ".join([value] * 50)


def test_a_word_of_several_tokens_stands_for_a_label_whole(make_task):
    words = {"good": "really great story", "bad": "dull"}
    task, (example, _) = make_task("classification", EXAMPLES["classification"], verbalizers=words)
    (sample,) = (one.sample for one in task.training_samples(example))
    assert len(task.tokenizer.encode("really great story")) > 1
    assert learnt(task, sample) == ["really great story"]
    (question,) = task.questions(example)
    assert [task.tokenizer.decode(one) for one in question.options] == [
        "dull",
        "really great story",
    ]
    dev = task.dev_samples(example)
    assert [(one.compared.option, one.compared.gold) for one in dev] == [(0, 1), (1, 1)]
    assert [learnt(task, one.sample) for one in dev] == [["dull"], ["really great story"]]


def test_the_label_with_the_best_sum_over_patterns_wins_and_shares_add_up(make_task):
    patterns = ["{text} it was [MASK]", "[MASK] {text}"]
    task, (example, _) = make_task("classification", EXAMPLES["classification"], patterns=patterns)
    assert len(task.questions(example)) == len(task.training_samples(example)) == 2
    replies = [Reply(scores=np.array([[-1.0, -2.0]])), Reply(scores=np.array([[-4.0, -1.0]]))]
    answer = task.answer(example, replies)
    assert answer.value == "good"
    assert sum(answer.probabilities) == pytest.approx(1)
    assert answer.probabilities[1] == pytest.approx(1 / (1 + np.exp(-2)))


def test_long_words_are_penalised_by_their_tokens(make_task):
    words = {"good": "really great story", "bad": "bad"}
    settings = {"verbalizers": words, "length_penalty": 1.0}
    task, (example, _) = make_task("classification", EXAMPLES["classification"], **settings)
    sizes = [len(task.tokenizer.encode(words[label])) + 1 for label in ("bad", "good")]
    totals = -np.array(sizes) * np.array([1.1, 1.0])
    assert totals[0] > totals[1]
    assert task.answer(example, [Reply(scores=totals[None])]).value == "good"


def test_masks_and_roles_in_what_a_user_writes_are_text(make_task):
    task, (example, _) = make_task("classification", EXAMPLES["classification"])
    strange = Example({**example.fields, "text": "a [MASK] <sop> film <|user|>"}, "line 1")
    special = task.tokenizer.special
    (question,) = task.questions(strange)
    assert (question.tokens == special.mask).sum() == 1
    assert not np.isin(question.tokens, [special.sop, special.user]).any()


def test_only_what_the_assistant_says_is_learnt_each_turn_behind_all_before_it(make_task):
    task, (example,) = make_task("dialogue", EXAMPLES["dialogue"])
    samples = [one.sample for one in task.training_samples(example)]
    assert [learnt(task, sample) for sample in samples] == [["really great"], ["bad"]]
    special = task.tokenizer.special
    second = samples[1].tokens[: samples[1].part_a_length]
    roles = [special.system, special.user, special.assistant, special.user, special.assistant]
    assert second[np.isin(second, roles)].tolist() == roles
    assert task.tokenizer.decode(second) == "".join(turn["content"] for turn in CHAT[:-1])


def test_the_oldest_turns_go_first_where_there_is_no_room(make_task):
    task, (example,) = make_task("dialogue", EXAMPLES["dialogue"], max_tokens=36)
    messages = [CHAT[0], *CHAT[1:3] * 20, CHAT[1]]
    (question,) = task.questions(Example({"messages": messages}, "line 1"))
    special = task.tokenizer.special
    assert len(question.tokens) <= 18
    assert question.tokens[:2].tolist() == [special.enc, special.system]
    text = task.tokenizer.decode(question.tokens)
    assert text.startswith("be good")
    assert text.endswith("how are you")


def test_both_directions_are_learnt_with_their_tags_and_one_is_scored(make_task):
    settings = {"both_directions": True, "source_language": "en", "target_language": "de"}
    task, (example, _) = make_task("translation", PAIRS, **settings)
    there, back = (one.sample for one in task.training_samples(example))
    prompts = [task.tokenizer.decode(one.tokens[: one.part_a_length]) for one in (there, back)]
    assert [text.partition(":")[0] for text in prompts] == ["en to de", "de to en"]
    assert (learnt(task, there), learnt(task, back)) == (["der Film"], ["the film"])
    assert len(task.dev_samples(example)) == 1


def test_a_summary_is_asked_for_in_a_length_that_does_not_give_its_own_away(make_task):
    template = "{source} in {length}: [gMASK]"
    task, (example, _) = make_task("summarisation", PAIRS, template=template, wanted_length=15)
    (sample,) = (one.sample for one in task.training_samples(example))
    (question,) = task.questions(example)
    assert " in 5:" in task.tokenizer.decode(sample.tokens[: sample.part_a_length])
    assert " in 15:" in task.tokenizer.decode(question.tokens)


def test_an_extractive_answer_is_turned_to_a_piece_of_the_context(make_task):
    examples = EXAMPLES["question_answering"]
    task, (example,) = make_task("question_answering", examples)
    assert task.answer(example, [Reply(texts=("a great movie",))]).value == "a great"
    free, _ = make_task("question_answering", examples, extractive=False)
    assert free.answer(example, [Reply(texts=("a great movie",))]).value == "a great movie"


def test_blanks_given_by_a_user_are_kept_and_drawn_ones_are_the_same_every_time(make_task):
    given = {"text": "the [MASK] was [MASK] good", "answers": ["film", "really"]}
    task, (example,) = make_task("infilling", [given])
    (question,) = task.questions(example)
    assert len(question.places) == 2
    assert task.gold(example) == ["film", "really"]
    drawn, (plain,) = make_task("infilling", EXAMPLES["infilling"], num_blanks=3)
    (first,), (second,) = drawn.questions(plain), drawn.questions(plain)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert len(first.places) == len(drawn.gold(plain)) == 3


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("classification", {"text": " ", "label": "good"}, "text is empty"),
        ("classification", {"text": "x", "label": "fine"}, "'fine' is none that training has seen"),
        ("classification", {"text": "x", "label": ""}, "the label is empty"),
        ("translation", {"source": "x", "target": ""}, "the target is empty"),
        ("question_answering", {**EXAMPLES["question_answering"][0], "answers": ["no"]}, "'no' is"),
        ("dialogue", {"messages": CHAT[:2]}, "no assistant answers anything"),
        ("dialogue", {"messages": "hello"}, "no list of messages"),
        ("infilling", {"text": "one"}, "too short for a blank"),
        ("infilling", {"text": "a [MASK] b", "answers": []}, "has 1 blanks and 0 answers"),
        ("correction", {"target": ""}, "the sentence is empty"),
    ],
)
def test_an_example_that_cannot_be_used_says_why(make_task, kind, fields, message):
    task, _ = make_task(kind, EXAMPLES[kind])
    (problem,) = task.problems(Example(fields, "line 1"))
    assert message in problem


def test_a_template_that_does_not_fit_or_has_no_blank_is_refused(make_task):
    with pytest.raises(ValueError, match=r"has 0 masks and needs 1.*\{txt\} is no field|\{txt\}"):
        make_task("classification", EXAMPLES["classification"], patterns=["{txt} it was"])
    task, (example, _) = make_task("classification", EXAMPLES["classification"], max_tokens=5)
    with pytest.raises(DataError, match=r"line 1: .*rows\.sequence_length"):
        task.questions(example)
