"""All kinds of tasks there are, by their names.

A new kind is one file with its settings and its class, a line in `KINDS` and one in `AnyKind`.
"""

from typing import Annotated, Any

from pydantic import Field

from glm_dist.tasks.classification import Classification, ClassificationSettings
from glm_dist.tasks.correction import Correction, CorrectionSettings
from glm_dist.tasks.dialogue import Dialogue, DialogueSettings
from glm_dist.tasks.infilling import Infilling, InfillingSettings
from glm_dist.tasks.labelling import Labelling, LabellingSettings
from glm_dist.tasks.multi_label import MultiLabel, MultiLabelSettings
from glm_dist.tasks.question_answering import QuestionAnswering, QuestionAnsweringSettings
from glm_dist.tasks.reply_choice import ReplyChoice, ReplyChoiceSettings
from glm_dist.tasks.summarisation import Summarisation, SummarisationSettings
from glm_dist.tasks.task import Task
from glm_dist.tasks.translation import Translation, TranslationSettings

AnyKind = Annotated[
    ClassificationSettings
    | MultiLabelSettings
    | LabellingSettings
    | TranslationSettings
    | SummarisationSettings
    | QuestionAnsweringSettings
    | DialogueSettings
    | ReplyChoiceSettings
    | InfillingSettings
    | CorrectionSettings,
    Field(discriminator="kind"),
]
"""The settings of one task; `kind` says which."""

KINDS: dict[str, type[Task[Any]]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "labelling": Labelling,
    "translation": Translation,
    "summarisation": Summarisation,
    "question_answering": QuestionAnswering,
    "dialogue": Dialogue,
    "reply_choice": ReplyChoice,
    "infilling": Infilling,
    "correction": Correction,
}
