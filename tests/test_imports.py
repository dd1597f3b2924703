"""The arrows of the house go down and never between siblings; heavy libraries have one owner."""

import ast
from pathlib import Path

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
]
OWNERS = {
    "deepspeed": lambda path: path.parts[1] == "engine",
    "sentencepiece": lambda path: path.name == "tokenizer.py",
    "wandb": lambda path: path.parts[1] == "metrics",
    "ray": lambda path: (
        path.name == "pipeline.py"
        or path == Path("glm_dist/train/launch.py")
        or path.parts[1] == "serve"
    ),
}


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def problems(path: Path, source: str) -> list[str]:
    own = path.parts[1].removesuffix(".py")
    found = []
    for name in imported(source):
        parts = name.split(".")
        if parts[0] in OWNERS and not OWNERS[parts[0]](path):
            found.append(f"{path} imports {parts[0]}")
        is_ours = parts[0] == "glm_dist" and len(parts) > 1 and {parts[1], own} <= set(LAYERS)
        if is_ours and LAYERS.index(parts[1]) < LAYERS.index(own):
            found.append(f"{path} imports {name}, which lies above it")
    return found


def test_every_import_goes_down_and_heavy_libraries_stay_with_their_owner():
    files = sorted((ROOT / "glm_dist").rglob("*.py"))
    assert files
    found = [
        problem for file in files for problem in problems(file.relative_to(ROOT), file.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("glm_dist/objective/spans.py", "from glm_dist.model import GLM"),
        ("glm_dist/data/rows.py", "def f():\n    import glm_dist.train.loop"),
        ("glm_dist/train/loop.py", "import ray.data"),
        ("glm_dist/train/worker.py", "from deepspeed import initialize"),
        ("glm_dist/data/shards.py", "from glm_dist import engine"),
    ],
)
def test_a_wrong_arrow_is_found(path, source):
    assert problems(Path(path), source)
