"""What the field started from, as arms beside a tuned model: the same splits, the same scores.

An arm fits candidates on the training split (regularisations, learning rates, epochs, how many
sentences), keeps the one with the best dev score, and is asked about the test split once.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from glm_dist.config import Settings
from glm_dist.errors import ConfigError
from glm_dist.evaluate.task_report import score_answers
from glm_dist.tasks import Answer, Task
from glm_dist.tasks.baselines.extractive import lead, overlap_answer
from glm_dist.tasks.baselines.lstm import LstmClassifier, LstmSettings, LstmTagger
from glm_dist.tasks.baselines.majority import MajorityClassifier, MajorityTagger
from glm_dist.tasks.baselines.tfidf import TfidfClassifier, TfidfRanker, TfidfSettings
from glm_dist.tasks.dialogue import read_turns
from glm_dist.tasks.examples import Example

LONGEST_LEAD = 4

Predict = Callable[[Sequence[Example]], list[Answer]]
Candidate = tuple[str, Predict]
"""What was tried, in a few words, and how it answers."""
Tell = Callable[[str], None]


class Chosen(NamedTuple):
    """The candidate of an arm that is asked about the test split."""

    name: str
    predict: Predict
    dev_score: float


class BaselineSettings(Settings):
    """What the arms try."""

    arms: list[str] = []
    """Names of the arms; by default all that the kind of task has."""
    lstm: LstmSettings = LstmSettings()
    lstm_learning_rates: list[float] = []
    """Learning rates of Adam to choose from on dev; by default that of `lstm` alone."""
    tfidf: TfidfSettings = TfidfSettings()
    tfidf_regularisations: list[float] = [1.0, 4.0, 16.0]
    """Values of scikit-learn's C to choose from on dev."""


Arm = Callable[[Task[Any], Sequence[Example], BaselineSettings], Iterator[Candidate]]


def arms_of(task: Task[Any], settings: BaselineSettings) -> dict[str, Arm]:
    """The arms that are asked for, by name.

    Raises:
        ConfigError: when the kind of task has none, or none of such a name.
    """
    kind = task.settings.kind
    arms = ARMS.get(kind)
    if arms is None:
        raise ConfigError(
            f"task.kind: {kind} has no baselines; they are there for {', '.join(sorted(ARMS))}"
        )
    unknown = [name for name in settings.arms if name not in arms]
    if unknown:
        raise ConfigError(
            f"arms: {', '.join(unknown)} is no baseline of {kind}; it has {', '.join(arms)}"
        )
    return {name: arms[name] for name in settings.arms or arms}


def answer_by(
    arm: Arm,
    task: Task[Any],
    splits: Mapping[str, Sequence[Example]],
    settings: BaselineSettings,
    tell: Tell = lambda line: None,
) -> tuple[str, list[Answer]]:
    """What an arm chose on dev, and its answers to the test split (without one, to dev)."""
    chosen = choose(arm, task, splits, settings, tell)
    return chosen.name, chosen.predict(splits["test"] or splits["validation"])


def choose(
    arm: Arm,
    task: Task[Any],
    splits: Mapping[str, Sequence[Example]],
    settings: BaselineSettings,
    tell: Tell = lambda line: None,
) -> Chosen:
    """The candidate of an arm with the best dev score, of equals the first.

    Args:
        arm: one of `arms_of`.
        task: with its labels; it needs no tokenizer.
        splits: examples under train and validation.
        settings: what is tried.
        tell: called with a line for each candidate.
    """
    dev, best = splits["validation"], None
    for name, predict in arm(task, splits["train"], settings):
        score = score_answers(task, dev, predict(dev))[0]
        tell(f"{name}: dev {score.name} {score.value:.1f}")
        if best is None or score.value > best.dev_score:
            best = Chosen(name, predict, score.value)
    assert best is not None, "an arm has a candidate at least"
    return best


