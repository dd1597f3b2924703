"""What of a model is trained.

It stands apart so that configurations are read and checked without torch or peft.
"""

from typing import Literal

from pydantic import Field

from glm_dist.config import Settings

LINEAR_MAPS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
"""Those of a layer, by the last part of their names."""
_OF_LOW_RANK = ("rank", "alpha", "dropout", "targets")
_OF_PREFIX = ("num_prefix_tokens", "prefix_projection")


class TuningSettings(Settings):
    """Which parameters are trained: the model's own, or a few new ones beside them."""

    kind: Literal["none", "lora", "dora", "p_tuning"] = "none"
    """none: the model's own parameters; lora: a product of two narrow matrices is added to each
    target (Hu et al. 2021); dora: and its rows get a length of their own (Liu et al. 2024);
    p_tuning: every layer sees trained keys and values (P-tuning v2). A classification head is
    trained with each of them."""
    rank: int = Field(8, ge=1)
    """lora, dora: inner width of the product; 8 as the GLM authors tune."""
    alpha: float = Field(32.0, gt=0)
    """lora, dora: the product is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """lora, dora: dropout probability of what goes into the product."""
    targets: list[str] = LINEAR_MAPS
    """lora, dora: linear maps that are changed, by the last part of their names or by shell
    wildcards over the whole name, e.g. `transformer.layers.[0-5].attention.*`."""
    num_prefix_tokens: int = Field(128, ge=1)
    """p_tuning: trained keys and values of each layer; 128 as the GLM authors tune ChatGLM."""
    prefix_projection: bool = False
    """p_tuning: make them of a narrower table by two matrices while training; slower, steadier."""
    frozen: list[str] = []
    """Patterns of parameter names that are left as they are, with shell wildcards over the whole
    name, e.g. `word_embeddings.*` or `transformer.layers.[0-5].*`."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each layer as a share of that of the layer above it, down to the embeddings;
    what lies near the text then keeps more of what it knows. 1 for the same in all."""

    @property
    def is_adapter(self) -> bool:
        """Whether the model's own parameters stay as they are."""
        return self.kind != "none"

    @property
    def is_low_rank(self) -> bool:
        """Whether what is trained can be merged into the model's own parameters."""
        return self.kind in ("lora", "dora")

    def warnings(self) -> list[str]:
        """What was set and has no effect in this combination, with the reason."""
        ignored = [] if self.is_low_rank else [*_OF_LOW_RANK]
        ignored += [] if self.kind == "p_tuning" else [*_OF_PREFIX]
        return [
            f"tuning.{name}: has no effect, because tuning.kind is {self.kind}"
            for name in ignored
            if name in self.model_fields_set
        ]
