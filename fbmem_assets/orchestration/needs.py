"""What assets cannot do without: each need says why an audit lacks it, or None. An asset that lacks it is left out."""

from __future__ import annotations

from fbmem_core.audit.results import AuditedCheckpoint


def unet(audit: AuditedCheckpoint) -> str | None:
    """A U-Net, whose value neurons are searched."""
    if (audit.checkpoint.directory / "unet").is_dir():
        return None
    return f"{audit.checkpoint.architecture} has no U-Net"


def unet_for_clusters(audit: AuditedCheckpoint) -> str | None:
    """A U-Net's text encoder, where prompts are clustered by the pipeline's own."""
    return unet(audit) if audit.config.clusters.encoder == "pipeline" else None


def calibration_prompts(audit: AuditedCheckpoint) -> str | None:
    """A U-Net and enough non-memorized prompts to measure what is usual."""
    from fbmem_core.neurons.statistics import MIN_PROMPTS

    lacking = unet(audit)
    if lacking is not None:
        return lacking
    num = len(audit.calibration_prompts())
    if num >= MIN_PROMPTS:
        return None
    cure = "name a file of more in `neurons.non_memorized_prompts`"
    return f"{MIN_PROMPTS} non-memorized prompts are needed and there are {num}: {cure}"
