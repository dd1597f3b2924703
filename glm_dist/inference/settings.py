"""How text is generated, and how large the engine is."""

from typing import Literal

from pydantic import Field

from glm_dist.config import Settings
from glm_dist.inference.requests import SamplingSettings

Precision = Literal["auto", "float32", "bfloat16", "int8"]


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

    @property
    def sampling(self) -> SamplingSettings:
        """The same for the engine."""
        return SamplingSettings(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )


class EngineLimits(Settings):
    """Sizes and precision of an engine, which set its speed and memory.

    The last bits of log-probabilities follow from `dtype`, `block_tokens`, `decode_rows` and
    `prefill_rows`, which decide how all kernels round, and from nothing else here.
    """

    dtype: Precision = "auto"
    """Type that the model computes in. auto: that of its weights. int8: the maps of the layers
    multiply whole numbers, with a scale for each row of the weights and of the inputs."""

    max_running: int = Field(32, ge=1)
    """Answers that are generated at a time."""
    max_waiting: int = Field(4096, ge=1)
    """Requests that may wait; one more is refused."""
    cache_tokens: int = Field(32768, ge=64)
    """Tokens whose keys and values are kept, prompts and answers of all requests together."""
    block_tokens: Literal[8, 16, 32, 64] = 16
    """Tokens of a block of the cache, the unit of allocation and of sharing."""
    decode_rows: int = Field(16, ge=8, multiple_of=8)
    """Rows of a decoding pass, filled up where fewer texts run; passes of other sizes are used
    where they were found to round as this one does."""
    prefill_rows: int = Field(64, ge=16, multiple_of=16)
    """Tokens of a matrix product in a prefill pass, filled up; other sizes as above."""
    fixed_shapes: bool = True
    """Whether passes have shapes that round alike; without, nothing is filled up, and the last
    bits of an answer depend on what else runs."""
    prefill_tokens: int = Field(1024, ge=64)
    """Prompt tokens computed between two decoding passes; a longer prompt that cannot be cut
    runs alone."""
    shares_prompts: bool = True
    """Whether a prompt, or the beginning of one in a causal model, is computed once while its
    blocks last."""
