"""What answers are held to, by the names of OpenAI, of vLLM and of its older releases.

It stands apart from the bodies as the one place where three ways of asking become one setting.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from glm_dist.serve.errors import ApiError
from glm_dist.serve.parts import Body, Part, Texts

Choices = Annotated[Texts, Field(min_length=1, max_length=256)]
Pattern = Annotated[str, Field(min_length=1)]
OBJECT = '{"type": "object"}'
"""Schema of any JSON object."""


class NamedSchema(Part):
    """A JSON schema, which an answer is held to whether `strict` or not."""

    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """What the answer is, as OpenAI names it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def constraint(self) -> dict[str, Any]:
        """The engine's setting; none for text.

        Raises:
            ApiError: 400 where the schema lacks.
        """
        if self.type == "text":
            return {}
        if self.type == "json_object":
            return {"json_schema": OBJECT}
        if self.json_schema is None:
            raise ApiError(
                400, "response_format: json_schema takes name and schema", param="response_format"
            )
        return {"json_schema": json.dumps(self.json_schema.schema_)}


class StructuredOutputs(Part):
    """What the answer is, as vLLM names it; one of these."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    """A JSON schema, as text or not."""
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None
    """In Lark's syntax, or in EBNF as llama.cpp writes it."""

    @property
    def constraint(self) -> dict[str, Any]:
        """The engine's settings.

        Raises:
            ApiError: 400 where one of them would hide another.
        """
        if self.json_object and self.json_ is not None:
            raise ApiError(
                400, "json_object: cannot go with json; leave one out", param="structured_outputs"
            )
        schema = OBJECT if self.json_object else self.json_
        given = {
            "json_schema": schema if isinstance(schema, str | None) else json.dumps(schema),
            "regex": self.regex,
            "choices": None if self.choice is None else tuple(self.choice),
            "grammar": self.grammar,
        }
        return {kind: value for kind, value in given.items() if value is not None}


class Formed(Body):
    """A body whose answers may be held to a form."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    """This and those that follow are older names of the same."""
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = None

    @property
    def constraint(self) -> dict[str, Any]:
        """What all answers are held to, as settings of the engine; none for any text.

        Raises:
            ApiError: 400 where more than one thing is asked for.
        """
        guided = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        forms: dict[str, ResponseFormat | StructuredOutputs | None] = {
            "response_format": self.response_format,
            "structured_outputs": self.structured_outputs,
        }
        forms |= {
            f"guided_{name}": StructuredOutputs(**{name: value})  # type: ignore[arg-type]
            for name, value in guided.items()
            if value is not None
        }
        given = [
            (name, item)
            for name, form in forms.items()
            for item in (form.constraint.items() if form else ())
        ]
        if len(given) > 1:
            names = " and ".join(dict.fromkeys(name for name, _ in given))
            raise ApiError(400, f"{names}: an answer has one form; ask for one", param=given[-1][0])
        return dict(item for _, item in given)
