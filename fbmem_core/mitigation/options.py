"""Options of mitigations: typed, validated, with their defaults and bounds. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fbmem_core.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class Options(BaseModel):
    """Base of every method's options; those of a method that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, method: str) -> Options:
        """The options of a method from an audit file.

        Args:
            values: Some of the options by name; the others keep their defaults.
            method: Whose options they are, for messages.

        Raises:
            InputError: An option is unknown or has an impossible value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                names = ", ".join(cls.model_fields) or "none"
                raise InputError(f"options of `{method}` ({names})", f"`{name}`", cure="Remove or rename it.") from None
            condition = first["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("should ", "to ", 1)
            where = f"the options of `{method}`"
            raise InputError(f"`{name}` {condition}", f"`{first['input']}`", where=where, cure="Change it.") from None


class FactorOptions(Options):
    """Options of methods that multiply neurons: 0 switches them off, 1 changes nothing."""

    factor: Share = 0.0


class TargetOptions(Options):
    """Options of methods that lower a quantity of a prompt until it is usual.

    The target is the mean and `num_stddevs` standard deviations of the quantity over the first `num_non_memorized`
    prompts that are not memorized, or `target` itself where it is given, as the papers do for one model.
    """

    num_stddevs: float = 1.0
    target: Annotated[float, Field(gt=0)] | None = None
    num_non_memorized: Annotated[int, Field(ge=20)] = 100
