"""Useful floating point operations of a training step, and what a device could do at most.

Useful means: what the model needs for the tokens it was given. Padding, recomputation and attention
to tokens that cannot be seen do not count, so MFU is not flattered by waste.
"""

from dataclasses import dataclass

FLOPS_PER_WEIGHT = 2  # one multiplication and one addition

PEAK_DENSE_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
}
"""Dense bf16 FLOP/s of the makers' data sheets; the first name found in a device's counts."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a transformer that decide its operations."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    vocab_size: int
    mixed_size: int | None = None
    """All query heads together; None: the hidden size."""
    kv_size: int | None = None
    """All key heads together, fewer than query heads where they are grouped; None: as queries."""
    num_mlp_matrices: int = 2
    """3 where a gate has a matrix of its own."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.hidden_size if self.mixed_size is None else self.mixed_size

    @property
    def layer_weights(self) -> int:
        """Matrix weights of one layer: four attention projections and those of the MLP."""
        keys = self.query_size if self.kv_size is None else self.kv_size
        attention = self.hidden_size * (2 * self.query_size + 2 * keys)
        return attention + self.num_mlp_matrices * self.hidden_size * self.ffn_hidden_size


@dataclass(frozen=True)
class TrainedShare:
    """What the backward pass has to do where not every parameter is trained."""

    layers: float = 1.0
    """Share of the layers' matrix weights that get a gradient."""
    head: float = 1.0
    """The same for the table behind the logits."""
    reached: float = 1.0
    """Share of the layers that a gradient passes on its way down to the lowest trained one."""


def training_flops(
    shape: ModelShape,
    tokens: float,
    loss_tokens: float,
    visible_pairs: float,
    trained: TrainedShare | None = None,
) -> float:
    """Operations of forward and backward.

    Each matrix is used once in the forward pass, once for the gradient of its input where that is
    needed, and once for its own where it is trained. An adapter's own work is left out.

    Args:
        shape: the model.
        tokens: tokens that are not padding; each passes all layers.
        loss_tokens: tokens whose logits are needed.
        visible_pairs: pairs of query and visible key, over all samples.
        trained: what of the model is; None: all of it.
    """
    share = trained or TrainedShare()
    layers = shape.num_layers * shape.layer_weights * tokens
    head = shape.hidden_size * shape.vocab_size * loss_tokens
    attention = 2 * shape.num_layers * shape.query_size * visible_pairs  # scores and mixing
    return FLOPS_PER_WEIGHT * (
        layers * (1 + share.reached + share.layers)
        + head * (2 + share.head)
        + attention * (1 + 2 * share.reached)
    )


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, None where it is not known (a processor, an unlisted GPU)."""
    for name, peak in PEAK_DENSE_BF16.items():
        if name.lower() in device_name.lower():
            return peak
    return None
