"""What every task is told: where its examples lie and which of their fields are which.

It stands apart so that a configuration is read and checked without any data.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from glm_dist.config import Settings

Column = str | int
Columns = Column | list[Column]
Files = str | dict[str, str]
SPLITS = ("train", "dev", "test")


class DecodingSettings(Settings):
    """How answers are generated when the task is scored or served."""

    max_tokens: int = Field(64, ge=1)
    """Longest answer in tokens."""
    min_tokens: int = Field(0, ge=0)
    """Shortest answer in tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; above, logits are divided by it and a token is drawn."""
    top_k: int = Field(0, ge=0)
    """Draw among the k likeliest tokens only; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the fewest tokens that hold this probability together."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Logits of tokens that stand there already are divided by it; 1 is off."""
    no_repeat_ngram: int = Field(0, ge=0)
    """No run of this many tokens comes twice in an answer; 0 is off."""
    seed: int = Field(0, ge=0)
    """Seed of the draws."""
    num_beams: int = Field(1, ge=1, le=32)
    """Above 1: beam search, the best of so many beginnings at a time, in place of one."""
    length_penalty: float = Field(1.0, ge=-8, le=8)
    """Of beams: an answer's log-probability is divided by its length to this power."""

    @model_validator(mode="after")
    def _check_search(self) -> "DecodingSettings":
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams: got {self.num_beams} and temperature {self.temperature:g}; a search "
                "draws nothing, so set temperature to 0"
            )
        return self


class TaskSettings(Settings):
    """The examples of a task."""

    fields: ClassVar[tuple[str, ...]] = ("text",)
    """What an example must have."""
    optional_fields: ClassVar[tuple[str, ...]] = ()
    answer_field: ClassVar[str | None] = None
    """That of them which holds the right answer."""

    kind: str
    """classification, multi_label, labelling, question_answering, translation, summarisation,
    dialogue, reply_choice, infilling or correction."""
    train: Files | None = None
    """File, folder or glob of the examples to learn from; environment variables are filled in.
    Aligned files of lines are given by field: {source: a.en, target: a.de}."""
    dev: Files | None = None
    """Examples that training is judged by; by default a part of train is cut off for it."""
    test: Files | None = None
    """Examples that are scored at the end."""
    dev_share: float = Field(0.1, gt=0, lt=1)
    """Share of train cut off where there is no dev; drawn by the run's seed."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of train cut off before that where there is no test; the same in every run."""
    format: Literal[
        "auto", "csv", "tsv", "jsonl", "json", "parquet", "conll", "conllu", "lines"
    ] = "auto"
    """How examples lie in the files; auto goes by the file name."""
    columns: dict[str, Columns] = {}
    """Field of the task: name or number (from 0) of the column that holds it. Of a list all columns
    that are there count: texts are joined, answers are all right. Fields not named here are looked
    for under their own and other usual names."""
    header: bool | None = None
    """Whether the first line of a table names its columns; null to find out."""
    max_examples: int | None = Field(None, ge=1)
    """As many examples of each split are used at most, the same ones in every run."""
    language: str | None = None
    """Code such as en or zh, for scores and figures by language; guessed from the text if null."""

    @property
    def kept_together(self) -> tuple[str, ...]:
        """Examples that read the same in one of these fields are learnt or held out together."""
        return self.fields[:1]

    @model_validator(mode="after")
    def _check_columns(self) -> "TaskSettings":
        known = (*self.fields, *self.optional_fields)
        wrong = [name for name in self.columns if name not in known]
        if wrong:
            raise ValueError(
                f"columns: {', '.join(wrong)} is no field of {self.kind}; it has "
                f"{', '.join(known)}, each as field: column"
            )
        return self

    @property
    def asked_fields(self) -> tuple[str, ...]:
        """All that an example may have but its answer."""
        known = (*self.fields, *self.optional_fields)
        return tuple(name for name in known if name != self.answer_field)

    def files(self, split: str) -> Files | None:
        """Where a split lies."""
        return getattr(self, split)


class ReplaySettings(Settings):
    """Pretraining text among the examples, against forgetting."""

    dataset: str | None = None
    """Folder made by prepare_data with the model's own tokenizer; none by default."""
    share: float = 0.1
    """Its samples as a share of all that are trained on."""
