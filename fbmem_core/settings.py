"""Ground of every settings class: frozen, and an unknown key is an error."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"


class Section(BaseModel):
    """One section of an audit file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def as_list(value: Any) -> Any:
    """A single value as a list of one, so that an audit file may say either."""
    return value if isinstance(value, list) else [value]
