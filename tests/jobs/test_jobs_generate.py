"""A dataset answered by a pool, as a user asks for it: the answers are those of one process."""

import json

import pyarrow.parquet as pq
import pytest
from asking import run_job, write_random_model
from finetune_scenarios import reviews, small_tokenizer, write_folder

from glm_dist.inference import GenerationSettings, Generator, load_model

TEXTS = [f"{text} it was [MASK]." for text, _ in reviews(30, seed=3)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_random_model(folder / "base", small_tokenizer())
    lines = [json.dumps({"id": number, "prompt": text}) for number, text in enumerate(TEXTS)]
    (folder / "asked.jsonl").write_text("\n".join(lines) + "\n")
    data = write_folder(folder / "data", {"train": 20, "dev": 10, "test": 40})
    task = {
        "kind": "classification",
        **{split: str(data / f"{split}.csv") for split in ("train", "dev", "test")},
    }
    (folder / "task.yaml").write_text(json.dumps({"task": task}))
    return folder


def test_a_dataset_is_filled_as_its_texts_would_be(home):
    asked = ("--model", "base", "--data", str(home / "asked.jsonl"), "--output", "answers")
    options = ("--max-new-tokens", "5", "--temperature", "1", "--seed", "7")
    done = run_job(home, "generate.py", *asked, *options, "--engines", "2", "--rows-per-part", "8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    assert "answered     30 of 30 rows" in done.stdout
    found = [row for n in range(4) for row in pq.read_table(part(home, n)).to_pylist()]
    each = [
        GenerationSettings(max_new_tokens=5, temperature=1, seed=7 + number)
        for number in range(len(TEXTS))
    ]
    expected = Generator(*load_model(home / "base")).generate(TEXTS, each)
    assert [(row["prompt"], row["text"], row["blanks"]) for row in found] == [
        (one.prompt, one.text, one.blanks) for one in expected
    ]
    assert found[2]["place"].endswith("asked.jsonl line 3")
    again = run_job(home, "generate.py", *asked, *options, "--engines", "2", "--rows-per-part", "8")
    assert "kept         30 of 30 rows were answered before" in again.stdout


def part(home, number):
    return home / "answers" / f"part-{number:05d}.parquet"


def test_a_task_is_scored_by_a_pool_as_by_one_engine(home):
    asked = ("model=base", f"task_config={home / 'task.yaml'}")
    alone = run_job(home, "evaluate.py", *asked, "output=alone")
    pooled = run_job(
        home, "evaluate.py", *asked, "output=pooled", "pool={num_engines: 2, rows_per_part: 16}"
    )
    assert pooled.returncode == 0, pooled.stderr[-2000:]
    one, other = ((home / each / "predictions.jsonl").read_text() for each in ("alone", "pooled"))
    assert one == other
    assert alone.stdout.splitlines()[0] in pooled.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{home}/asked.jsonl"], "give --output"),
        (["--data", "{home}/asked.jsonl", "--output", "x", "a text"], "not both"),
        ([], "give texts, or a dataset"),
        (["--data", "{home}/none.csv", "--output", "x"], "none.csv: cannot be read as csv"),
        (["--data", "{home}/data/test.csv", "--output", "x", "--column", "body"], "text, label"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(home, arguments, message):
    given = [each.format(home=home) for each in arguments]
    done = run_job(home, "generate.py", "--model", "base", *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (home / "x").exists()
