"""Mitigation as an audit file names it: method, options, and the strengths or draws that make a series of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fbmem_core.mitigation import METHODS, UNMITIGATED
from fbmem_core.settings import Section

_SEED = "seed"  # the option that numbers the draws of a random method


class MitigationConfig(Section):
    """A method with its options. `name` is what the column `method` calls it, the method's own name by default.

    `num_clusters`, of `nemo_c`, is another number of clusters than the audit's. `strengths` tries the method at each of
    these values of the option that makes it weaker or stronger, `default` at the method's own five; `draws` tries a
    random one so many times.
    """

    method: str
    name: str = Field("", pattern=r"^[a-z0-9_]*$", max_length=40)
    options: dict[str, Any] = {}
    num_clusters: int | None = Field(None, ge=1)
    strengths: list[float] | Literal["default"] | None = Field(None, min_length=1)
    draws: int | None = Field(None, ge=1, le=1000)

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"to be one of {', '.join(METHODS)}, or the path of a class, module:Class")
        return method

    @model_validator(mode="after")
    def _options_are_valid(self) -> MitigationConfig:
        if not (self.options or self.strengths or self.draws):
            return self  # nothing to look up
        options_type = METHODS[self.method].options_type
        for options in [trial.options for trial in self.trials()]:
            try:
                options_type.model_validate(options)
            except ValidationError as error:
                raise ValueError(_condition(error, options_type.model_fields)) from None
        return self

    @property
    def title(self) -> str:
        """Name in tables."""
        return self.name or self.method.rpartition(":")[2].lower()

    def trials(self) -> list[TrialSpec]:
        """Itself, or one for each strength or draw.

        Raises:
            ValueError: The method has no strength, or draws nothing.
        """
        if self.strengths is None and self.draws is None:
            return [TrialSpec(self, self.title, self.options)]
        return list(self._series())

    def _series(self) -> Iterator[TrialSpec]:
        method = METHODS[self.method]
        if self.draws is not None:
            if _SEED not in method.options_type.model_fields:
                raise ValueError(f"to have no `draws`: `{self.method}` draws nothing")
            first = int(self.options.get(_SEED, 0))
            for draw in range(self.draws):
                yield TrialSpec(self, f"{self.title}@{draw}", self.options | {_SEED: first + draw}, draw=draw)
        else:
            if method.strength is None:
                raise ValueError(f"to have no `strengths`: `{self.method}` is neither weaker nor stronger")
            values = method.strengths if self.strengths == "default" else self.strengths
            for strength in values or ():
                options = self.options | {method.strength: strength}
                yield TrialSpec(self, f"{self.title}@{strength:g}", options, strength=strength)


class TrialSpec:
    """One way in which a method is tried.

    Attributes:
        config: What the audit file says.
        title: Its name in tables, `nemo_c@0.2` at a strength of 0.2.
        options: Of the method.
        strength: Of the series, if it is of one.
        draw: Number of the draw, if there are several.
    """

    def __init__(
        self,
        config: MitigationConfig,
        title: str,
        options: dict[str, Any],
        *,
        strength: float | None = None,
        draw: int | None = None,
    ) -> None:
        self.config, self.title, self.options = config, title, options
        self.strength, self.draw = strength, draw

    @property
    def method(self) -> str:
        """Name of its method."""
        return self.config.method

    @property
    def num_clusters(self) -> int | None:
        """Number in the place of the audit's, where it is given."""
        return self.config.num_clusters


def check_titles(methods: list[MitigationConfig]) -> list[MitigationConfig]:
    """The mitigations of an audit as they are; raises ValueError where two have one name."""
    titles = [method.title for method in methods]
    for title in titles:
        if titles.count(title) > 1 or title == UNMITIGATED:
            raise ValueError(f"to have different names (`{title}` is taken; give it a `name`)")
    return methods


def _condition(error: ValidationError, names: Any) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"to have no option `{name}` ({', '.join(names) or 'there is none'})"
    what = first["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("should ", "to ", 1)
    return f"to have `{name}` {what.removeprefix('to ').removeprefix('be ')}"
