"""One colour, marker and name for each label, everywhere: in the UI, in plots, in the report.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any colour vision tell apart.
No meaning stands on colour alone: letters, markers or hatching stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Look of a label. `marker` is matplotlib's, `hatch` too; `meaning` is for people."""

    color: str
    marker: str
    hatch: str
    meaning: str


UNDECIDED = "undecided"
LOOKS: dict[str, Look] = {
    "VM": Look("#D55E00", "s", "", "whole picture copied"),
    "FM": Look("#E69F00", "^", "", "foreground copied"),
    "BM": Look("#0072B2", "v", "", "background copied"),
    "NM": Look("#999999", "o", "", "no copy found"),
    UNDECIDED: Look("#FFFFFF", "x", "///", "undecided"),
}


def look(label: str | None) -> Look:
    """The look of a label; None is undecided."""
    return LOOKS[label if label is not None else UNDECIDED]