def _majority_label(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    model = MajorityClassifier([task.gold(one) for one in train], task.labels)
    yield model.describe(), partial(_classify, task, model)


def _tfidf(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    texts, labels = _labelled(task, train)
    if len(set(labels)) < 2:
        raise ConfigError("arms: tfidf needs examples of two labels at least in task.train")
    for value in settings.tfidf_regularisations:
        tried = settings.tfidf.model_copy(update={"inverse_regularisation": value})
        yield f"C {value:g}", partial(_classify, task, TfidfClassifier(texts, labels, tried))


def _lstm_label(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    texts, labels = _labelled(task, train)
    for tried in _rates(settings):
        model = LstmClassifier(texts, labels, tried)
        yield from _epochs(model, model.train(texts, labels), partial(_classify, task, model))


def _majority_tag(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    model = MajorityTagger(_tokens(train), [task.gold(one) for one in train])
    yield model.describe(), partial(_tag, model)


def _lstm_tag(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    sentences, tags = _tokens(train), [task.gold(one) for one in train]
    for tried in _rates(settings):
        model = LstmTagger(sentences, tags, tried)
        yield from _epochs(model, model.train(sentences, tags), partial(_tag, model))


def _lead(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    for count in range(1, LONGEST_LEAD + 1):
        yield f"first {count} sentences", partial(_first_sentences, count)


def _overlap(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    yield (
        "clause nearest to the question",
        lambda examples: [
            Answer(overlap_answer(one.text("question"), one.text("context"))) for one in examples
        ],
    )


def _copy(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    yield "the source as it is", lambda examples: [Answer(_source(one)) for one in examples]


def _candidates_as_they_stand(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    yield (
        "candidates in the order that they have",
        lambda examples: [Answer(list(one.fields["candidates"])) for one in examples],
    )


def _tfidf_reply(
    task: Task[Any], train: Sequence[Example], settings: BaselineSettings
) -> Iterator[Candidate]:
    texts = [turn.text for one in train for turn in read_turns(one.fields["messages"])]
    ranker = TfidfRanker(texts, settings.tfidf)
    for count in (1, 3, 0):
        name = f"the last {count} turns" if count else "all turns"
        yield f"cosine with {name}", partial(_nearest, task, ranker, count)


ARMS: dict[str, dict[str, Arm]] = {
    "classification": {"majority": _majority_label, "tfidf": _tfidf, "lstm": _lstm_label},
    "labelling": {"majority": _majority_tag, "lstm": _lstm_tag},
    "summarisation": {"lead": _lead},
    "question_answering": {"overlap": _overlap},
    "translation": {"copy": _copy},
    "reply_choice": {"majority": _candidates_as_they_stand, "tfidf": _tfidf_reply},
}
"""Kind of task: its arms by name."""


def _rates(settings: BaselineSettings) -> Iterator[LstmSettings]:
    for rate in settings.lstm_learning_rates or [settings.lstm.learning_rate]:
        yield settings.lstm.model_copy(update={"learning_rate": rate})


def _epochs(
    model: LstmClassifier | LstmTagger, losses: Iterator[float], predict: Predict
) -> Iterator[Candidate]:
    """A candidate for each epoch, which answers with the weights of that epoch."""
    rate = model.settings.learning_rate
    for epoch, loss in enumerate(losses, start=1):
        weights = copy.deepcopy(model.model.state_dict())

        def of_epoch(
            examples: Sequence[Example], weights: dict[str, Any] = weights
        ) -> list[Answer]:
            model.model.load_state_dict(weights)
            return predict(examples)

        yield f"learning rate {rate:g}, epoch {epoch}, loss {loss:.4f}", of_epoch


def _classify(
    task: Task[Any],
    model: MajorityClassifier | TfidfClassifier | LstmClassifier,
    examples: Sequence[Example],
) -> list[Answer]:
    table = np.zeros((len(examples), len(task.labels)))
    columns = [task.labels.index(label) for label in model.labels]
    table[:, columns] = model.predict_proba([task.shown(one) for one in examples])
    return [Answer(task.labels[int(row.argmax())], tuple(row.tolist())) for row in table]


def _tag(model: MajorityTagger | LstmTagger, examples: Sequence[Example]) -> list[Answer]:
    return [Answer(tags) for tags in model.predict(_tokens(examples))]


def _first_sentences(count: int, examples: Sequence[Example]) -> list[Answer]:
    return [Answer(lead(_source(one), count)) for one in examples]


def _nearest(
    task: Any, ranker: TfidfRanker, num_turns: int, examples: Sequence[Example]
) -> list[Answer]:
    """Candidates by how much they have in common with the last turns before them."""
    found = []
    for one in examples:
        candidates = one.fields["candidates"]
        context = "\n".join(turn.text for turn in task.before(one)[-num_turns:])
        order = np.argsort(-ranker.scores(context, candidates), kind="stable")
        found.append(Answer([candidates[number] for number in order]))
    return found


def _labelled(task: Task[Any], examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    return [task.shown(one) for one in examples], [task.gold(one) for one in examples]


def _tokens(examples: Sequence[Example]) -> list[list[str]]:
    return [list(one.fields["tokens"]) for one in examples]


def _source(example: Example) -> str:
    return example.text("source")
