"""What the denoiser does with the first noise of an image, by which a memorized prompt shows itself.

NeMo, arXiv 2406.02366, section 3: over several seeds the noise differences of a memorized prompt resemble each other.

Notation: x_T initial latents, eps the predicted noise, alpha_bar the scheduler's `alphas_cumprod` at the timestep,
x_0 the predicted clean latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.settings import Mode
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, UNet2DConditionModel

NUM_STEPS = 50  # of DDIM, from which the timestep is taken
_WEIGHTS = (0.33, 0.33, 0.33)  # of the scales, NeMo's
_WINDOW, _SIGMA = 11, 1.5
_SMALLEST_WINDOW = 3


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `embeds` [n, tokens, d], and what else a U-Net of XL asks for, [n, ...] each."""

    embeds: Tensor
    added: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.embeds)

    def rows(self, index: int | slice | Tensor) -> Conditioning:
        """Some of the prompts."""
        if isinstance(index, int):
            index = slice(index, index + 1)
        return Conditioning(self.embeds[index], {name: value[index] for name, value in self.added.items()})

    def repeat(self, num: int) -> Conditioning:
        """A single prompt, `num` times."""
        added = {name: value.expand(num, *value.shape[1:]) for name, value in self.added.items()}
        return Conditioning(self.embeds.expand(num, -1, -1), added)


@torch.no_grad()
def encode_prompts(
    pipeline: DiffusionPipeline, prompts: Sequence[str], *, height: int, width: int, batch_size: int = 64
) -> Conditioning:
    """The text conditions of prompts, as the pipeline itself makes them without guidance.

    Args:
        pipeline: Stable Diffusion 1.x, 2.x or XL.
        prompts: n texts.
        height: Of the images in px; XL is told it.
        width: The same.
        batch_size: Prompts that are encoded together.
    """
    parts = []
    for first in range(0, len(prompts), batch_size):
        some = list(prompts[first : first + batch_size])
        encoded = pipeline.encode_prompt(
            prompt=some, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        added = {}
        if pipeline.unet.config.addition_embed_type == "text_time":
            time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=encoded[0].dtype)
            added = {"text_embeds": encoded[2], "time_ids": time_ids.repeat(len(some), 1).to(pipeline.device)}
        parts.append(Conditioning(encoded[0], added))
    names = parts[0].added if parts else {}
    return Conditioning(
        torch.cat([part.embeds for part in parts]),
        {name: torch.cat([part.added[name] for part in parts]) for name in names},
    )


def predict(
    unet: UNet2DConditionModel, latents: Tensor, timestep: int | Tensor, condition: Conditioning
) -> Float[Tensor, "n c h w"]:
    """What the U-Net gives for latents [n, c, h, w], a prompt each: noise, or velocity where it predicts that."""
    return unet(
        latents, timestep, encoder_hidden_states=condition.embeds, added_cond_kwargs=condition.added or None
    ).sample


class FirstStep:
    """The first step of sampling without guidance, for one initial latent a seed.

    Args:
        pipeline: Its U-Net and scheduler are used; DDIM whatever the scheduler's kind, as NeMo does.
        seeds: One image each; their latents are those that `sample` begins with.
        height: Of the images in px.
        width: The same.
        mode: `paper` takes the first timestep, that of the initial latents. `released` takes the second with the same
            latents, as the code of NeMo's authors does.
        num_steps: Of the sampling whose timesteps they are.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        seeds: Sequence[int],
        *,
        height: int,
        width: int,
        mode: Mode = "paper",
        num_steps: int = NUM_STEPS,
    ) -> None:
        from diffusers import DDIMScheduler

        self.unet = pipeline.unet
        self.prediction_type = pipeline.scheduler.config.prediction_type
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps)
        self.timestep = int(scheduler.timesteps[1 if mode == "released" else 0])
        self.alpha_bar = float(scheduler.alphas_cumprod[self.timestep])
        shape = (self.unet.config.in_channels, height // pipeline.vae_scale_factor, width // pipeline.vae_scale_factor)
        drawn = [torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        self.latents = torch.cat(drawn).to(pipeline.device, self.unet.dtype)

    @torch.no_grad()
    def noise(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted noise eps, without gradients; see `predict_noise`."""
        return self.predict_noise(condition, rows)

    def predict_noise(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted noise eps; gradients pass.

        Args:
            condition: As many prompts as there are rows, or one for all.
            rows: Which of the seeds; all by default.
        """
        latents = self.latents if rows is None else self.latents[rows]
        condition = condition.repeat(len(latents)) if len(condition) == 1 else condition
        output = predict(self.unet, latents, self.timestep, condition)
        if self.prediction_type == "v_prediction":
            # eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t (Salimans and Ho, arXiv 2202.00512, appendix D)
            output = self.alpha_bar**0.5 * output + (1 - self.alpha_bar) ** 0.5 * latents
        return output

    def noise_difference(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """eps - x_T, scaled to [0, 1] per sample and channel, in float32 or more."""
        latents = self.latents if rows is None else self.latents[rows]
        difference = self.noise(condition, rows) - latents
        return scaled(difference.to(torch.promote_types(difference.dtype, torch.float32)))

    def clean_latents(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted x_0 = (x_T - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), but for that last factor, float32.

        Gradients pass. The factor is left out because it is the same for all, and 0 where it ends in pure noise.
        """
        latents = self.latents if rows is None else self.latents[rows]
        return (latents - (1 - self.alpha_bar) ** 0.5 * self.predict_noise(condition, rows)).float()


def scaled(planes: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each plane min-max scaled to [0, 1]; a constant one becomes 0."""
    low, high = planes.amin(dim=(2, 3), keepdim=True), planes.amax(dim=(2, 3), keepdim=True)
    return (planes - low) / (high - low).clamp_min(torch.finfo(planes.dtype).tiny)


def difference_similarity(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair of noise differences: three scales of equal exponents 0.33, torchmetrics' definition.

    The window is NeMo's 11 px, sigma 1.5, where sides are at least 44; smaller latents get the largest odd window up to
    a quarter of the smaller side, and a sigma as much smaller.

    Raises:
        InputError: A side is below 12.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    window = window_size(min(x.shape[-2:]))
    return multiscale_structural_similarity_index_measure(
        x,
        y,
        kernel_size=window,
        sigma=_SIGMA * window / _WINDOW,
        betas=_WEIGHTS,
        data_range=1.0,
        reduction="none",
    )


def window_size(side: int) -> int:
    """The window for latents of this side: the largest odd number up to 11 that three scales hold."""
    largest = min(_WINDOW, side // 4)
    window = largest if largest % 2 else largest - 1
    if window < _SMALLEST_WINDOW:
        cure = "Sample larger images."
        raise InputError(
            f"latents of at least {4 * _SMALLEST_WINDOW} px", f"{side} px", where="height, width", cure=cure
        )
    return window


def pairwise_similarity(differences: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n"]:
    """The similarity of every two of one prompt's noise differences; 0 on the diagonal."""
    num = len(differences)
    first, second = torch.triu_indices(num, num, 1)
    table = torch.zeros(num, num, dtype=differences.dtype)
    if len(first):
        table[first, second] = difference_similarity(differences[first], differences[second]).cpu()
    return table + table.mT
