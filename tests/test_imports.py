"""The arrows of the house go down, never up, and a heavy library has one owner."""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    "serve",
    "train",
    "evaluate",
    "inference",
    "engine",
    "tasks",
    "data",
    "model",
    "metrics",
    "objective",
    "tokenizer",
    "config",
    "errors",
    "__init__",
]
"""From the top down; each may import those after it, and of glm_dist itself only the version."""
RAY_OF_TRAINING = ("launch", "cluster", "trainer", "search")
OWNERS = {
    "deepspeed": lambda path: path.parts[:2] == ("glm_dist", "engine"),
    "sentencepiece": lambda path: path == PurePosixPath("glm_dist/tokenizer/sentence_piece.py"),
    "tokenizers": lambda path: path == PurePosixPath("glm_dist/tokenizer/huggingface.py"),
    "vllm": lambda path: path.name in ("vllm_engine.py", "_serve_vllm.py"),
    "llguidance": lambda path: path == PurePosixPath("glm_dist/inference/constraints.py"),
    "wandb": lambda path: path.parts[:2] == ("glm_dist", "metrics"),
    "ray": lambda path: (
        path.parts[0] in ("jobs", "cluster")
        or path.parts[:2] == ("glm_dist", "serve")
        or path.name == "pipeline.py"
        or (path.parts[:2] == ("glm_dist", "train") and path.stem in RAY_OF_TRAINING)
    ),
}


def imported(path: PurePosixPath, source: str) -> Iterator[str]:
    """Full names of all that a file imports, in functions too and by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__", "find_spec"):
                yield str(node.args[0].value)


def layer(name: str) -> str:
    """The layer of a dotted name or a path below glm_dist."""
    return name.removesuffix(".py")


def problems(path: PurePosixPath, source: str) -> Iterator[str]:
    """What is wrong with a file's imports, each as one sentence."""
    inside = path.parts[0] == "glm_dist"
    own = layer(path.parts[1]) if inside else ""
    if inside and own not in LAYERS:
        yield f"{path}: {own} has no place in the order of the house"
        return
    for name in imported(path, source):
        library, *inner = name.split(".")
        if library in OWNERS and not OWNERS[library](path):
            yield f"{path} imports {library}, which has another owner"
        target = layer(inner[0]) if inner else "__init__"
        if library != "glm_dist" or not inside or target not in LAYERS:
            continue
        if LAYERS.index(target) < LAYERS.index(own):
            yield f"{path} imports {name}, which lies above it"


def test_every_import_goes_down_and_heavy_libraries_stay_with_their_owner():
    files = [file for folder in ("glm_dist", "jobs") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = [
        problem
        for file in sorted(files)
        for problem in problems(PurePosixPath(file.relative_to(ROOT)), file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("glm_dist/objective/spans.py", "from glm_dist.model import GLM"),
        ("glm_dist/objective/spans.py", "from ..model import GLM"),
        ("glm_dist/objective/spans.py", "from .. import model"),
        ("glm_dist/data/rows.py", "def f():\n    import glm_dist.train.loop"),
        ("glm_dist/data/shards.py", "from glm_dist import engine"),
        ("glm_dist/errors.py", "from glm_dist.config import home"),
        ("glm_dist/__init__.py", "from glm_dist.model import GLM"),
        ("glm_dist/data/rows.py", "import importlib\nimportlib.import_module('glm_dist.train')"),
        ("glm_dist/helpers/text.py", "import re"),
        ("glm_dist/train/loop.py", "import ray.data"),
        ("glm_dist/train/loop.py", "if TYPE_CHECKING:\n    from ray import ObjectRef"),
        ("glm_dist/train/worker.py", "from deepspeed import initialize"),
        ("glm_dist/data/prepare/work.py", "from sentencepiece import SentencePieceProcessor"),
        ("glm_dist/train/report.py", "import wandb"),
        ("jobs/pretrain.py", "import deepspeed"),
    ],
)
def test_a_wrong_arrow_is_found(path, source):
    assert list(problems(PurePosixPath(path), source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("glm_dist/train/launch.py", "import ray"),
        ("glm_dist/data/prepare/pipeline.py", "import ray.data"),
        ("glm_dist/train/loop.py", "from glm_dist.engine.interface import Engine"),
        ("glm_dist/train/loop.py", "from .settings import PretrainSettings"),
        ("glm_dist/config.py", "from glm_dist.errors import ConfigError"),
        ("glm_dist/engine/seam.py", "import deepspeed"),
        ("glm_dist/data/shards.py", "from glm_dist import __version__"),
        ("jobs/pretrain.py", "from glm_dist.train.launch import launch\nimport ray"),
    ],
)
def test_a_right_arrow_is_not_found(path, source):
    assert not list(problems(PurePosixPath(path), source))
