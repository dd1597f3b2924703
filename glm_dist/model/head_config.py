"""Classification heads in `config.json` as transformers writes them, both ways.

They stand apart because every layout of a model has them in the same fields.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from glm_dist.errors import ModelError
from glm_dist.model.settings import HeadSettings, ModelSettings

_SUFFIXES = {
    "language_model": "ForCausalLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
}
_PROBLEMS = {False: "single_label_classification", True: "multi_label_classification"}


def class_suffix(settings: ModelSettings) -> str:
    """How the class of a model ends, with `AutoModel` and with a family's name before it."""
    return _SUFFIXES[settings.head.kind]


def auto_class(config: Mapping[str, Any]) -> str:
    """The class of transformers that opens a model with this `config.json`."""
    _, _, task = config["architectures"][0].partition("For")
    return f"AutoModelFor{task or 'CausalLM'}"


def head_fields(settings: ModelSettings) -> dict[str, Any]:
    """The fields of a classification, none of a language model."""
    head = settings.head
    if not head.is_classifier:
        return {}
    return {
        "id2label": {str(number): label for number, label in enumerate(head.labels)},
        "label2id": {label: number for number, label in enumerate(head.labels)},
        "problem_type": _PROBLEMS[head.multi_label],
        "classifier_dropout": head.dropout,
    }


def read_head(config: Mapping[str, Any]) -> HeadSettings:
    """The head of a model that `config.json` describes; its first architecture says which.

    Raises:
        ModelError: when labels are missing or not numbered from 0.
    """
    architecture = str((config.get("architectures") or [""])[0])
    kinds = [kind for kind, suffix in _SUFFIXES.items() if architecture.endswith(suffix)]
    if not kinds or kinds[0] == "language_model":
        return HeadSettings()
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        return HeadSettings(
            kind=kinds[0],  # type: ignore[arg-type]
            labels=[names[str(number)] for number in range(len(names))],
            multi_label=config.get("problem_type") == _PROBLEMS[True],
            dropout=config.get("classifier_dropout") or 0.0,
            pooling=config.get("pooling", "auto"),
        )
    except (KeyError, ValidationError) as error:
        raise ModelError(f"config.json: id2label is no list of labels ({error})") from None
