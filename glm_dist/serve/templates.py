"""Dialogues as models read them: Jinja templates, in which no text of a user becomes a role.

It stands apart as the only file that imports jinja2. A template is the model's or ours, never the
client's; it runs in a sandbox, for a bounded time, and says a bounded amount.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm_dist.errors import ModelError
from glm_dist.model import ModelSettings
from glm_dist.serve.errors import ApiError
from glm_dist.tokenizer import Tokenizer

TEMPLATES = ("glm_dist", "glm-4", "chatglm3")
"""Those that come with us."""
TEMPLATE_FILE = "chat_template.jinja"
"""What a model's folder calls its own."""
RENDER_SECONDS = 1.0
MAX_REPEATED = 1 << 16
"""Largest product of a template's own arithmetic, and longest text repeated by it."""
_GUARD = "\ufdd0"
"""Breaks names of roles in what clients say; Unicode keeps it from ever being a character."""
_REFUSALS = (jinja2.TemplateError, TimeoutError, TypeError, ValueError, ArithmeticError)
_RESERVED = {"messages", "tools", "add_generation_prompt", "called"}


class ChatTemplate:
    """One layout of dialogues, for one tokenizer."""

    def __init__(self, source: str, tokenizer: Tokenizer, name: str = TEMPLATE_FILE) -> None:
        """Args: `name` stands in errors; tool calls are read as the layout of that name has them.

        Raises:
            ModelError: when it is no template.
        """
        self.name, self._tokenizer = name, tokenizer
        try:
            self._template = _Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{name}: line {error.lineno}: {error.message}") from None

    @classmethod
    def named(cls, name: str, tokenizer: Tokenizer) -> "ChatTemplate":
        """One of ours."""
        source = files("glm_dist.serve") / "chat_templates" / f"{name}.jinja"
        return cls(source.read_text(encoding="utf-8"), tokenizer, name)

    @classmethod
    def of_model(
        cls, folder: Path, tokenizer: Tokenizer, settings: ModelSettings
    ) -> "ChatTemplate":
        """The model's own, GLM-4's for models of its block with a published tokenizer, or ours."""
        own = folder / TEMPLATE_FILE
        if own.exists():
            return cls(own.read_text(encoding="utf-8"), tokenizer)
        is_published = settings.causal and tokenizer.FILE == "tokenizer.json"
        return cls.named("glm-4" if is_published else "glm_dist", tokenizer)

    def tokens(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        called: str | None = None,
        values: Mapping[str, Any] | None = None,
        max_bytes: int,
    ) -> list[int]:
        """Ids of a dialogue; roles come from the template alone.

        Args:
            messages: turns, as `plain_messages` gives them.
            tools: definitions of what may be called.
            add_generation_prompt: whether the assistant's turn begins at the end.
            called: name of the tool that it has to call.
            values: what else the client gives the template.
            max_bytes: the longest text that is rendered.

        Raises:
            ApiError: 400 when the template refuses the dialogue, or says too much.
        """
        taken = _RESERVED & (values or {}).keys()
        if taken:
            raise ApiError(
                400,
                f"chat_template_kwargs: {min(taken)} is the template's own",
                param="chat_template_kwargs",
            )
        given = {**(values or {}), "messages": messages, "tools": tools, "called": called}
        text = self._render(
            {**self._guarded(given), "add_generation_prompt": add_generation_prompt}, max_bytes
        )
        ids: list[int] = []
        for piece in self._names.split(text):
            if piece in self._roles:
                ids.append(self._roles[piece])
            elif piece:
                ids += self._tokenizer.encode(piece.replace(_GUARD, "")).tolist()
        return ids

    def _render(self, values: dict[str, Any], max_bytes: int) -> str:
        parts, size = [], 0
        try:
            with _time_limit(RENDER_SECONDS):
                for part in self._template.generate(values):
                    size += len(part)
                    if size > max_bytes:
                        raise ApiError(
                            400,
                            f"messages: the dialogue is longer than {max_bytes:,} characters",
                            param="messages",
                            code="context_length_exceeded",
                        )
                    parts.append(part)
        except _REFUSALS as error:
            raise ApiError(
                400, f"messages: the model's template refuses them ({error})", param="messages"
            ) from None
        return "".join(parts)

    @cached_property
    def _roles(self) -> dict[str, int]:
        return {self._tokenizer.piece(i): int(i) for i in self._tokenizer.special_ids if i >= 0}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        longest_first = sorted(self._roles, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _guarded(self, value: Any) -> Any:
        """The same, with the guard behind every character that a name of a role begins with."""
        if isinstance(value, str):
            return self._openings.sub(lambda found: found.group() + _GUARD, value)
        if isinstance(value, dict):
            return {self._guarded(key): self._guarded(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._guarded(one) for one in value]
        return value

    @cached_property
    def _openings(self) -> re.Pattern[str]:
        return re.compile("|".join(sorted({re.escape(name[0]) for name in self._roles})))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without a way out, and with small numbers."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {
            "tojson": _to_json,
            "pyrepr": repr,
        }
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
            "raise_exception": _raise,
            "strftime_now": time.strftime,
        }

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = (len(left) if hasattr(left, "__len__") else abs(left) or 1) * (
            len(right) if hasattr(right, "__len__") else abs(right) or 1
        )
        if operator == "**" or size > MAX_REPEATED:
            raise jinja2.TemplateError("a product is too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Formatting can ask for any width.
        return attr not in ("format", "format_map", "center", "ljust", "rjust", "zfill") and (
            super().is_safe_attribute(obj, attr, value)
        )


_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "select", "selectattr", "sort", "string", "sum", "title", "trim",
    "unique", "upper",
)  # fmt: skip


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop a template that runs longer, at its next line.

    Raises:
        TimeoutError: inside of it.
    """
    end = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != "<template>":
            return None
        if time.monotonic() > end:
            raise TimeoutError(f"it runs longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
