"""Settings: one YAML file a run, overridden on the command line, checked before a run starts.

It stands apart because every package owns its settings class, and this file knows none of them: it
reads, merges, validates and explains any `Settings`.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from glm_dist.errors import ConfigError

MAX_YAML_NODES = 100_000  # what an honest file stays far below and an alias bomb does not


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """A field of which only the default is changed keeps its description."""
        for name, field in cls.model_fields.items():
            above = (
                one.model_fields.get(name) for one in cls.__mro__[1:] if issubclass(one, Settings)
            )
            described = (one.description for one in above if one is not None)
            field.description = field.description or next(described, None)


S = TypeVar("S", bound=Settings)


def home() -> Path:
    """The folder of all outputs: `GLM_DIST_HOME`, by default `.glm_dist` in the user's home."""
    return Path(os.environ.get("GLM_DIST_HOME") or "~/.glm_dist").expanduser().absolute()


def output_path(path: str | Path) -> Path:
    """An absolute path as it is, a relative one below `home()`, whatever the working directory."""
    return home() / Path(path).expanduser()


def load_config(
    settings_class: type[S], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> S:
    """Read `path`, apply `key.sub=value` overrides, validate.

    Raises:
        ConfigError: with every problem found, each saying key, value, rule and remedy.
    """
    document = {} if path is None else read_yaml(path)
    problems: list[str] = []
    for override in overrides:
        _apply_override(document, override, problems)
    try:
        settings = settings_class.model_validate(document)
    except ValidationError as error:
        problems += [_explain(settings_class, details) for details in error.errors()]
    if problems:
        raise ConfigError(problems)
    return settings


def dump_config(settings: Settings) -> str:
    """The resolved configuration as YAML that `load_config` reads back to the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; YAML 1.2 core types, so `off` is text and `1e-4` a number."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    document = parse_yaml(text, name=str(path))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: holds a {type(document).__name__}; a config is key: value pairs"
        )
    return document


def parse_yaml(text: str, name: str = "value") -> Any:
    """Any YAML value; duplicate keys, self-references and alias bombs are refused by line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}, set()) > MAX_YAML_NODES:
            raise ConfigError(
                f"{name}: its aliases expand to more than {MAX_YAML_NODES:,} values; write them out"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {_one_line(error)}") from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core types and without silent duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.YAMLError(f"line {line}: a key must be a plain word")
            if key in seen:
                raise yaml.YAMLError(
                    f"key {key!r} stands on line {seen[key]} and again on line {line}; keep one"
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _count_nodes(node: yaml.Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Values the document expands to; an alias counts as often as it is used."""
    if id(node) in open_nodes:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias refers to itself")
    if id(node) not in sizes:
        open_nodes.add(id(node))
        parts: Iterator[yaml.Node] = iter(())
        if isinstance(node, yaml.MappingNode):
            parts = (part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            parts = iter(node.value)
        sizes[id(node)] = 1 + sum(_count_nodes(part, sizes, open_nodes) for part in parts)
        open_nodes.discard(id(node))
    return sizes[id(node)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _apply_override(document: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        problems.append(f"{override}: an override is written key=value or key.sub=value")
        return
    try:
        value = parse_yaml(text, name=key)
    except ConfigError as error:
        problems += error.problems
        return
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        child = place.get(parent)
        place[parent] = dict(child) if isinstance(child, Mapping) else {}
        place = place[parent]
    place[last] = value


def _explain(settings_class: type[Settings], details: ErrorDetails) -> str:
    location = ".".join(_path(settings_class, details["loc"])) or "config"
    value = details.get("input")
    if details["type"] == "extra_forbidden":
        return f"{location}: no such setting{_did_you_mean(settings_class, details['loc'])}"
    if details["type"] == "missing":
        return f"{location}: required and not given; add {location}=… or a line to the config"
    if details["type"] == "union_tag_invalid":
        tags = details["ctx"]
        return f"{location}.kind: got {tags['tag']!r}; it is one of {tags['expected_tags']}"
    if details["type"] == "union_tag_not_found":
        return f"{location}.kind: required and not given; add {location}.kind=…"
    message = details["msg"].removeprefix("Value error, ")
    if isinstance(value, Mapping) or (not details["loc"]):
        return message if not details["loc"] else f"{location}: {message}"
    return f"{location}: got {value!r}: {message[:1].lower()}{message[1:]}"


def _did_you_mean(settings_class: type[Settings], location: tuple[int | str, ...]) -> str:
    known = list(_fields_at(settings_class, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    everywhere = [key for key, _ in iter_fields(settings_class)]
    same = [key for key in everywhere if key.split(".")[-1] == location[-1]]
    if same:
        return f"; did you mean {same[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _fields_at(settings_class: type[Settings], location: tuple[int | str, ...]) -> Iterator[str]:
    for here in _walk(settings_class, location):
        classes = here
    for one in classes:
        yield from one.model_fields


def _path(settings_class: type[Settings], location: tuple[int | str, ...]) -> Iterator[str]:
    """A place as it is written in a config: without the tags by which pydantic tells classes."""
    for part, classes in zip(location, _walk(settings_class, location), strict=False):
        if not _has_tag(classes, part):
            yield str(part)


def _walk(
    settings_class: type[Settings], location: tuple[int | str, ...]
) -> Iterator[list[type[Settings]]]:
    """The classes that may stand before each part of a place, and behind the last."""
    classes = [settings_class]
    yield classes
    for part in location:
        if _has_tag(classes, part):
            classes = [one for one in classes if one.model_fields["kind"].default == part]
        elif any(part in one.model_fields for one in classes):  # else a number or a name of yours
            fields = [one.model_fields[part] for one in classes if part in one.model_fields]
            classes = [inner for field in fields for inner in _settings_of(field)]
        yield classes


def _has_tag(classes: Sequence[type[Settings]], part: int | str) -> bool:
    return len(classes) > 1 and any(
        "kind" in one.model_fields and one.model_fields["kind"].default == part for one in classes
    )


def _settings_of(field: FieldInfo) -> list[type[Settings]]:
    """The classes that the values of a field may be of; none where it is a leaf."""
    return list(_classes_in(field.annotation))


def _classes_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for one in get_args(annotation):
        yield from _classes_in(one)


def iter_fields(settings_class: type[Settings]) -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting with its dotted name, in the order the classes define them."""
    for name, field in settings_class.model_fields.items():
        nested = [] if get_origin(field.annotation) is dict else _settings_of(field)
        if not nested:
            yield name, field
        # Where several classes may stand, what they share is told once.
        leaves = {key: leaf for one in reversed(nested) for key, leaf in iter_fields(one)}
        yield from ((f"{name}.{key}", leaf) for key, leaf in leaves.items())
