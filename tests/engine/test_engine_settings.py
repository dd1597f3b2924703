"""Settings say what has no effect, and DeepSpeed is told everything."""

import json

import pytest
import torch
from pydantic import ValidationError

from glm_dist.engine import EngineSettings
from glm_dist.engine.device import KEPT_MEMORY, choose_dtype, kept_memory
from glm_dist.engine.ds_config import deepspeed_config

CPU = torch.device("cpu")


def config_of(dtype=torch.bfloat16, has_streams=True, num_trained=1000, **options):
    return deepspeed_config(
        EngineSettings(**options),
        dtype,
        num_parameters=1000,
        num_trained=num_trained,
        world_size=2,
        has_streams=has_streams,
    )


@pytest.mark.parametrize("num_trained", [1, 999, 1000, 10**9 + 1])
def test_buckets_hold_what_deepspeed_gathers_and_are_even(num_trained):
    """A head of an odd number of labels makes the number of parameters odd."""
    zero = config_of(zero_stage=2, num_trained=num_trained)["zero_optimization"]
    bucket = zero["allgather_bucket_size"]
    assert bucket % 2 == 0
    assert bucket >= min(num_trained, EngineSettings().reduce_bucket_elements)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backend": "torch", "zero_stage": 3}, ["zero_stage"]),
        ({"backend": "torch", "offload_optimizer": "cpu"}, ["offload_optimizer"]),
        ({"zero_stage": 0, "reduce_bucket_elements": 5}, ["reduce_bucket_elements"]),
        ({"zero_stage": 2, "prefetch_elements": 5}, ["prefetch_elements"]),
        ({"dtype": "float32", "gradient_dtype": "float32"}, ["gradient_dtype"]),
        ({"zero_stage": 3, "prefetch_elements": 5}, []),
        ({}, []),
    ],
)
def test_options_without_effect_say_so(options, named):
    warnings = EngineSettings(**options).warnings()
    assert [warning.split(":")[0] for warning in warnings] == [f"engine.{name}" for name in named]


def test_parameters_cannot_be_offloaded_unless_sharded():
    with pytest.raises(ValidationError, match="zero_stage 2; only stage 3 shards weights"):
        EngineSettings(zero_stage=2, offload_parameters="cpu")


@pytest.mark.parametrize("field", ["beta1", "eps", "weight_decay", "gradient_clip_norm"])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(ValidationError, match=field):
        EngineSettings(**{field: -1.0})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_config_is_json_and_holds_the_settings(stage):
    config = json.loads(json.dumps(config_of(zero_stage=stage, gradient_clip_norm=0.25)))
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == 0.25
    assert config["gradient_accumulation_steps"] == 1
    assert config["train_batch_size"] == 2
    assert config["bf16"]["enabled"]
    assert config["communication_data_type"] == "fp32"
    assert ("stage3_param_persistence_threshold" in config["zero_optimization"]) == (stage == 3)


def test_gradients_add_up_in_the_type_asked_for():
    assert config_of(zero_stage=2)["data_types"] == {"grad_accum_dtype": "fp32"}
    narrow = config_of(zero_stage=2, gradient_dtype="bfloat16")
    assert narrow["data_types"] == {"grad_accum_dtype": "bf16"}
    assert narrow["communication_data_type"] == "bf16"
    assert config_of(torch.float32, gradient_dtype="bfloat16")["communication_data_type"] == "fp32"


def test_buckets_are_no_larger_than_the_model():
    assert config_of()["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config_of(reduce_bucket_elements=10)["zero_optimization"]["reduce_bucket_size"] == 10


def test_overlap_and_offload_reach_deepspeed():
    assert config_of()["zero_optimization"]["overlap_comm"]
    assert not config_of(has_streams=False)["zero_optimization"]["overlap_comm"]
    assert not config_of(overlap_communication=False)["zero_optimization"]["overlap_comm"]
    zero = config_of(zero_stage=3, offload_optimizer="cpu", offload_parameters="cpu")
    assert zero["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert zero["zero_optimization"]["offload_param"]["device"] == "cpu"


def test_dtype_is_what_was_asked_for():
    assert choose_dtype(EngineSettings(dtype="float32"), CPU) == torch.float32
    assert choose_dtype(EngineSettings(dtype="bfloat16"), CPU) == torch.bfloat16


def test_auto_takes_bf16_where_the_processor_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        wanted = torch.bfloat16 if has else torch.float32
        assert choose_dtype(EngineSettings(), CPU) == wanted


def test_what_the_user_says_of_memory_wins(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert kept_memory() == {**KEPT_MEMORY, "MALLOC_ARENA_MAX": "4"}
