"""Runs that train a part of the model, or an adapter beside a finished one."""

import json
import shutil

import pytest
import torch
from train_scenarios import KilledError, Runner, make_dataset, make_settings

from glm_dist.config import load_config
from glm_dist.engine import load_weights
from glm_dist.engine.adapters import ADAPTER_CONFIG, ADAPTER_FILE
from glm_dist.errors import CheckpointError, ConfigError, ModelError
from glm_dist.inference import load_model
from glm_dist.train.attempt import claim_run_folder, decide_attempt
from glm_dist.train.initial import base_fingerprint, build_initial, check_initial
from glm_dist.train.launch import resolve
from glm_dist.train.plan import plan_memory
from glm_dist.train.settings import PretrainSettings

KINDS = {
    "lora": {"kind": "lora", "rank": 4, "dropout": 0.1},
    "dora": {"kind": "dora", "rank": 4},
    "p_tuning": {"kind": "p_tuning", "num_prefix_tokens": 4},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory):
    """A finished run."""
    runner = Runner(dataset, make_settings(dataset), tmp_path_factory.mktemp("base"))
    runner.run()
    return runner


def tuned(base, folder, **tuning):
    settings = make_settings(
        base.dataset,
        init_from=str(base.folder),
        tuning=tuning,
        schedule={"peak_learning_rate": 2e-2},
    )
    return Runner(base.dataset, settings, folder)


def heldout(runner):
    lines = (runner.folder / "metrics.jsonl").read_text().splitlines()
    return [line["heldout/loss"] for line in map(json.loads, lines) if "heldout/loss" in line]


@pytest.fixture(params=KINDS)
def run(request, base, tmp_path):
    """An adapter's run, and one that died and went on."""
    if request.param != "p_tuning":
        pytest.importorskip("peft")
    whole = tuned(base, tmp_path / "whole", **KINDS[request.param])
    whole.run()
    broken = tuned(base, tmp_path / "broken", **KINDS[request.param])
    with pytest.raises(KilledError):
        broken.run(break_at=6)
    broken.run()
    return whole, broken


def test_an_adapter_learns_survives_a_death_and_opens_beside_its_base(run, base):
    whole, broken = run
    assert heldout(whole)[-1] < heldout(whole)[0]
    if whole.settings.tuning.is_low_rank:
        assert heldout(whole)[0] == pytest.approx(heldout(base)[-1], rel=1e-6)
    assert whole.losses() == broken.losses()
    folder = whole.folder / "model"
    assert (folder / ADAPTER_FILE).read_bytes() == (
        broken.folder / "model" / ADAPTER_FILE
    ).read_bytes()
    assert not (folder / "model.safetensors").exists()
    model, tokenizer = load_model(whole.folder)
    assert tokenizer.sha256 == base.dataset.tokenizer.sha256
    assert final_loss(whole, model) == pytest.approx(heldout(whole)[-1], rel=1e-5)


def final_loss(runner, model):
    """The held-out loss, by the model as it is loaded for inference."""
    from glm_dist.evaluate.heldout import TokenOutputs
    from glm_dist.train.boundary import all_sum
    from glm_dist.train.stream import to_batch
    from glm_dist.train.worker import Job, build_evaluator

    class One:
        rank, world_size = 0, 1

    job = Job(runner.settings, str(runner.folder), str(runner.dataset.folder), runner.prints)

    @torch.no_grad()
    def losses(rows):
        return TokenOutputs(model(*to_batch(rows, torch.device("cpu"))).token_losses.numpy())

    return build_evaluator(job, One()).measure(losses, all_sum)["heldout/loss"]


def test_a_run_with_frozen_parameters_leaves_them_as_they_were(base, tmp_path):
    frozen = ["word_embeddings.*", "*.attention.*"]
    runner = tuned(base, tmp_path, frozen=frozen)
    runner.run()
    before, after = build_initial(runner.settings).state_dict(), load_weights(tmp_path / "model")
    rows, table = base.dataset.tokenizer.vocab_size, "word_embeddings.weight"
    assert torch.equal(after[table][:rows], load_weights(base.folder / "model")[table][:rows])
    for name, weight in before.items():
        is_frozen = "word_embeddings" in name or ".attention." in name
        assert torch.equal(after[name], weight) is is_frozen, name
    assert not (tmp_path / "model" / ADAPTER_CONFIG).exists()


def test_mistakes_are_found_before_anything_starts(base, dataset):
    wrong = make_settings(dataset, tuning={"frozen": ["word_embedding.*", "transformer.*"]})
    with pytest.raises(ConfigError, match="'word_embedding\\.\\*' matches no parameter"):
        resolve(wrong, dataset)
    with pytest.raises(ConfigError, match="leave nothing to train"):
        resolve(make_settings(dataset, tuning={"frozen": ["*"]}), dataset)
    with pytest.raises(ConfigError, match=r"rows.source_shares: boks is no source of .*; it has"):
        resolve(make_settings(dataset, rows={"source_shares": {"boks": 0.5}}), dataset)
    with pytest.raises(ConfigError, match="trained beside a finished model; give it as init_from"):
        load_config(PretrainSettings, overrides=["tuning.kind=lora"])
    pytest.importorskip("peft")
    wrong = make_settings(
        dataset, init_from=str(base.folder), tuning={"kind": "lora", "targets": ["q_proj"]}
    )
    with pytest.raises(ConfigError, match="'q_proj' matches no linear map"):
        resolve(wrong, dataset)


def test_an_adapter_beside_a_model_that_would_have_to_grow_is_refused(base, dataset):
    settings = make_settings(
        dataset,
        model={"pad_vocab_multiple": 512},
        init_from=str(base.folder),
        tuning={"kind": "p_tuning"},
    )
    with pytest.raises(
        ModelError, match=r"384 rows there and 512.*p_tuning would leave the others"
    ):
        check_initial(settings, dataset.tokenizer)


def test_a_run_does_not_go_on_beside_another_base(base, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(base.folder / "model", moved)
    settings = make_settings(
        base.dataset,
        init_from=str(moved),
        tuning=KINDS["p_tuning"],
        checkpoints={"every_steps": 4, "asynchronous": False},  # the first is there when it is due
    )
    runner = Runner(base.dataset, settings, tmp_path / "run")
    with pytest.raises(KilledError):
        runner.run(break_at=6)
    (moved / "model.safetensors").write_bytes(b"another")
    with pytest.raises(CheckpointError, match="another base model"):
        decide_attempt(runner.folder, settings, runner.prints | base_fingerprint(settings), 1)


def test_a_run_of_before_a_setting_existed_goes_on_with_its_default(dataset, tmp_path):
    settings = make_settings(dataset)
    claim_run_folder(tmp_path, settings)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["tuning"], old["model"]["head"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    claim_run_folder(tmp_path, settings)
    (tmp_path / "config.json").write_text(json.dumps(old))
    other = make_settings(dataset, tuning={"frozen": ["*.bias"]})
    with pytest.raises(CheckpointError, match=r"tuning.frozen: \[\] there, \['\*.bias'\] now"):
        claim_run_folder(tmp_path, other)


def test_the_plan_counts_optimizer_bytes_of_what_is_trained(dataset, base):
    settings = make_settings(dataset)
    everything = plan_memory(settings)
    frozen = make_settings(dataset, tuning={"frozen": ["word_embeddings.*"]})
    model = build_initial(frozen)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plan = plan_memory(frozen)
    assert plan.weights == everything.weights
    assert (plan.gradients, plan.optimizer) == (4 * trained, 8 * trained)
    assert plan.optimizer < everything.optimizer
