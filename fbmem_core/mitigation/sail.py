"""SAIL, sharpness-aware initialisation: Jeon et al., arXiv 2412.04140 (ICML 2025), algorithm 2.

Notation: s(x) = eps_cond(x) - eps_uncond(x) at the first step; d = s(x) / ||s(x)||. ||s(x + d)|| stands for the
sharpness of the log-density along s, which is high where an image is memorized; ||x|| keeps latents near the Gaussian.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.noise_difference import FirstStep
from fbmem_core.mitigation.initial_noise import LatentMethod, guidance
from fbmem_core.mitigation.options import Count, Options, Rate, TargetOptions

_TINY = 1e-12


class SailOptions(TargetOptions):
    """The released code's rate, limit and weight of ||x||; its target of 8.2 holds for Stable Diffusion v1.4."""

    learning_rate: Rate = 0.05
    max_steps: Count = 10
    gaussianity: float = Field(0.05, ge=0)


class Sail(LatentMethod):
    """Move every image's latents by Adam until ||s(x + d)|| + `gaussianity` ||x|| is at or below the target."""

    name = "sail"
    options_type: ClassVar[type[Options]] = SailOptions
    strength = "num_stddevs"
    strengths = (4.0, 2.0, 1.0, 0.0, -1.0)

    def loss(
        self, step: FirstStep, conditions: tuple[Conditioning, Conditioning], latents: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """The algorithm's loss."""
        difference = guidance(step, conditions, latents)
        length = difference.flatten(1).norm(dim=1).clamp_min(_TINY).view(-1, 1, 1, 1)
        ahead = guidance(step, conditions, latents + difference / length)
        return ahead.flatten(1).norm(dim=1) + self.options.gaussianity * latents.flatten(1).norm(dim=1)

    def optimizer(self, latents: Tensor) -> torch.optim.Optimizer:
        """Adam, as released."""
        return torch.optim.Adam([latents], lr=self.options.learning_rate)
