"""Stable Diffusion 3 and 3.5: SD3Transformer2DModel, flow matching, joint attention of text and image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import Denoiser
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Step

_POOLED = "pooled"


class SD3(Denoiser):
    """Up to three text encoders, any of which may be missing; classifier-free guidance."""

    def _encode(self, prompts: list[str], *, height: int, width: int) -> Conditioning:
        embeds, _, pooled, _ = self._encoded(prompts, is_guided=False)
        return Conditioning(embeds, {_POOLED: pooled})

    def _encode_unconditional(self, negative_prompt: str, *, height: int, width: int) -> Conditioning:
        _, embeds, _, pooled = self._encoded([""], is_guided=True, negative_prompt=negative_prompt or None)
        return Conditioning(embeds, {_POOLED: pooled})

    def _encoded(self, prompts: list[str], *, is_guided: bool, negative_prompt: str | None = None) -> Any:
        return self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=negative_prompt,
            device=self.device,
            do_classifier_free_guidance=is_guided,
        )

    def _step_settings(self, num_inference_steps: int, shape: tuple[int, int, int]) -> dict[str, Any]:
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting", None):
            return {}
        patch = self.config.patch_size
        return {"mu": flow_shift(config, (shape[1] // patch) * (shape[2] // patch), 1.16)}

    def predict(self, latents: Tensor, step: Step, condition: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
        """See Denoiser."""
        output: Tensor = self.network(
            hidden_states=latents.to(self.dtype),
            timestep=self.timesteps(step, latents),
            encoder_hidden_states=condition.embeds,
            pooled_projections=condition.added[_POOLED],
            return_dict=False,
        )[0]
        return output

    def _is_value_layer(self, name: str, module: nn.Module) -> bool:
        return name.endswith(".attn.add_v_proj") and isinstance(module, nn.Linear)

    def embed_arguments(self, condition: Conditioning, guidance: Guidance) -> dict[str, Any]:
        """Both texts."""
        return {"prompt_embeds": condition.embeds, "pooled_prompt_embeds": condition.added[_POOLED]}


def flow_shift(config: Any, num_tokens: int, max_shift: float) -> float:
    """Shift of the times of flow matching for an image of so many tokens: linear between two sizes."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    at_low, at_high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return float(at_low + (at_high - at_low) / (high - low) * (num_tokens - low))
