"""The DeepSpeed engine: ZeRO stages 0 to 3 behind the interface of the twin.

It stands apart from the seam so that it reads without knowledge of DeepSpeed's inside.
"""

from collections.abc import Container, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glm_dist.engine.ds_config import deepspeed_config
from glm_dist.engine.fragments import Fragment, as_slices, even_share, fill, gather_weights
from glm_dist.engine.frozen import FrozenWeights, kept_shapes, trained_parameters
from glm_dist.engine.interface import STATE_KEYS, ReadSlice, Slice, StepHealth
from glm_dist.engine.loss_scale import LossScale
from glm_dist.engine.optimizer import (
    build_optimizer,
    create_states,
    set_learning_rate,
    traits_of,
)
from glm_dist.engine.seam import (
    StepGate,
    gathered,
    initialize,
    master_weights,
    own_fragments,
    refresh_weights,
    state_bytes,
)
from glm_dist.engine.settings import EngineSettings
from glm_dist.engine.timer import ForwardTimer
from glm_dist.engine.weights import hash_tensors
from glm_dist.model.batch import Batch, LossOutput


class ZeroEngine:
    """A model trained by DeepSpeed; a process group is needed, of one rank if there is one."""

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        device: torch.device,
        dtype: torch.dtype,
        rebuilt: Container[str] = (),
    ) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device, self.dtype = device, dtype
        self._settings = settings
        self._timer = ForwardTimer(device)
        self._loss_scale = LossScale.of(settings, dtype)
        self.parameter_shapes = kept_shapes(model, rebuilt)
        trained = trained_parameters(model)
        self.trained_names = frozenset(name for name, _ in trained)
        self._frozen = FrozenWeights(model, rebuilt, self.rank, self.world_size)
        initial = _copy_weights(trained) if dtype != torch.float32 else None
        self._adam = build_optimizer([(p, traits_of(p)) for _, p in trained], settings)
        self._engine = self._initialize(model)
        create_states(self._adam, master_weights(self._engine, self._adam))
        self._gate = StepGate(self._engine)
        self._grad_norm = torch.zeros(())
        if initial is not None:
            # DeepSpeed makes its fp32 masters from weights it has rounded already.
            self._load_trained(_read_from(initial))

    def backward(self, batch: Batch, scale: float | Tensor, is_last: bool) -> LossOutput:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        with self._timer:
            output: LossOutput = self._engine(*batch)
        # DeepSpeed divides by the ranks, and would by accumulation steps if it knew any.
        loss = output.loss_sum * scale * self.world_size
        self._engine.backward(self._gate.scale(loss, self._loss_scale.value), scale_wrt_gas=False)
        return output

    def prepare(self) -> StepHealth:
        """See `Engine`."""
        self._grad_norm = self._gate.norm() / self._loss_scale.value
        return StepHealth(self._grad_norm, torch.isfinite(self._grad_norm), self._loss_scale.value)

    def apply(self, learning_rate: float) -> None:
        """See `Engine`."""
        set_learning_rate(self._adam, learning_rate)
        self._gate.apply()
        self._loss_scale.step_applied()

    def discard(self) -> None:
        """See `Engine`."""
        self._gate.discard()
        if torch.isinf(self._grad_norm):
            self._loss_scale.overflowed()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossOutput:
        """See `Engine`."""
        self._engine.eval()
        try:
            return self._engine(*batch)
        finally:
            self._engine.train()

    def slices(self) -> Iterator[Slice]:
        """See `Engine`."""
        return as_slices(self._share())

    def load_slices(self, read: ReadSlice) -> None:
        """See `Engine`."""
        self._load_trained(read)
        self._frozen.load(read)
        with_gathered = self._settings.zero_stage == 3
        self._frozen.copy_into(self._engine.module, read, gathered if with_gathered else None)

    def load_loss_scale(self, values: dict[str, Any] | None) -> None:
        """See `Engine`."""
        self._loss_scale.load(values)

    def full_weights(self) -> dict[str, Tensor] | None:
        """See `Engine`."""
        return gather_weights(self._share(), self.parameter_shapes, self.rank, self.device)

    def replica_hash(self) -> str:
        """See `Engine`."""
        if self._settings.zero_stage == 3:
            return ""
        return hash_tensors(self._engine.module.parameters())

    def forward_seconds(self) -> float:
        """See `Engine`."""
        return self._timer.take()

    def optimizer_bytes(self) -> int:
        """See `Engine`."""
        return state_bytes(self._engine, self._adam)

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {
            "backend": "deepspeed",
            "zero_stage": self._settings.zero_stage,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "world_size": self.world_size,
            "optimizer_bytes": self.optimizer_bytes(),
            "loss_scale": self._loss_scale.to_json(),
        }

    def _initialize(self, model: nn.Module) -> Any:
        config = deepspeed_config(
            self._settings,
            self.dtype,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_trained=sum(parameter.numel() for _, parameter in trained_parameters(model)),
            world_size=self.world_size,
            has_streams=self.device.type == "cuda",
        )
        return initialize(model, self._adam, config, self.device)

    def _share(self) -> Iterator[Fragment]:
        fragments = own_fragments(self._engine, self._adam)
        if self._settings.zero_stage == 0:
            fragments = list(even_share(fragments, self.rank, self.world_size))
        return chain(fragments, self._frozen.share)

    def _load_trained(self, read: ReadSlice) -> None:
        fill(own_fragments(self._engine, self._adam), read)
        refresh_weights(self._engine, self._adam)


def _copy_weights(trained: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    return {name: p.detach().float().cpu().view(-1).clone() for name, p in trained}


def _read_from(weights: dict[str, Tensor]) -> ReadSlice:
    """Weights as a source of slices whose moments are zero."""

    def read(name: str, offset: int, length: int) -> dict[str, Tensor]:
        master = weights[name].narrow(0, offset, length)
        moments = {key: torch.zeros(length) for key in STATE_KEYS[1:]}
        return {STATE_KEYS[0]: master, **moments, "step": torch.zeros(())}

    return read
