"""Tuning, scoring and asking again as a user runs them, on tables as users have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_scenarios import SMALL, reviews, small_tokenizer
from train_scenarios import make_dataset

from glm_dist.data.rows import RowSettings
from glm_dist.engine import save_weights
from glm_dist.engine.folders import CONFIG
from glm_dist.evaluate.left_to_right import bits_by_language
from glm_dist.inference import load_model
from glm_dist.model import ModelSettings, build_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray
TAKEN = ("rows", "batch", "engine", "sinks", "workers", "schedule")


class Home:
    """A home for outputs, with a base model of random weights and a folder of reviews."""

    def __init__(self, folder):
        self.folder = folder
        tokenizer = small_tokenizer()
        settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
        base = folder / "base"
        save_weights(base, dict(build_model(settings).named_parameters()))
        tokenizer.save(base)
        (base / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
        self.data = folder / "2026"
        self.data.mkdir()
        for number, (name, count) in enumerate({"train": 240, "dev": 40, "test": 60}.items()):
            lines = ["stars,review", *(f"{label},{text}" for text, label in reviews(count, number))]
            (self.data / f"{name}.csv").write_text("\n".join(lines) + "\n")

    def run(self, job, *arguments):
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / job), *arguments],
            env={**os.environ, "GLM_DIST_HOME": str(self.folder)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("home"))


def test_a_folder_of_tables_is_learnt_scored_and_scored_again(home):
    changes = {name: SMALL[name] for name in TAKEN}
    done = home.run(
        "finetune.py",
        f"--data={home.data}",
        "--lstm",
        "init_from=base",
        "epochs=6",
        "dropout=0",
        "seed=7",
        *(f"{name}={json.dumps(value)}" for name, value in changes.items()),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "text is 'review', label is 'stars'" in done.stderr
    assert "labels       2: bad, good" in done.stdout
    run = home.folder / "runs" / "2026"
    assert f"next         python jobs/serve.py model={run}" in done.stdout
    tuned = json.loads((run / "test" / "scores.json").read_text())
    assert tuned["scores"][0]["name"] == "accuracy"
    assert tuned["scores"][0]["value"] > 90
    beside = json.loads((run / "baselines" / "lstm" / "scores.json").read_text())
    assert beside["scores"][0]["value"] > 90
    assert "learning rate 0.001, epoch 10, loss" in done.stdout

    data = f"data={home.data / 'test.csv'}"
    again = home.run("evaluate.py", "model=runs/2026", data)
    assert again.returncode == 0, again.stderr[-2000:]
    scored = json.loads((run / "evaluation" / "scores.json").read_text())
    assert scored["scores"] == tuned["scores"]
    assert f"accuracy {scored['scores'][0]['value']:.1f} (" in again.stdout

    assert "next         python jobs/serve.py model=runs/2026" in again.stdout
    assert (run / "evaluation" / "report.md").read_text().startswith("# classification, 60 ex")

    strange = home.data / "strange.csv"
    strange.write_text("stars,review\ngood,fine\nsuperb,the film\nbad,\n")
    refused = home.run("evaluate.py", "model=runs/2026", f"data={strange}")
    assert refused.returncode == 2
    assert f"{strange} line 3: the label 'superb' is none that training has seen" in refused.stderr
    assert f"{strange} line 4: the text is empty" in refused.stderr


@pytest.mark.slow
def test_texts_with_several_labels_are_learnt_and_scored_by_thresholds_of_their_own(home):
    folder = home.folder / "several"
    folder.mkdir()
    for number, (name, count) in enumerate({"train": 240, "dev": 40, "test": 60}.items()):
        lines = [
            {"text": text, "labels": [label, *(["dog"] if "dog" in text else [])]}
            for text, label in reviews(count, number + 10)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = {name: SMALL[name] for name in TAKEN}
    done = home.run(
        "finetune.py",
        f"--data={folder}",
        "task.kind=multi_label",
        "init_from=base",
        "epochs=8",
        "dropout=0",
        *(f"{name}={json.dumps(value)}" for name, value in changes.items()),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "labels       3: bad, dog, good" in done.stdout
    assert "thresholds   0." in done.stdout
    run = home.folder / "runs" / "several"
    tuned = json.loads((run / "test" / "scores.json").read_text())["scores"]
    assert [one["name"] for one in tuned] == ["micro F1", "macro F1", "subset accuracy"]
    assert tuned[0]["value"] > 80
    again = home.run("evaluate.py", "model=runs/several", f"data={folder / 'test.jsonl'}")
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((run / "evaluation" / "scores.json").read_text())["scores"] == tuned


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("finetune.py", ["task.kind=translate"], "task.kind: got 'translate'; it is one of"),
        ("finetune.py", ["task.kind=labelling", "task.label=[x]"], "did you mean 'labels'"),
        (
            "finetune.py",
            ["--data={data}", "init_from=base", "task.columns={{text: words}}"],
            "train.csv has no such column\nthe columns there are stars, review",
        ),
        ("finetune.py", ["--data={data}/nothing"], "nothing holds no train.csv"),
        ("finetune.py", ["--data={data}", "--seeds=3"], "--seeds: needs the model"),
        (
            "finetune.py",
            ["task={{kind: mixture, tasks: {{a: {{kind: translation, tran: x.tsv}}}}}}"],
            "task.tasks.a.tran: no such setting; did you mean 'train'?",
        ),
        ("finetune.py", ["task.kind=translation", "--lstm"], "--lstm: classifies texts and tags"),
        ("evaluate.py", ["model=base", "data={data}/test.csv"], "carries no task; give a model"),
        ("evaluate.py", ["model=nowhere", "data={data}/test.csv"], "nowhere"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(home, job, arguments, message):
    done = home.run(job, *(argument.format(data=home.data) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr


def test_what_is_forgotten_of_text_that_is_mixed_in_is_told(home):
    dataset = make_dataset(home.folder / "data" / "text", small_tokenizer())
    changes = {name: SMALL[name] for name in TAKEN}
    done = home.run(
        "finetune.py",
        f"--data={home.data}",
        "init_from=base",
        "run_folder=runs/remembering",
        "epochs=1",
        'replay={"dataset": "data/text", "share": 0.3}',
        *(f"{name}={json.dumps(value)}" for name, value in changes.items()),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads((home.folder / "runs" / "remembering" / "forgotten.json").read_text())
    base, _ = load_model(home.folder / "base")
    bits = bits_by_language(base, dataset, RowSettings(sequence_length=64), 128, 4)
    assert told["before"] == {"en": pytest.approx(bits["en"].value, rel=1e-4)}
    assert told["after"]["en"] < told["before"]["en"]
    assert f"en: {told['after']['en']:.3f} bits a byte of held-out text, " in done.stdout


def test_a_search_goes_on_where_it_was_and_only_what_is_best_reads_the_test_part(home):
    changes = {name: SMALL[name] for name in TAKEN}
    asked = [
        f"--data={home.data}",
        "init_from=base",
        "name=searched",
        "epochs=3",
        "dropout=0",
        *(f"{name}={json.dumps(value)}" for name, value in changes.items()),
        "schedule={peak_learning_rate: 1e-6}",
        "search.learning_rates=[5e-3, 1e-2]",
    ]
    done = home.run("finetune.py", *asked, "--search=2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = home.folder / "runs" / "searched"
    ends = sorted(run.glob("search/trial-*/final.json"))
    written = [end.stat().st_mtime_ns for end in ends]
    assert len(ends) == 2
    assert "trial 2 of 2  schedule.peak_learning_rate=" in done.stdout
    kept = json.loads((run / "search" / "search.json").read_text())
    assert kept["best"]["trial"] == 2  # with the config's own rate nothing is learnt
    best = kept["best"]["schedule.peak_learning_rate"]
    assert f"best         schedule.peak_learning_rate={best:g}" in done.stdout
    config = json.loads((run / "config.json").read_text())
    assert config["schedule"]["peak_learning_rate"] == best
    tested = [path.parent for path in run.glob("**/test/scores.json")]
    assert tested == [run / "test"]
    assert not list((run / "search").glob("**/*.safetensors"))

    again = home.run("finetune.py", *asked, "--search=2")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert sorted(run.glob("search/trial-*/final.json")) == ends
    assert [end.stat().st_mtime_ns for end in ends] == written
    assert "run folder" in again.stdout.split("best ")[1]


def test_flags_that_exclude_each_other_are_named(home):
    asked = [f"--data={home.data}", "--search=3"]
    done = home.run("finetune.py", *asked, "--seeds=2", "init_from=base")
    assert done.returncode == 2
    assert "--seeds and --search cannot be had together" in done.stderr
    done = home.run("finetune.py", *asked)
    assert done.returncode == 2
    assert "--search: needs the model that is begun with; give init_from" in done.stderr
