"""Stable Diffusion 1.x, 2.x and XL, latent consistency models and their fine-tunes: UNet2DConditionModel."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

_VALUES = re.compile(r"(down_blocks|mid_block|up_blocks)\..*\.attn2\.to_v")
_ORDER = ("down_blocks", "mid_block", "up_blocks")


class UNet(Denoiser):
    """A U-Net with cross-attention, one text encoder."""

    component = "unet"

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        return Conditioning(self._encoded(prompts, is_guided=False)[0], {})

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        return Conditioning(self._encoded([""], is_guided=True, negative_prompt=negative_prompt or None)[1], {})

    def _encoded(self, prompts: list[str], *, is_guided: bool, negative_prompt: str | None = None) -> Any:
        return self.pipeline.encode_prompt(
            prompt=prompts,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=is_guided,
            negative_prompt=negative_prompt,
        )

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser."""
        output: Tensor = self.network(
            latents.to(self.dtype),
            self.timesteps(step, latents),
            encoder_hidden_states=condition.embeds,
            timestep_cond=self._told_guidance(guidance_scale, len(latents)),
            added_cond_kwargs=dict(condition.added) or None,
        ).sample
        return output

    def is_guided(self, guidance: Guidance) -> bool:
        """Not a network that is told its guidance."""
        return guidance.scale > 1 and self.config.time_cond_proj_dim is None

    def _told_guidance(self, scale: float, num: int) -> Tensor | None:
        size = self.config.time_cond_proj_dim
        if size is None:
            return None
        above_one = torch.tensor([scale - 1.0]).repeat(num)
        embedded: Tensor = self.pipeline.get_guidance_scale_embedding(above_one, embedding_dim=size)
        return embedded.to(self.device, self.dtype)

    def value_layers(self, layers: str = "released") -> tuple[str, ...]:
        """`attn2.to_v` of each block: of down and mid blocks (7 layers of 5,760 neurons in Stable Diffusion 1.x), or
        of `all` (16 layers)."""
        blocks = _ORDER if layers == "all" else _ORDER[:2]
        matches = [match for name, _ in self.network.named_modules() if (match := _VALUES.fullmatch(name))]
        return tuple(match[0] for block in blocks for match in matches if match[1] == block)

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return _VALUES.fullmatch(name) is not None

    @torch.no_grad()
    def value_outputs(self, layers: Any, condition: Conditioning) -> dict[str, Tensor]:
        """Outputs for the text itself: they need no pass."""
        return {layer: self.network.get_submodule(layer)(condition.embeds) for layer in layers}


class UNetXL(UNet):
    """A U-Net that is told a pooled text and the sizes of the image, two text encoders."""

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        embeds, _, pooled, _ = self._encoded(prompts, is_guided=False)
        return self._with_sizes(embeds, pooled, height, width)

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        _, embeds, _, pooled = self._encoded([""], is_guided=True, negative_prompt=negative_prompt or None)
        return self._with_sizes(embeds, pooled, height, width)

    def _with_sizes(self, embeds: Tensor, pooled: Tensor, height: int, width: int) -> Conditioning:
        # original size, corner of the crop, target size, as the pipeline tells them by default
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=embeds.device)
        return Conditioning(embeds, {"text_embeds": pooled, "time_ids": sizes.repeat(len(embeds), 1)})

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """Both texts."""
        return {"prompt_embeds": condition.embeds, "pooled_prompt_embeds": condition.added["text_embeds"]}
