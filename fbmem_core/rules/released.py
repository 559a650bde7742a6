"""The authors' code: the reference of the highest average of foreground and background alone; no full image."""

from __future__ import annotations

from fbmem_core.rules import Case, Label, joined

RANKED_BY = "average"


def label(case: Case) -> Label | None:
    """The label of one pair."""
    if case.foreground_fraction is None:
        return None
    foreground, background = case.similar_regions
    if background and case.foreground_fraction <= case.beta:
        return "VM"  # without a foreground the average is that of the background
    return joined(foreground, background, both="VM")
