"""The one family of errors that fbmem raises on purpose."""

from __future__ import annotations

from pathlib import Path


class FbmemError(Exception):
    """Something that the reader of the message can mend. Its text is one line and needs no traceback.

    `exit_status` is what a command ends with.
    """

    exit_status = 2  # bad input

    @classmethod
    def exit_statuses(cls) -> dict[str, int]:
        """Exit status by name of this class and those below it, for errors that another process reports by name.

        Example:
            >>> FbmemError.exit_statuses()["InputError"]
            2
        """
        statuses = {cls.__name__: cls.exit_status}
        for kind in cls.__subclasses__():
            statuses |= kind.exit_statuses()
        return statuses


class InputError(FbmemError):
    """Input that cannot be used: `Expected <what>, but got <got> in <where>. <Cure.>`"""

    def __init__(self, expected: str, got: object, *, where: str | Path | None = None, cure: str = "") -> None:
        place = f" in {where}" if where is not None else ""
        text = f"Expected {expected}, but got {got}{place}. {cure}"
        super().__init__(" ".join(text.split()))


class NotApplicableError(InputError):
    """Need that a model or an audit does not meet: the stage is left out, and the run goes on without it."""


class WeightsNotFoundError(FbmemError):
    """Model weights that could be had neither from a local path nor from the hub."""

    def __init__(self, what: str, *, looked: str, cure: str) -> None:
        super().__init__(" ".join(f"Expected {what}, but it was not found; looked in {looked}. {cure}".split()))
