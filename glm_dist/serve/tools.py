"""Calls of tools in what a model says: found, and told as OpenAI's `tool_calls`.

A turn that calls begins with a line that is the name of a tool that was offered, and nothing else;
arguments are what follows: JSON in GLM-4's layout and ours, a line of Python in ChatGLM3's. A model
calls one tool a turn.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4


@dataclass(frozen=True)
class Said:
    """A piece of a turn: text, or the name or the arguments of a call."""

    text: str = ""
    called: str | None = None
    arguments: str = ""


class TurnReader:
    """Tells text from calls, as it comes; text waits only while it may still be a name."""

    def __init__(self, names: Sequence[str], layout: str, called: str | None = None) -> None:
        """Args: tools that were offered; the layout's name; the tool that is called already."""
        self._names, self._is_python = names, layout == "chatglm3"
        self._held, self._called = "", called
        self._is_text = not names and called is None
        self._pending = [Said(called=called)] if called else []

    @property
    def has_called(self) -> bool:
        """Whether the turn is a call."""
        return self._called is not None

    def read(self, text: str, *, is_end: bool = False) -> list[Said]:
        """What is certain now."""
        found, self._pending = self._pending, []
        self._held += text
        if self._called is None and not self._is_text:
            self._decide(found, is_end)
        if self._called is not None:
            arguments = self._arguments(is_end)
            found += [Said(arguments=arguments)] if arguments else []
        elif self._is_text and self._held:
            found.append(Said(text=self._held))
            self._held = ""
        return found

    def _decide(self, found: list[Said], is_end: bool) -> None:
        line, newline, rest = self._held.partition("\n")
        name = line.strip()
        if newline and name in self._names:
            self._called, self._held = name, rest
            found.append(Said(called=name))
        elif newline or is_end or not any(one.startswith(name) for one in self._names):
            self._is_text = True

    def _arguments(self, is_end: bool) -> str:
        """JSON goes on as it comes; Python is read when it is whole."""
        if self._is_python:
            return _from_python(self._held) if is_end else ""
        text, self._held = self._held, ""
        return text


def new_call_id() -> str:
    """A name for a call, by which its result comes back."""
    return f"call_{uuid4().hex[:24]}"


def _from_python(text: str) -> str:
    """Arguments of `tool_call(name=value, …)` as JSON; the text itself where it is none."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("```")]
    try:
        [statement] = ast.parse("\n".join(lines).strip()).body
        assert isinstance(statement, ast.Expr)
        assert isinstance(statement.value, ast.Call)
        values = {word.arg: ast.literal_eval(word.value) for word in statement.value.keywords}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, AssertionError, TypeError, RecursionError, MemoryError):
        return text.strip()
