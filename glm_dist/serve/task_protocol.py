"""The bodies of requests that ask for numbers: labels, decisions, scores, vectors, tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from glm_dist.serve.parts import Body, Part, TextOrTokens, Texts, Tokens, listed


class ClassifyRequest(Body):
    """`/v1/classify`: which of some texts stands best at the mask."""

    input: str | Annotated[Texts, Field(min_length=1)]
    labels: Annotated[Texts, Field(min_length=2)] | None = None
    """Left out where the model was tuned to classify: it has labels of its own."""
    template: str = Field("{input} [MASK]", max_length=4096)
    """Where the text stands, and where its label."""
    normalise_length: bool = False
    """Whether labels are compared by their mean log-probability a token."""


TaskInput = dict[Annotated[str, Field(max_length=128)], str | list[Any]]
"""Field of the task: a text, or a list of texts, tokens or messages."""


class TaskRequest(Body):
    """`/v1/tasks/{name}`: examples without their answers."""

    input: TaskInput | Annotated[list[TaskInput], listed(1 << 12, least=1)]
    explain: bool = False
    """Whether to say which words of the one input speak for its label; takes a question a word."""


class ScoreRequest(Body):
    """`/v1/score`: how likely each answer is behind each text, as log-likelihood."""

    text_1: str | Annotated[Texts, Field(min_length=1)]
    """Texts, or one for all answers."""
    text_2: str | Annotated[Texts, Field(min_length=1)]
    """Answers: as many as there are texts, or any number to one text."""
    normalise_length: bool = False
    """Mean log-probability a token instead of the sum."""


class InputPart(Part):
    """A piece of a message or of an instruction."""

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    refusal: str | None = None
    data: Any = None
    """Of `input_json`."""


InputParts = Annotated[list[InputPart], listed(256)]


class InputItem(Part):
    """A message, a call of a tool, or what came of one."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ] = "message"
    role: Literal["user", "developer", "system", "assistant"] | None = None
    content: str | InputParts | None = None
    name: str | None = Field(None, max_length=128)
    arguments: str | None = None
    input: str | None = None
    output: str | InputParts | None = None


class Choice(Part):
    """An answer that may be given."""

    value: str | bool
    description: str | None = None


class Level(Part):
    """A step of a scale."""

    label: str
    description: str | None = None


class Predicate(Part):
    """Is it true?"""

    type: Literal["predicate"]
    instructions: str | InputParts
    name: str | None = Field(None, max_length=128)


class ChoiceQuestion(Part):
    """Which of them is it?"""

    type: Literal["choice"]
    instructions: str | InputParts
    choices: Annotated[list[Choice], listed(255, least=2)]
    name: str | None = Field(None, max_length=128)


class ScaleQuestion(Part):
    """How much of it is there?"""

    type: Literal["score"]
    instructions: str | InputParts
    levels: Annotated[list[Level], listed(255, least=2)]
    name: str | None = Field(None, max_length=128)


Question = Annotated[Predicate | ChoiceQuestion | ScaleQuestion, Field(discriminator="type")]


class DecisionRequest(Body):
    """`/v1/decisions`: questions about one input, each answered with probabilities."""

    input: str | Annotated[list[InputItem], listed(4096, least=1)]
    questions: Annotated[list[Question], listed(400, least=1)]
    template: str = Field("{input}\n{question} [MASK]", max_length=4096)
    """Where input and question stand, and where the answer."""
    predicates: Annotated[list[str], listed(2, least=2)] = ["yes", "no"]
    """What stands at the mask where a statement is true, and where it is not."""


class EmbeddingRequest(Body):
    """`/v1/embeddings`."""

    input: TextOrTokens
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=1 << 31)
    """The model's own; another number is refused."""


class DetokenizeRequest(Body):
    """`/detokenize`."""

    tokens: Tokens
