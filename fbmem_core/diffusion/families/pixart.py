"""PixArt-alpha and -sigma: PixArtTransformer2DModel, cross-attention to T5, a learned variance beside the noise."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import MASK, Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

_RESOLUTION, _ASPECT = "resolution", "aspect_ratio"
_TOLD_SIZE = 128  # the sample_size of the networks that are told the image's size


class PixArt(Denoiser):
    """Texts with a mask; images are sampled at the nearest of the sizes of training and then resized."""

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        embeds, mask, *_ = self._encoded(prompts)
        return self._with_size(embeds, mask, height, width)

    def _encoded(self, prompts: list[str]) -> Any:
        names = ("clean_caption", "max_sequence_length")
        return self.pipeline.encode_prompt(prompts, False, device=self.device, **defaults(self.pipeline, names))

    def _with_size(self, embeds: Tensor, mask: Tensor, height: int, width: int) -> Conditioning:
        added = {MASK: mask}
        if self.config.sample_size == _TOLD_SIZE:
            height, width = self.sampled_size(height, width)
            told = {_RESOLUTION: [float(height), float(width)], _ASPECT: [height / width]}
            for name, values in told.items():
                added[name] = torch.tensor([values], dtype=embeds.dtype, device=embeds.device).repeat(len(embeds), 1)
        return Conditioning(embeds, added)

    def sampled_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size of training, as the pipeline takes it."""
        from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sizes

        bins = {
            256: sizes.ASPECT_RATIO_2048_BIN if "Sigma" in type(self.pipeline).__name__ else None,
            128: sizes.ASPECT_RATIO_1024_BIN,
            64: sizes.ASPECT_RATIO_512_BIN,
            32: sizes.ASPECT_RATIO_256_BIN,
        }
        return nearest_bin(self.pipeline, bins.get(self.config.sample_size), height, width)

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser; the learned variance is left out."""
        output: Tensor = self.network(
            latents.to(self.dtype),
            encoder_hidden_states=condition.embeds,
            encoder_attention_mask=condition.added[MASK],
            timestep=self.timesteps(step, latents),
            added_cond_kwargs={name: condition.added.get(name) for name in (_RESOLUTION, _ASPECT)},
            return_dict=False,
        )[0]
        return without_variance(output, latents.shape[1])

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return name.endswith(".attn2.to_v") and isinstance(module, nn.Linear)

    def call_arguments(self, guidance: Guidance) -> dict[str, Any]:
        """Sizes that the network was not trained for are sampled as they are."""
        arguments = super().call_arguments(guidance)
        if self.config.sample_size not in (32, 64, 128, 256):
            arguments["use_resolution_binning"] = False
        return arguments

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """The text and its mask; the empty one beside it is the pipeline's own."""
        return masked_arguments(self, condition, guidance)


def defaults(pipeline: Any, names: Any) -> dict[str, Any]:
    """The values that the pipeline's own call takes where nothing is said, but for those that it does not have."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: parameters[name].default for name in names if name in parameters}


def nearest_bin(pipeline: Any, ratios: Any, height: int, width: int) -> tuple[int, int]:
    """The size that is sampled in the place of another."""
    if ratios is None:
        return height, width
    binned: tuple[int, int] = pipeline.image_processor.classify_height_width_bin(height, width, ratios=ratios)
    return binned


def without_variance(output: Tensor, num_channels: int) -> Tensor:
    """The first half of channels where there are twice as many."""
    return output[:, :num_channels] if output.shape[1] == 2 * num_channels else output


def masked_arguments(denoiser: Denoiser, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
    """The arguments of pipelines whose texts have masks: they want the negative prompt encoded too."""
    empty = denoiser.encode_unconditional(guidance.negative_prompt, height=8, width=8).repeat(len(condition))
    return {
        "prompt_embeds": condition.embeds,
        "prompt_attention_mask": condition.added[MASK],
        "negative_prompt": None,
        "negative_prompt_embeds": empty.embeds,
        "negative_prompt_attention_mask": empty.added[MASK],
    }
