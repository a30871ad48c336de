"""The base of all settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
