"""The texts of tasks as files: what is learnt from and what is scored lie apart, answers too."""

import json

import pytest
from asking import run_job

PAIRS = [(f"{n} red houses", f"{n} rote Häuser") for n in range(20)]
SENTENCES = "我 O\n在 O\n北 B-LOC\n京 E-LOC\n\n好 O\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Configs of a translation with a test part to be cut, of tagged tokens and of dialogues."""
    folder = tmp_path_factory.mktemp("home")
    lines = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    (folder / "pairs.tsv").write_text(lines, encoding="utf-8")
    for name in ("tags.bmes", "dev.bmes"):
        (folder / name).write_text(SENTENCES, encoding="utf-8")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n" + "\n")
    (folder / "chats.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 2)
    tasks = {
        "pairs": {"kind": "translation", "columns": {"source": 0, "target": 1}, "test_share": 0.25},
        "tags": {"kind": "labelling", "dev": str(folder / "dev.bmes")},
        "chat": {"kind": "dialogue", "dev": str(folder / "chat.jsonl")},
    }
    for name, file in (("pairs", "pairs.tsv"), ("tags", "tags.bmes"), ("chat", "chats.jsonl")):
        config = {"name": name, "task": {**tasks[name], "train": str(folder / file)}}
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def read(home, task, part):
    lines = (home / "task_texts" / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_parts_lie_apart_with_answers_beside(home):
    configs = [str(home / f"{name}.json") for name in ("pairs", "tags", "chat")]
    done = run_job(home, "task_texts.py", *configs)
    assert done.returncode == 0, done.stderr
    train, test = read(home, "pairs", "train"), read(home, "pairs", "test")
    assert len(train) == 15
    found = sorted((one["text"][0], one["answered"][1]) for one in train + test)
    assert found == sorted(PAIRS)
    # Where dev is given it is held out; where it is cut, by a seed that others do not know, it is
    # learnt from.
    assert read(home, "tags", "train") == read(home, "tags", "test")
    assert read(home, "tags", "train")[0]["text"] == ["我在北京"]
    assert read(home, "chat", "test") == [{"text": ["Hi", "Hello!"], "answered": ["Hi", "Hello!"]}]


def test_a_config_that_does_not_exist_is_named(home):
    done = run_job(home, "task_texts.py", str(home / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mixture_is_refused_whose_tasks_have_parts_of_their_own(home):
    task = {"kind": "mixture", "tasks": {"a": {"kind": "translation", "train": "a.tsv"}}}
    (home / "mixed.json").write_text(json.dumps({"name": "mixed", "task": task}))
    done = run_job(home, "task_texts.py", str(home / "mixed.json"))
    assert done.returncode == 2
    assert "is a mixture; give the config of each of its tasks" in done.stderr
