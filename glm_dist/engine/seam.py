"""The private side of DeepSpeed 0.19.8: everything the engine needs that is no public API.

It stands apart so that one file, with one test file, changes when DeepSpeed does. Two needs lead
here. A step is decided between its norm and its update, which DeepSpeed does in one call; and the
fp32 state is read and written as named slices, which DeepSpeed keeps in flat partitions.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from glm_dist.engine.fragments import Fragment, flat_state, whole_fragments
from glm_dist.engine.frozen import trained_parameters
from glm_dist.engine.interface import STATE_KEYS


def import_deepspeed() -> Any:
    """DeepSpeed, without its log lines and without anything compiled.

    Its only operator on this path, a collective in shared memory, serves inference alone.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import bf16_optimizer

    with _nothing_compiled():
        from deepspeed.runtime.zero.muon import original_muon  # noqa: F401

    # Renamed in torch 2.13; DeepSpeed keeps the names that older releases know.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
    )
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    logger.handlers.clear()  # its own writes to standard output
    logger.propagate = True
    # Prints memory figures whether it is asked to or not.
    bf16_optimizer.see_memory_usage = lambda *arguments, **options: None
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.cuda.is_available():
        # It refuses fp16 on processors without instructions for it, where torch computes it slower.
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
    return deepspeed


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """In here `torch.compile` does nothing.

    DeepSpeed imports its Muon for every engine, and that module compiles functions as it is read,
    which loads torch's whole compiler: a second of a processor in every rank, at every restart.
    """
    real = torch.compile
    torch.compile = lambda function, **options: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def initialize(model: nn.Module, adam: AdamW, config: dict[str, Any], device: torch.device) -> Any:
    """DeepSpeed's engine on `device`, which it reads from a launcher's variable, later too."""
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    engine, *_ = import_deepspeed().initialize(model=model, optimizer=adam, config=config)
    return engine


