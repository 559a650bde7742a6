"""Needs of assets: each says why an audit lacks it, or None. An asset that lacks it is left out."""

from __future__ import annotations

from fbmem_core.audit.results import AuditedCheckpoint


def calibration_prompts(audit: AuditedCheckpoint) -> str | None:
    """Enough non-memorized prompts to measure what is usual."""
    from fbmem_core.neurons.statistics import MIN_PROMPTS

    num = len(audit.calibration_prompts())
    if num >= MIN_PROMPTS:
        return None
    cure = "name a file of more in `neurons.non_memorized_prompts`"
    return f"{MIN_PROMPTS} non-memorized prompts are needed and there are {num}: {cure}"
