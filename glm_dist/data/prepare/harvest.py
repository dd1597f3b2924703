"""The sample corpus: the documentation in this machine's own Python, real English prose and code.

Docstrings are read from source files without importing them, so that harvesting takes seconds and
runs nothing.
"""

import ast
import importlib.util
import inspect
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

PACKAGES = ("numpy", "torch", "pyarrow", "pandas", "ray", "deepspeed", "pydantic", "fastapi")
MIN_DOCSTRING_CHARACTERS = 200
SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "__pycache__"}


def harvest(path: Path, max_bytes: int = 8_000_000) -> int:
    """Write the corpus as JSON lines, one module or help topic a document; return its UTF-8 bytes.

    The same installation gives the same file. Existing files are kept.
    """
    if path.exists():
        return path.stat().st_size
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    size = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for name, text in _documents():
            size += len(text.encode())
            if size > max_bytes:
                break
            file.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
    return path.stat().st_size


def _documents() -> Iterator[tuple[str, str]]:
    for name, text in sorted(topics.topics.items()):
        yield f"topic {name}", text
    yield from _modules(Path(sysconfig.get_paths()["stdlib"]))
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            yield from _modules(Path(spec.submodule_search_locations[0]))


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder.parent)
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
            text = _docstrings(path)
            if text:
                yield str(relative), text


def _docstrings(path: Path) -> str:
    """The longer docstrings of a source file, each under the line that begins its definition."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_DOCSTRING_CHARACTERS:
                parts.append(f"{getattr(node, 'name', path.stem)}\n\n{inspect.cleandoc(text)}")
    return "\n\n".join(parts)
