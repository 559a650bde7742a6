"""Audits of what a text-to-image diffusion model has memorized: whole pictures, foreground objects, backgrounds."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbmem_core.audit.results import AuditedCheckpoint, open_audit
    from fbmem_core.evaluation.scores import mitigation_score, score_difference
    from fbmem_core.labels import PairSimilarity, label_generation, label_pair
    from fbmem_core.retrieval.neighbors import nearest_references
    from fbmem_core.similarity.ms_ssim import ms_ssim
    from fbmem_core.similarity.regions import region_similarity

__all__ = [
    "AuditedCheckpoint",
    "PairSimilarity",
    "label_generation",
    "label_pair",
    "mitigation_score",
    "ms_ssim",
    "nearest_references",
    "open_audit",
    "region_similarity",
    "score_difference",
]  # fmt: skip

_HOMES = {
    "AuditedCheckpoint": "fbmem_core.audit.results",
    "open_audit": "fbmem_core.audit.results",
    "PairSimilarity": "fbmem_core.labels",
    "label_generation": "fbmem_core.labels",
    "label_pair": "fbmem_core.labels",
    "mitigation_score": "fbmem_core.evaluation.scores",
    "ms_ssim": "fbmem_core.similarity.ms_ssim",
    "nearest_references": "fbmem_core.retrieval.neighbors",
    "region_similarity": "fbmem_core.similarity.regions",
    "score_difference": "fbmem_core.evaluation.scores",
}


def __getattr__(name: str) -> Any:
    # on demand, so that importing the package (as the Dagster code server does) never imports torch
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
