"""What all bodies of requests are made of: strict parts, and lists that are bounded.

It stands apart from the bodies, which name the fields of one endpoint each.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from glm_dist.serve.errors import ApiError


def listed(most: int, least: int = 0) -> Any:
    """A list of so many, of which the first wrong entry is named, not all."""
    return Field(fail_fast=True, min_length=least, max_length=most)


Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[list[Token], listed(1 << 17)]
TokenLists = Annotated[list[Tokens], listed(1 << 12)]
Texts = Annotated[list[str], listed(1 << 12)]
TextOrTokens = str | Texts | Tokens | TokenLists
"""A text, several, the ids of one, or of several."""
HINTS = {
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
}
"""OpenAI's fields that no answer depends on."""


class Part(BaseModel):
    """A part of a body: types are never guessed, and no number is infinite."""

    model_config = ConfigDict(
        extra="ignore", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _check_not_stored(store: bool | None) -> bool | None:
    if store:
        raise ValueError("nothing is kept here; leave it out")
    return store


class Body(Part):
    """Fields that are unknown are kept aside, and named in a header of the reply."""

    model_config = ConfigDict(extra="allow")

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that are known and not built, with the values at which they ask for nothing."""

    model: str | None = Field(None, max_length=256)
    """Name of the model; the one that is served where it is not given."""
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Annotated[bool | None, AfterValidator(_check_not_stored)] = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of the fields that no rule knows."""
        return sorted((self.model_extra or {}).keys() - self.NEUTRAL.keys() - HINTS)

    def check_neutral(self) -> None:
        """Refuse what is known to ask for something that is not built.

        Raises:
            ApiError: 400.
        """
        for name, values in self.NEUTRAL.items():
            given = (self.model_extra or {}).get(name)
            if given is not None and given not in values:
                raise ApiError(400, f"{name}: is not offered; leave it out", param=name)
