"""Flux: FluxTransformer2DModel, flow matching of packed latents, told its guidance instead of guided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.families.sd3 import flow_shift
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

_POOLED = "pooled"
_MAX_TOKENS = 512  # of T5, the pipeline's default


class Flux(Denoiser):
    """A pooled text and one of tokens; latents [n, c, h, w] are packed in squares of 2 x 2."""

    num_packed = 2

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        embeds, pooled, _ = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, device=self.device)
        return Conditioning(embeds, {_POOLED: pooled})

    def _step_settings(self, num_inference_steps: int, shape: tuple[int, int, int]) -> dict[str, Any]:
        return packed_step_settings(self.pipeline.scheduler.config, num_inference_steps, shape)

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser."""
        num, _, height, width = latents.shape
        told = torch.full((num,), guidance_scale, device=latents.device) if self.config.guidance_embeds else None
        output = self.network(
            hidden_states=pack(latents.to(self.dtype)),
            timestep=self.timesteps(step, latents).to(self.dtype) / 1000,
            guidance=told,
            pooled_projections=condition.added[_POOLED],
            encoder_hidden_states=condition.embeds,
            txt_ids=torch.zeros(condition.embeds.shape[1], 3, device=latents.device, dtype=self.dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(num, height // 2, width // 2, latents.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def is_guided(self, guidance: Guidance) -> bool:
        """Never by a second pass."""
        return False

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return name.endswith(".attn.add_v_proj") and isinstance(module, nn.Linear)

    def _native_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return size, size

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """Both texts."""
        return {"prompt_embeds": condition.embeds, "pooled_prompt_embeds": condition.added[_POOLED]}


def packed_step_settings(config: Any, num_inference_steps: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Settings that the pipelines of packed latents pass to their scheduler."""
    settings: dict[str, Any] = {"mu": flow_shift(config, shape[1] // 2 * (shape[2] // 2), 1.15)}
    if not config.get("use_flow_sigmas", False):
        settings["sigmas"] = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    return settings


def pack(latents: Tensor) -> Tensor:
    """[n, c, h, w] as tokens [n, h/2 w/2, 4 c].

    >>> latents = torch.arange(32.0).view(1, 2, 4, 4)
    >>> torch.equal(unpack(pack(latents), 4, 4), latents)
    True
    """
    num, channels, height, width = latents.shape
    squares = latents.reshape(num, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(num, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents that `pack` took."""
    num, _, channels = tokens.shape
    squares = tokens.reshape(num, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(num, channels // 4, height, width)
