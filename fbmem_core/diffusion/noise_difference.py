"""First-step noise differences eps(x_T) - x_T (NeMo, section 3): similar across seeds if the prompt is memorized.

NeMo, arXiv 2406.02366, section 3: over several seeds the noise differences of a memorized prompt resemble each other.

Notation: x_T initial latents, eps the predicted noise, x_0 the predicted clean latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.schedule import MIN_SIGNAL, clean_from_output, noise_from_output
from fbmem_core.diffusion.schedule_names import EPSILON
from fbmem_core.diffusion.settings import Mode
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NUM_STEPS = 50  # of sampling, from which the timestep is taken
SCALE_WEIGHTS = (0.33, 0.33, 0.33)  # NeMo's
_WINDOW, _SIGMA = 11, 1.5
_SMALLEST_WINDOW = 3


def encode_prompts(pipeline: DiffusionPipeline, prompts: Sequence[str], *, height: int, width: int) -> Conditioning:
    """The text conditions of n >= 1 prompts, as the pipeline itself makes them for images of this size in px."""
    return denoiser_of(pipeline).encode(prompts, height=height, width=width)


def encode_unconditional(
    pipeline: DiffusionPipeline, negative_prompt: str = "", *, height: int, width: int
) -> Conditioning:
    """Condition that guidance compares a prompt with: one condition, as the pipeline makes it; see `Denoiser`."""
    return denoiser_of(pipeline).encode_unconditional(negative_prompt, height=height, width=width)


class FirstStep:
    """The first step of sampling without guidance, for one initial latent a seed.

    Where the first latents are noise alone (flow matching, zero terminal SNR) and the network does not predict eps
    itself, eps is x_T whatever the prompt, and says nothing. There x_T - x_0 stands for eps: the way in which eps
    begins to differ from x_T as soon as there is signal.

    Args:
        pipeline: Its network and its own scheduler are used.
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
        self._pipeline = pipeline  # which the denoiser does not hold
        self.denoiser = denoiser_of(pipeline)
        self.schedule = self.denoiser.schedule(num_steps, height=height, width=width)
        self.step = self.schedule.steps[1 if mode == "released" else 0]
        noise = self.denoiser.initial_latents(seeds, height=height, width=width)
        self.latents = (self.schedule.initial_scale * noise).to(self.denoiser.dtype)

    @property
    def network(self) -> nn.Module:
        """The network that predicts."""
        return self.denoiser.network

    @torch.no_grad()
    def noise(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted noise eps, without gradients; see `predict_noise`."""
        return self.predict_noise(condition, rows)

    def predict_noise(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted noise eps, or what stands for it; gradients pass.

        Args:
            condition: As many prompts as there are rows, or one for all.
            rows: Which of the seeds; all by default.
        """
        return self.noise_at(self.latents if rows is None else self.latents[rows], condition)

    def noise_at(self, latents: Float[Tensor, "n c h w"], condition: Conditioning) -> Float[Tensor, "n c h w"]:
        """Predicted noise eps, or what stands for it, for latents of the caller's at this step; gradients pass.

        Args:
            latents: In the place of the step's own.
            condition: As many prompts as there are latents, or one for all.
        """
        output = self._output_at(latents, condition)
        if self.step.signal < MIN_SIGNAL and self.schedule.prediction != EPSILON:
            return latents - clean_from_output(output, latents, self.step, self.schedule.prediction)
        return noise_from_output(output, latents, self.step, self.schedule.prediction)

    def noise_difference(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """eps - x_T, scaled to [0, 1] per sample and channel, in float32 or more."""
        latents = self.latents if rows is None else self.latents[rows]
        difference = self.noise(condition, rows) - latents
        return scaled(difference.to(torch.promote_types(difference.dtype, torch.float32)))

    def clean_latents(self, condition: Conditioning, rows: Tensor | None = None) -> Float[Tensor, "n c h w"]:
        """Predicted clean latents x_0, float32; gradients pass."""
        latents = self.latents if rows is None else self.latents[rows]
        output = self._output_at(latents, condition)
        return clean_from_output(output.float(), latents.float(), self.step, self.schedule.prediction)

    def _output_at(self, latents: Tensor, condition: Conditioning) -> Tensor:
        condition = condition.repeat(len(latents)) if len(condition) == 1 else condition
        return self.denoiser.predict(latents, self.step, condition)


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
        sigma=gaussian_sigma(window),
        betas=SCALE_WEIGHTS,
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


def gaussian_sigma(window: int) -> float:
    """The deviation of the window's Gaussian: 1.5 for 11 px, in proportion for smaller ones."""
    return _SIGMA * window / _WINDOW


def pairwise_similarity(differences: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n"]:
    """The similarity of every two of one prompt's noise differences; 0 on the diagonal."""
    num = len(differences)
    first, second = torch.triu_indices(num, num, 1)
    table = torch.zeros(num, num, dtype=differences.dtype)
    if len(first):
        table[first, second] = difference_similarity(differences[first], differences[second]).cpu()
    return table + table.mT
