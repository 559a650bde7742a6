"""Qwen-Image: QwenImageTransformer2DModel, flow matching of packed latents, guidance whose norm is the prompt's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import MASK, Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.families.flux import pack, packed_step_settings, unpack
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

if TYPE_CHECKING:
    from PIL import Image

_EMPTY = " "  # the negative prompt with which the pipeline's documents call it


class QwenImage(Denoiser):
    """Texts of any length with a mask; latents [n, c, h, w] are packed in squares of 2 x 2."""

    num_packed = 2

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        embeds, mask = self.pipeline.encode_prompt(prompts, device=self.device)
        if mask is None:  # no token is padding
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return Conditioning(embeds, {MASK: mask})

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        return self._encode([negative_prompt or _EMPTY], height=height, width=width)

    def _step_settings(self, num_inference_steps: int, shape: tuple[int, int, int]) -> dict[str, Any]:
        return packed_step_settings(self.pipeline.scheduler.config, num_inference_steps, shape)

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser."""
        num, _, height, width = latents.shape
        told = torch.full((num,), guidance_scale, device=latents.device) if self.config.guidance_embeds else None
        mask = condition.added[MASK]
        output = self.network(
            hidden_states=pack(latents.to(self.dtype)),
            timestep=self.timesteps(step, latents).to(self.dtype) / 1000,
            guidance=told,
            encoder_hidden_states_mask=None if mask.all() else mask,
            encoder_hidden_states=condition.embeds,
            img_shapes=[[(1, height // 2, width // 2)]] * num,
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def _guide(self, unconditional: Tensor, conditional: Tensor, guidance: Guidance) -> Tensor:
        negative, positive = pack(unconditional), pack(conditional)
        guided = negative + guidance.scale * (positive - negative)
        guided = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack(guided, *unconditional.shape[-2:])

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return name.endswith(".attn.add_v_proj") and isinstance(module, nn.Linear)

    def _native_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return size, size

    def call_arguments(self, guidance: Guidance) -> dict[str, Any]:
        """Arguments with a scale of its own for two passes, which wants a negative prompt."""
        negative_prompt = guidance.negative_prompt or _EMPTY
        if not self.is_guided(guidance):
            return {"true_cfg_scale": 1.0}
        return {"true_cfg_scale": guidance.scale, "negative_prompt": negative_prompt}

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """The text and its mask."""
        return {"prompt_embeds": condition.embeds, "prompt_embeds_mask": condition.added[MASK]}

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> Tensor:
        """See Denoiser; its autoencoder is one of videos, of which an image is the first frame."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(image.convert("RGB")).to(vae.device, vae.dtype)
        mean = vae.encode(pixels[:, :, None]).latent_dist.mean[:, :, 0]
        shift, scale = (
            torch.tensor(value).view(1, -1, 1, 1).to(mean)
            for value in (vae.config.latents_mean, vae.config.latents_std)
        )
        return ((mean - shift) / scale).to(self.dtype)
