"""What the endpoints of one model share."""

from dataclasses import dataclass

from glm_dist.model import ModelSettings
from glm_dist.serve.asking import Asker
from glm_dist.serve.prompts import Prompts
from glm_dist.serve.replies import TokenNames
from glm_dist.tokenizer import Tokenizer


@dataclass(frozen=True)
class Context:
    """One model, from all sides that an endpoint looks at it."""

    name: str
    """What clients call it."""
    settings: ModelSettings
    tokenizer: Tokenizer
    asker: Asker
    prompts: Prompts
    names: TokenNames
