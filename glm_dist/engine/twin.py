"""The plain torch engine: every rank keeps everything, gradients are summed in one collective.

It stands apart as the yardstick: what ZeRO computes must equal what these few lines compute.
"""

from collections.abc import Container, Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glm_dist.engine.fragments import (
    Fragment,
    as_slices,
    even_share,
    fill,
    gather_weights,
    whole_fragments,
)
from glm_dist.engine.frozen import FrozenWeights, kept_shapes, trained_parameters
from glm_dist.engine.interface import ReadSlice, Slice, StepHealth
from glm_dist.engine.loss_scale import LossScale
from glm_dist.engine.optimizer import (
    build_optimizer,
    create_states,
    set_learning_rate,
    traits_of,
)
from glm_dist.engine.settings import EngineSettings
from glm_dist.engine.timer import ForwardTimer
from glm_dist.engine.weights import hash_tensors
from glm_dist.model.batch import Batch, LossOutput


class TwinEngine:
    """Data parallelism over a torch process group, or a single process without one."""

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        device: torch.device,
        dtype: torch.dtype,
        rebuilt: Container[str] = (),
    ) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.device, self.dtype = device, dtype
        self._settings = settings
        self._timer = ForwardTimer(device)
        self._loss_scale = LossScale.of(settings, dtype)
        model.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
        self._share_first_rank(model)
        self.parameter_shapes = kept_shapes(model, rebuilt)
        self._frozen = FrozenWeights(model, rebuilt, self.rank, self.world_size)
        self._masters = self._copy_masters(model)
        self.trained_names = frozenset(name for name, _ in self._masters)
        self._model = model.to(dtype)
        self._weights: list[Tensor] = [w for _, w in trained_parameters(model)]
        self._gradients = self._attach_gradients()
        traits = [traits_of(weight) for weight in self._weights]
        masters = [master for _, master in self._masters]
        self._adam = build_optimizer(zip(masters, traits, strict=True), settings)
        create_states(self._adam, (master for _, master in self._masters))
        self._grad_norm = torch.zeros((), device=device)

    def backward(self, batch: Batch, scale: float | Tensor, is_last: bool) -> LossOutput:
        """See `Engine`."""
        with self._timer:
            output: LossOutput = self._model(*batch)
        (output.loss_sum * scale * self._loss_scale.value).backward()
        if self._computes_narrow:
            self._accumulate()
        return output

    @torch.no_grad()
    def prepare(self) -> StepHealth:
        """See `Engine`."""
        if self.world_size > 1:
            dist.all_reduce(self._gradients)
        norm = torch.linalg.vector_norm(self._gradients) / self._loss_scale.value
        is_finite = torch.isfinite(norm)
        self._grad_norm = torch.where(is_finite, norm, torch.inf)
        return StepHealth(self._grad_norm, is_finite, self._loss_scale.value)

    @torch.no_grad()
    def apply(self, learning_rate: float) -> None:
        """See `Engine`."""
        longest = self._settings.gradient_clip_norm
        if longest > 0:
            self._gradients.mul_((longest / (self._grad_norm + 1e-6)).clamp(max=1.0))
        if self._loss_scale.value != 1.0:
            self._gradients.div_(self._loss_scale.value)
        set_learning_rate(self._adam, learning_rate)
        self._adam.step()
        self._refresh_weights()
        self._gradients.zero_()
        self._loss_scale.step_applied()

    def discard(self) -> None:
        """See `Engine`."""
        self._gradients.zero_()
        if torch.isinf(self._grad_norm):
            self._loss_scale.overflowed()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossOutput:
        """See `Engine`."""
        self._model.eval()
        try:
            return self._model(*batch)
        finally:
            self._model.train()

    def slices(self) -> Iterator[Slice]:
        """See `Engine`; every rank holds all, so each gives an even share of it."""
        return as_slices(self._share())

    def load_slices(self, read: ReadSlice) -> None:
        """See `Engine`."""
        fill(self._fragments(), read)
        self._frozen.load(read)
        self._frozen.copy_into(self._model, read)
        self._refresh_weights()

    def load_loss_scale(self, values: dict[str, Any] | None) -> None:
        """See `Engine`."""
        self._loss_scale.load(values)

    def full_weights(self) -> dict[str, Tensor] | None:
        """See `Engine`."""
        return gather_weights(self._share(), self.parameter_shapes, self.rank, self.device)

    def replica_hash(self) -> str:
        """See `Engine`."""
        return hash_tensors(self._model.parameters())

    def forward_seconds(self) -> float:
        """See `Engine`."""
        return self._timer.take()

    def optimizer_bytes(self) -> int:
        """See `Engine`."""
        return sum(t.nbytes for fragment in self._fragments() for t in fragment.tensors.values())

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return {
            "backend": "torch",
            "zero_stage": None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "world_size": self.world_size,
            "optimizer_bytes": self.optimizer_bytes(),
            "loss_scale": self._loss_scale.to_json(),
        }

    @property
    def _computes_narrow(self) -> bool:
        return self.dtype.itemsize < torch.float32.itemsize

    def _copy_masters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The weights AdamW updates: the model's own, or fp32 copies where it computes narrower."""
        if not self._computes_narrow:
            return trained_parameters(model)
        return [
            (name, nn.Parameter(parameter.detach().clone()))
            for name, parameter in trained_parameters(model)
        ]

    def _share_first_rank(self, model: nn.Module) -> None:
        """Give all ranks the weights of rank 0."""
        if self.world_size > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.detach(), src=0)

    def _attach_gradients(self) -> Tensor:
        """One flat buffer of which every master's gradient is a view.

        Models as wide as their masters accumulate into it while they run backward; narrower ones do
        so afterwards.
        """
        masters = [master for _, master in self._masters]
        flat = masters[0].new_zeros(sum(master.numel() for master in masters), requires_grad=False)
        parts = flat.split([master.numel() for master in masters])
        for master, part in zip(masters, parts, strict=True):
            master.grad = part.view(master.shape)
        return flat

    @torch.no_grad()
    def _accumulate(self) -> None:
        for weight, (_, master) in zip(self._weights, self._masters, strict=True):
            if weight.grad is not None and master.grad is not None:
                master.grad.add_(weight.grad)
                weight.grad = None

    @torch.no_grad()
    def _refresh_weights(self) -> None:
        if self._computes_narrow:
            torch._foreach_copy_(self._weights, [master for _, master in self._masters])

    def _fragments(self) -> list[Fragment]:
        return whole_fragments(self._masters, self._adam)

    def _share(self) -> Iterator[Fragment]:
        trained = even_share(self._fragments(), self.rank, self.world_size)
        return chain(trained, self._frozen.share)
