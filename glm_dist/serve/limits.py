"""What a client may ask for at most, and from where.

It stands apart so that a configuration is checked before torch, Ray or FastAPI are imported.
"""

from typing import Annotated, Literal

from pydantic import Field

from glm_dist.config import Settings

Origin = Annotated[str, Field(pattern=r"^https?://[^/*\s]+$")]


class RequestLimits(Settings):
    """More than this is refused with its number, before it costs anything."""

    max_body_bytes: int = Field(1_000_000, ge=1024)
    """Longest request body."""
    header_seconds: float = Field(10.0, gt=0)
    """Time a client has to send the header of a request, and to begin one on a new connection."""
    body_seconds: float = Field(10.0, gt=0)
    """Time a client has to send its body."""
    reading_seconds: float = Field(10.0, gt=0)
    """A client that has stopped reading its reply for so long is hung up on."""
    max_json_depth: int = Field(32, ge=4)
    """Lists and objects of a body inside one another."""
    max_prompts: int = Field(64, ge=1)
    """Prompts, texts or documents of one request."""
    max_samples: int = Field(8, ge=1)
    """Answers to one prompt (`n` and `best_of`)."""
    max_messages: int = Field(256, ge=1)
    """Turns of one dialogue."""
    max_blanks: int = Field(64, ge=1)
    """Blanks of one text."""
    max_options: int = Field(256, ge=2)
    """Labels, choices or levels of one question."""
    max_questions: int = Field(400, ge=1)
    """Questions of one request to `/v1/decisions`."""
    max_stops: int = Field(4, ge=1)
    """Stop strings of one blank; OpenAI takes as many."""
    max_stop_bytes: int = Field(64, ge=1)
    """Longest stop string or bad word, in UTF-8."""
    max_bad_words: int = Field(32, ge=1)
    """Strings that an answer may not hold."""
    max_beams: int = Field(16, ge=1, le=32)
    """Width of a beam search."""
    max_logit_bias: int = Field(300, ge=1)
    """Tokens whose logits one request may change."""
    bytes_per_token: int = Field(16, ge=1)
    """A text of more bytes than this times the model's positions is refused before it is cut into
    tokens."""
    unknown_fields: Literal["name", "refuse"] = "name"
    """A field that no rule knows is named in the header `x-ignored-fields`, or refused."""
    allowed_origins: tuple[Origin, ...] = ()
    """Web pages, as scheme://host:port, whose scripts may ask; none by default."""
