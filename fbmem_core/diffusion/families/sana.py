"""Sana: SanaTransformer2DModel, linear self-attention, cross-attention to a language model's text, flow matching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import MASK, Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.families.pixart import defaults, masked_arguments, nearest_bin, without_variance
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

_BINNED = (16, 32, 64, 128)


class Sana(Denoiser):
    """Texts with a mask; what is asked for is enhanced by the pipeline's instruction, the negative prompt is not."""

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        names = ("clean_caption", "max_sequence_length", "complex_human_instruction")
        embeds, mask, *_ = self._encoded(prompts, False, **defaults(self.pipeline, names))
        return Conditioning(embeds, {MASK: mask})

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        names = ("clean_caption", "max_sequence_length")
        settings = defaults(self.pipeline, names)
        _, _, embeds, mask = self._encoded([""], True, negative_prompt=negative_prompt, **settings)
        return Conditioning(embeds, {MASK: mask})

    def _encoded(self, prompts: list[str], is_guided: bool, **settings: Any) -> Any:
        return self.pipeline.encode_prompt(prompts, is_guided, device=self.device, **settings)

    def sampled_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size of training, as the pipeline takes it."""
        from diffusers.pipelines.sana import pipeline_sana as sizes

        bins = {
            128: sizes.ASPECT_RATIO_4096_BIN,
            64: sizes.ASPECT_RATIO_2048_BIN,
            32: sizes.ASPECT_RATIO_1024_BIN,
            16: sizes.ASPECT_RATIO_512_BIN,
        }
        return nearest_bin(self.pipeline, bins.get(self.config.sample_size), height, width)

    def _drawn_dtype(self) -> torch.dtype:
        return torch.float32

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser."""
        timestep = self.timesteps(step, latents) * self.config.timestep_scale
        output: Tensor = self.network(
            latents.to(self.dtype),
            encoder_hidden_states=condition.embeds.to(self.dtype),
            encoder_attention_mask=condition.added[MASK],
            timestep=timestep,
            return_dict=False,
        )[0]
        return without_variance(output.float(), latents.shape[1])

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return name.endswith(".attn2.to_v") and isinstance(module, nn.Linear)

    def call_arguments(self, guidance: Guidance) -> dict[str, Any]:
        """Sizes that the network was not trained for are sampled as they are."""
        arguments = super().call_arguments(guidance)
        if self.config.sample_size not in _BINNED:
            arguments["use_resolution_binning"] = False
        return arguments

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """The text and its mask."""
        return masked_arguments(self, condition, guidance)
