"""arXiv 2508.12148, section 3: the full image decides first, then its regions."""

from __future__ import annotations

from fbmem_core.rules import Case, Label, joined


def label(case: Case) -> Label | None:
    """The label of one pair."""
    if case.full >= case.tau:
        return "VM"
    if case.foreground_fraction is None:
        return None
    return joined(*case.similar_regions, both="VM")
