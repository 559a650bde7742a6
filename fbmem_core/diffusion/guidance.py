"""Guidance of a prompt away from the unconditional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fbmem_core.diffusion.settings import SamplingConfig


@dataclass(frozen=True)
class Guidance:
    """Guidance as `sampling` of an audit file says it.

    Attributes:
        scale: 1: none.
        rescale: Share of the prediction whose deviation is that of the conditional one; 0 to 1.
        negative_prompt: "" stands for what the pipeline takes where none is given.
    """

    scale: float = 1.0
    rescale: float = 0.0
    negative_prompt: str = ""


NO_GUIDANCE = Guidance()


def guidance_of(sampling: SamplingConfig) -> Guidance:
    """The guidance of an audit."""
    return Guidance(sampling.guidance_scale, sampling.guidance_rescale, sampling.negative_prompt)
