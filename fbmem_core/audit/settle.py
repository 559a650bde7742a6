"""Settings left open by an audit file, settled when it is registered: as the checkpoint's pipeline recommends it."""

from __future__ import annotations

from typing import Any

from fbmem_core.audit.config import Audit
from fbmem_core.diffusion.architectures import ARCHITECTURES, recommended_settings
from fbmem_core.diffusion.checkpoint import Checkpoint
from fbmem_core.diffusion.device import check_dtype, choose_device, choose_dtype
from fbmem_core.diffusion.settings import SamplingConfig
from fbmem_core.errors import InputError

_HALF = "float16"


def settled_audit(audit: Audit, checkpoint: Checkpoint) -> Audit:
    """The audit with the sampling that its checkpoint recommends where the file says nothing.

    Raises:
        InputError: A setting is not one of this pipeline, or too slow on the device.
    """
    sampling, architecture = audit.sampling, ARCHITECTURES[checkpoint.architecture]
    for name, neutral in (("negative_prompt", ""), ("guidance_rescale", 0.0)):
        if getattr(sampling, name) != neutral and name not in architecture.settings:
            got, cure = f"`sampling.{name}`", "Remove it."
            raise InputError(f"settings that {checkpoint.architecture} takes", got, where=audit.name, cure=cure)
    recommended = recommended_settings(checkpoint.directory, checkpoint.architecture)
    changes: dict[str, Any] = {
        name: value for name, value in recommended.items() if name not in sampling.model_fields_set
    }
    changes["dtype"] = _dtype(sampling, checkpoint)
    return audit.model_copy(update={"sampling": sampling.model_copy(update=changes)})


def _dtype(sampling: SamplingConfig, checkpoint: Checkpoint) -> str:
    if sampling.dtype == "auto" and checkpoint.dtype == "float32":
        return "float32"  # on any device: torch need not be asked
    if sampling.dtype not in ("auto", _HALF):
        return sampling.dtype
    # an explicit device may be that of another machine, which works on the audit later
    device = choose_device("auto") if sampling.device == "auto" else sampling.device
    dtype = choose_dtype(sampling.dtype, checkpoint.dtype, device)
    check_dtype(dtype, device)
    return dtype
