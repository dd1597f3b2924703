"""What of a model is trained.

It stands apart so that configurations are read and checked without torch or peft.
"""

from glm_dist.config import Settings


class TuningSettings(Settings):
    """Which parameters are trained: all, or some."""

    frozen: list[str] = []
    """Patterns of parameter names that are left as they are, with shell wildcards over the whole
    name, e.g. `word_embeddings.*` or `transformer.layers.[0-5].*`."""
