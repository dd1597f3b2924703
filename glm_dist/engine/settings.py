"""The settings of the training engine.

They stand apart from it so that configurations are read and checked without torch.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from glm_dist.config import Settings

_ZERO_FIELDS = {
    "reduce_bucket_elements": 1,
    "overlap_communication": 1,
    "offload_optimizer": 1,
    "offload_parameters": 3,
    "prefetch_elements": 3,
    "max_live_elements": 3,
    "persistent_parameter_elements": 3,
}
"""Settings that only DeepSpeed knows, with the lowest ZeRO stage that reads them."""


class EngineSettings(Settings):
    """How gradients are reduced, what is sharded, and how weights are updated."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """deepspeed: ZeRO at zero_stage; torch: a plain data-parallel loop that shards nothing."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What each rank keeps only its share of: 1 optimizer state, 2 also gradients, 3 also weights;
    0 nothing."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Type of weights and activations in forward and backward; master weights and optimizer state
    are float32 at least. auto: bfloat16 where GPU or processor computes it natively, else float32.
    float16: for GPUs without bfloat16, with a loss scale that follows what overflows. float64:
    backend torch only, to tell rounding from a mistake."""
    initial_loss_scale: float = Field(65536.0, ge=1)
    """float16: what losses are multiplied by at first, so that small gradients do not vanish; it
    is halved at each overflow, whose step is left out."""
    loss_scale_growth_steps: int = Field(1000, ge=1)
    """float16: steps without overflow after which the loss scale is doubled."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are accumulated and summed over ranks when dtype is bfloat16;
    bfloat16 halves their memory and traffic and loses small contributions."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment per step."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of AdamW's second moment per step."""
    eps: float = Field(1e-8, gt=0)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's decoupled decay per step, times the learning rate; biases and norms get none."""
    gradient_clip_norm: float = Field(1.0, ge=0)
    """Longest global gradient that is applied as it is, longer ones are scaled down; 0: never."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """cpu: master weights and moments live in host memory, and the update runs there."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """cpu: sharded weights live in host memory between uses; ZeRO 3 only."""
    overlap_communication: bool = True
    """Sum gradients while the backward pass still runs; GPUs with more than one rank only."""
    reduce_bucket_elements: int = Field(16_000_000, ge=1)
    """Gradient elements summed over ranks at a time: larger ones make fewer collectives, smaller
    ones need less memory, fresh at every step."""
    prefetch_elements: int = Field(50_000_000, ge=0)
    """ZeRO 3: weight elements fetched ahead of their use."""
    max_live_elements: int = Field(1_000_000_000, ge=0)
    """ZeRO 3: weight elements that may be gathered on a rank at a time."""
    persistent_parameter_elements: int = Field(100_000, ge=0)
    """ZeRO 3: parameters smaller than this stay gathered on every rank."""
    compile_layers: bool = False
    """Compile each transformer layer with torch.compile: a minute or more at every start, then
    fewer passes over memory; needs a C++ compiler on the processor."""
    deterministic: bool = False
    """Use only kernels that give the same bits every time; slower on CUDA. On the processor
    results are the same every time anyway."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError(
                f"offload_parameters: got {self.offload_parameters!r} with zero_stage "
                f"{self.zero_stage}; only stage 3 shards weights, so set zero_stage: 3 or "
                f"offload_parameters: none"
            )
        if self.dtype == "float64" and self.backend != "torch":
            raise ValueError(
                "dtype: got float64 with backend 'deepspeed', which has no such type; set "
                "backend: torch or dtype: float32"
            )
        if self.dtype == "float16" and self.gradient_dtype == "bfloat16":
            raise ValueError(
                "gradient_dtype: got bfloat16 with dtype 'float16', whose gradients it would round "
                "once more; set gradient_dtype: float32"
            )
        return self

    def warnings(self) -> list[str]:
        """What was set and has no effect in this combination, with the reason."""
        if self.backend == "torch":
            ignored = {"zero_stage", *_ZERO_FIELDS}
            reason = "backend is torch, which shards nothing"
        else:
            ignored = {name for name, stage in _ZERO_FIELDS.items() if stage > self.zero_stage}
            reason = f"zero_stage is {self.zero_stage}"
        found = [
            f"engine.{name}: has no effect, because {reason}"
            for name in sorted(ignored & self.model_fields_set)
        ]
        if self.dtype == "float32" and "gradient_dtype" in self.model_fields_set:
            found.append("engine.gradient_dtype: has no effect, because dtype is float32")
        if self.dtype != "float16":
            found += [
                f"engine.{name}: has no effect, because dtype is {self.dtype}"
                for name in ("initial_loss_scale", "loss_scale_growth_steps")
                if name in self.model_fields_set
            ]
        return found
