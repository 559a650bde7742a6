"""What assets cannot do without: each need says why an audit lacks it, or None. An asset that lacks it is left out."""

from __future__ import annotations

from fbmem_assets.orchestration.resources import AuditStore


def unet(store: AuditStore, key: str) -> str | None:
    """A U-Net, whose value neurons are searched."""
    _, checkpoint = store.audit(key)
    if (checkpoint.directory / "unet").is_dir():
        return None
    return f"{checkpoint.architecture} has no U-Net"


def unet_for_clusters(store: AuditStore, key: str) -> str | None:
    """A U-Net's text encoder, where prompts are clustered by the pipeline's own."""
    audit, _ = store.audit(key)
    return unet(store, key) if audit.clusters.encoder == "pipeline" else None


def calibration_prompts(store: AuditStore, key: str) -> str | None:
    """A U-Net and enough non-memorized prompts to measure what is usual."""
    from fbmem_assets.stages.neurons import calibration_prompts as texts_of
    from fbmem_core.neurons.statistics import MIN_PROMPTS

    lacking = unet(store, key)
    if lacking is not None:
        return lacking
    num = len(texts_of(store, key))
    if num >= MIN_PROMPTS:
        return None
    cure = "name a file of more in `neurons.non_memorized_prompts`"
    return f"{MIN_PROMPTS} non-memorized prompts are needed and there are {num}: {cure}"