class StepGate:
    """Stands between DeepSpeed's gradient norm and what DeepSpeed does with it.

    ZeRO's `step` asks one method for the global norm, and drops the step when it is not finite.
    That method now answers what was decided: the norm measured before, or infinity to discard.
    Stage 0 and the bf16 optimizer of stage 1 have no such method; their gradients lie in the open.
    """

    def __init__(self, engine: Any) -> None:
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        self._engine = engine
        self._optimizer = engine.optimizer
        self._decided = torch.zeros(())
        self._measure: Any = None
        if isinstance(self._optimizer, DeepSpeedZeroOptimizer):
            self._measure = self._optimizer.scaled_global_norm
            self._optimizer.scaled_global_norm = lambda norm_type=2: self._decided
            self._optimizer.check_overflow = lambda partition_gradients=True: None
        elif isinstance(self._optimizer, DeepSpeedZeroOptimizer_Stage3):
            self._measure = self._optimizer._get_norm_groups
            self._optimizer._get_norm_groups = lambda: [self._decided]

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Global norm of the summed gradient before clipping, inf where it is not finite."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        if self._measure is None:
            norm = _norm_of(self._open_gradients())
            self._decided = torch.where(torch.isfinite(norm), norm, torch.inf)
            return self._decided
        if hasattr(self._optimizer, "_wait_for_offload_copies"):
            self._optimizer._wait_for_offload_copies()
        measured = self._measure()
        groups = measured if isinstance(measured, list) else [measured]
        self._decided = combine_grad_norm_groups(groups)
        return self._decided

    def scale(self, loss: Tensor, value: float) -> Tensor:
        """The loss for DeepSpeed's backward, whose fp16 gradients then carry the factor `value`."""
        if not hasattr(self._optimizer, "loss_scale"):
            return loss
        self._optimizer.loss_scale = value
        # All stages divide gradients by it again, but stage 0 does not multiply the loss before.
        multiplies = hasattr(self._optimizer, "scale_if_loss")
        return loss if multiplies else loss * value

    def apply(self) -> None:
        """Clip by the norm just measured and update."""
        self._engine.step()

    def discard(self) -> None:
        """Drop the gradients by the way DeepSpeed itself takes at an overflow."""
        if self._measure is None:
            self._optimizer.zero_grad()
        else:
            self._decided = torch.full_like(self._decided, torch.inf)
            self._engine.step()
            # With its optimizer offloaded, ZeRO 1 and 2 would add the next step to this one.
            for group in self._optimizer.averaged_gradients:
                self._optimizer.averaged_gradients[group] = None

    def _open_gradients(self) -> list[Tensor]:
        if hasattr(self._optimizer, "get_grads_for_norm"):
            return self._optimizer.get_grads_for_norm()[0]
        parameters = self._engine.module.parameters()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _norm_of(gradients: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def master_weights(engine: Any, adam: AdamW) -> list[Any]:
    """The fp32 tensors that AdamW updates on this rank."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [master for group in adam.param_groups for master in group["params"]]


def own_fragments(engine: Any, adam: AdamW) -> list[Fragment]:
    """The state this rank keeps, as live views; under stage 0 that is all of it."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _sharded_fragments(engine, adam)
    if hasattr(optimizer, "update_lp_params"):
        return _flat_fragments(engine, adam)
    masters = master_weights(engine, adam)
    weights = [weight for group in _weight_groups(optimizer) for weight in group]
    names = {id(weight): name for name, weight in engine.module.named_parameters()}
    named = ((names[id(weight)], master) for weight, master in zip(weights, masters, strict=True))
    return whole_fragments(named, adam)


def _trained(engine: Any) -> list[tuple[str, Any]]:
    """Parameters with a gradient, and what DeepSpeed has attached to them."""
    return [*trained_parameters(engine.module)]


def _weight_groups(optimizer: Any) -> list[list[Tensor]]:
    """Stage 0's model weights, in the order of AdamW's masters."""
    if hasattr(optimizer, "fp16_groups"):
        return optimizer.fp16_groups
    return [group["params"] for group in optimizer.param_groups]


def _flat_fragments(engine: Any, adam: AdamW) -> list[Fragment]:
    """ZeRO 1 and 2: parameters follow one another in a flat vector that ranks cut evenly."""
    fragments = []
    for name, weight in _trained(engine):
        mapping = weight._hp_mapping
        if mapping is None:
            continue
        flat = adam.param_groups[mapping.param_group_index]["params"][0]
        place = mapping.hp_fragment_address
        tensors = {
            key: tensor.narrow(0, place.start, place.numel)
            for key, tensor in flat_state(adam, flat).items()
        }
        offset = mapping.lp_fragment_address.start
        fragments.append(
            Fragment(name, tuple(weight.shape), offset, tensors, adam.state[flat]["step"])
        )
    return fragments


def _sharded_fragments(engine: Any, adam: AdamW) -> list[Fragment]:
    """ZeRO 3: ranks cut each parameter evenly, the last slice padded."""
    optimizer = engine.optimizer
    fragments = []
    for name, weight in _trained(engine):
        length = weight.ds_tensor.numel()
        offset = engine.global_rank * length
        real = min(length, weight.ds_numel - offset)
        if real <= 0:
            continue
        group, start, _ = optimizer.grad_position[optimizer.get_param_id(weight)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        tensors = {
            key: tensor.narrow(0, start, real) for key, tensor in flat_state(adam, flat).items()
        }
        fragments.append(
            Fragment(name, tuple(weight.ds_shape), offset, tensors, adam.state[flat]["step"])
        )
    return fragments


@torch.no_grad()
def refresh_weights(engine: Any, adam: AdamW) -> None:
    """Give the model the values of the masters, on every rank."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        weights = [weight for group in optimizer.fp16_groups for weight in group]
        torch._foreach_copy_(weights, master_weights(engine, adam))


def gathered(weight: nn.Parameter) -> AbstractContextManager[None]:
    """ZeRO 3's weight is whole inside; what rank 0 writes into it counts on all ranks."""
    return import_deepspeed().zero.GatheredParameters([weight], modifier_rank=0)


def state_bytes(engine: Any, adam: AdamW) -> int:
    """Bytes of masters and moments on this rank, padding included."""
    masters = master_weights(engine, adam)
    return sum(master.numel() * 4 * len(STATE_KEYS) for master in masters)
