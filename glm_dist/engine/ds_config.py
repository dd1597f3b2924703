"""DeepSpeed's configuration, written in full from our settings.

It stands apart as a pure function: what DeepSpeed is told can be read and tested without it, and
no default of a release decides how a run behaves.
"""

from typing import Any

import torch

from glm_dist.engine.settings import EngineSettings

_BUCKET_MULTIPLE = 2  # which DeepSpeed asserts of an all-gather's bucket

_NAMES = {"float32": "fp32", "bfloat16": "bf16"}
_NARROW = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def deepspeed_config(
    settings: EngineSettings,
    dtype: torch.dtype,
    *,
    num_parameters: int,
    num_trained: int,
    world_size: int,
    has_streams: bool,
) -> dict[str, Any]:
    """The JSON that `deepspeed.initialize` gets.

    Args:
        settings: the engine's settings.
        dtype: compute type, chosen by now.
        num_parameters: weights of the model, which no more are fetched ahead of.
        num_trained: those with a gradient; buckets are made no larger than it.
        world_size: ranks.
        has_streams: whether collectives can run beside the backward pass, as on CUDA.
    """
    is_narrow = dtype in _NARROW
    return {
        # The loop alone counts micro-batches and marks the last one.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip_norm,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "communication_data_type": _NAMES[settings.gradient_dtype] if is_narrow else "fp32",
        "data_types": {"grad_accum_dtype": _accumulation_type(settings, dtype)},
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": True},
        # A scale that DeepSpeed leaves alone: `LossScale` sets it, by the same rule everywhere.
        "fp16": {"enabled": dtype == torch.float16, "loss_scale": 1.0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_optimization": _zero(
            settings,
            num_parameters,
            num_trained,
            has_streams=has_streams and world_size > 1,
        ),
    }


def _accumulation_type(settings: EngineSettings, dtype: torch.dtype) -> str:
    if dtype not in _NARROW:
        return "fp32"
    # Stage 0 knows no accumulation type of its own: gradients add up in the weights' type.
    return _NARROW[dtype] if settings.zero_stage == 0 else _NAMES[settings.gradient_dtype]


def _zero(
    settings: EngineSettings, num_parameters: int, num_trained: int, *, has_streams: bool
) -> dict[str, Any]:
    stage = settings.zero_stage
    bucket = max(1, min(settings.reduce_bucket_elements, num_trained))
    bucket += -bucket % _BUCKET_MULTIPLE
    config: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": has_streams and settings.overlap_communication,
        "round_robin_gradients": False,
    }
    if stage >= 1 and settings.offload_optimizer == "cpu":
        config["offload_optimizer"] = {"device": "cpu", "pin_memory": has_streams}
    if stage < 3:
        return config
    if settings.offload_parameters == "cpu":
        config["offload_param"] = {"device": "cpu", "pin_memory": has_streams}
    return config | {
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": min(settings.prefetch_elements, num_parameters),
        "stage3_max_live_parameters": settings.max_live_elements,
        "stage3_max_reuse_distance": settings.max_live_elements,
        "stage3_param_persistence_threshold": settings.persistent_parameter_elements,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
