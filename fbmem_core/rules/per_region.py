"""VM if every region that the generation has is a copy, whatever the full image says; else what is copied."""

from __future__ import annotations

from fbmem_core.rules import Case, Label, joined


def label(case: Case) -> Label | None:
    """The label of one pair."""
    if case.whole_copied:
        return "VM"
    if case.foreground_fraction is None:
        return None
    return joined(bool(case.foreground_copied), bool(case.background_copied), both="FM")
