"""How text is generated."""

from pydantic import Field

from glm_dist.config import Settings


class GenerationSettings(Settings):
    """Greedy by default; temperature above 0 samples."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest answer, for each blank, in tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; above, logits are divided by it and a token is drawn."""
    top_k: int = Field(0, ge=0)
    """Draw among the k likeliest tokens only; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the fewest tokens that hold this probability together."""
    seed: int = Field(0, ge=0)
    """The same seed gives the same text, whatever else is in the batch."""
