"""Settings: one YAML file a run, overridden on the command line, checked whole before anything starts."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )
