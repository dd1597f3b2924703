"""The settings of `prepare_data`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glm_dist.config import Settings
from glm_dist.tokenizer import TokenizerSettings


class SourceSettings(Settings):
    """One body of text."""

    name: str
    """Shown in counts and reports."""
    path: str
    """A file, a folder (read with all below it) or a glob; s3:// and gs:// where pyarrow knows.
    Environment variables are filled in, ${GLM_DIST_HOME} with its default too."""
    language: str | None = None
    """Code such as en or zh; guessed a document from its script if not given."""
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    """How records lie in the files; auto goes by the file name."""
    text_field: str | int | None = None
    """Field or column that holds the text; by default the first of text, content, paragraphs,
    abstract, body and document that is there. A number counts columns from 0 and means that a
    csv has no header."""


class PrepareSettings(Settings):
    """Everything of a dataset."""

    output: str = "data/sample"
    """Folder of the dataset; below GLM_DIST_HOME if relative."""
    sources: list[SourceSettings] = []
    """What is read; with none, the documentation of this machine's Python, as a sample corpus."""
    exclude: list[str] = []
    """Evaluation sets, each a file, a folder or a glob in any format: documents that repeat their
    text are left out, and counted by set. Environment variables are filled in."""
    exclude_ngram: int = Field(13, ge=0)
    """A document repeats evaluation text when it holds so many of its words or Chinese characters
    in a row, or a whole text of at least 8; 0: only when it stands there whole."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    tokenizer_path: str | None = None
    """A tokenizer to use instead of training one: a tokenizer.model of ours, a tokenizer.json of a
    published model, or a folder that holds one."""
    extend_tokenizer: str | None = None
    """A tokenizer.model of ours, or a folder that holds one, that keeps its ids and gets pieces of
    these sources behind them, up to tokenizer.vocab_size: for a model that goes on in a language
    that it was not trained on (`init_from`)."""
    normalisation: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normalisation of every document; nfkc loses distinctions that code needs."""
    validation_share: float = Field(0.01, ge=0, lt=1)
    """Share of documents held out, chosen by their hash and so the same ones every time."""
    text_document_bytes: int = Field(65536, ge=1024)
    """Plain text is cut into documents of at most this size, at the last empty line before it."""
    max_record_bytes: int = Field(16_000_000, ge=1024)
    """A longer line or record is a bad record."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Share of records that may be bad (counted, and written to rejected.jsonl) before it is an
    error."""
    partition_bytes: int = Field(64_000_000, ge=65536)
    """Input bytes of one task, which writes one shard; decides the shards, not their content's
    order. A restart redoes unfinished ones."""
    overwrite: bool = False
    """Throw away a dataset made with other settings in the same folder."""

    @model_validator(mode="after")
    def _check_tokenizers(self) -> Self:
        if self.tokenizer_path is not None and self.extend_tokenizer is not None:
            raise ValueError(
                "extend_tokenizer: got one beside tokenizer_path, which takes a tokenizer as it "
                "is; give one of them"
            )
        return self
