"""How many engines answer a dataset; apart from the pipeline, so that to read it takes no Ray."""

from pydantic import Field

from glm_dist.config import Settings


class PoolSettings(Settings):
    """Engines that answer the parts of a dataset side by side."""

    num_engines: int = Field(1, ge=1)
    """Each with a copy of the model."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch in each engine, and logical CPUs that it reserves."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that each engine reserves; 0 answers on the processor."""
    rows_per_part: int = Field(256, ge=1)
    """Rows that are answered and written down together; what a broken engine costs at most."""
