"""Memory seen without any reference: where a model remembers, the images of one prompt agree before they are sampled.

At the first steps the predicted clean latents x_0 of different seeds have nothing in common for a prompt that is not
memorized. For one that is, they agree: everywhere (VM), inside the object (FM), or outside of it (BM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import Denoiser, denoiser_of
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Schedule, clean_from_output, noise_from_output
from fbmem_core.errors import InputError
from fbmem_core.rules import Label

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_WINDOW = 3  # of the map, latent pixels
_TINY = 1e-12


@dataclass(frozen=True)
class SeedAgreement:
    """Agreement of the seeds of one prompt, from -1 to 1: each image's cosine with the one nearest to it, on average.

    The nearest, because the images of a prompt may be copies of several pictures.

    Attributes:
        inside: Over the foreground of either image; None where no image has one.
        outside: Over the rest.
        agreement_map: [h, w] about every latent pixel, with the image that is nearest as a whole.
    """

    inside: float | None
    outside: float | None
    agreement_map: Tensor


@torch.no_grad()
def predict_clean_latents(
    pipeline: DiffusionPipeline,
    latents: Float[Tensor, "n c h w"],
    conditions: tuple[Conditioning, Conditioning],
    *,
    guidance: Guidance,
    num_inference_steps: int,
    num_steps: int,
) -> Float[Tensor, "steps n c h w"]:
    """The clean latents x_0 that the model predicts at each of the first steps of sampling, float32.

    The steps are those of the pipeline's own scheduler; from one to the next goes the deterministic step of first
    order, x = signal x_0 + noise eps: what DDIM, Euler and flow matching do, and the first order of the others.

    Args:
        pipeline: Its network and scheduler are used.
        latents: x_T of n seeds, as `FirstStep` has them.
        conditions: The unconditional one and the prompt, one each.
        guidance: As in sampling.
        num_inference_steps: Of the whole sampling.
        num_steps: How many of them are made.

    Raises:
        InputError: The sampling has fewer steps, or the device too little memory for one seed.
    """
    denoiser = denoiser_of(pipeline)
    factor = pipeline.vae_scale_factor
    height, width = (side * factor for side in latents.shape[-2:])
    schedule = denoiser.schedule(num_inference_steps, height=height, width=width)
    if not 1 <= num_steps <= len(schedule.steps):
        cure = "Change `num_steps` of `agreement`, or of `fade`."
        raise InputError(f"1 to {len(schedule.steps)} steps", num_steps, cure=cure)

    def walk(batch: Sequence[int]) -> Tensor:
        rows = latents[torch.tensor(batch, device=latents.device)]
        return _walk(denoiser, rows, conditions, guidance, schedule, num_steps)

    batches = denoiser.batches("clean latents", len(latents))
    return torch.cat(list(batches.run(walk, range(len(latents)))), dim=1)


def _walk(
    denoiser: Denoiser,
    latents: Tensor,
    conditions: tuple[Conditioning, Conditioning],
    guidance: Guidance,
    schedule: Schedule,
    num_steps: int,
) -> Tensor:
    latents, predicted = latents.to(torch.promote_types(latents.dtype, torch.float32)), []
    for step, following in zip_longest(schedule.steps[:num_steps], schedule.steps[1:num_steps]):
        output = denoiser.predict_guided(latents, step, conditions, guidance).to(latents)
        noise = noise_from_output(output, latents, step, schedule.prediction)
        clean = clean_from_output(output, latents, step, schedule.prediction)
        if schedule.clip is not None:
            clean = clean.clamp(-schedule.clip, schedule.clip)
        predicted.append(clean)
        if following is not None:
            latents = following.signal * clean + following.noise * noise
    return torch.stack(predicted)


def seed_agreement(latents: Float[Tensor, "n c h w"], alphas: Float[Tensor, "n 1 s s"]) -> SeedAgreement:
    """Agreement of the predicted clean latents of n seeds inside and outside the foregrounds of their images.

    The cosine of two images x, y over a region with weights w is sum w <x, y> / sqrt(sum w <x, x> sum w <y, y>): the
    mean of that with the matte of x and that with the matte of y.

    Raises:
        InputError: There are fewer than two seeds, or not a matte for each.
    """
    num = len(latents)
    if num < 2 or len(alphas) != num:
        cure = "Sample at least two images a prompt."
        raise InputError("two seeds or more with a matte each", f"{num} and {len(alphas)}", cure=cure)
    weights = F.adaptive_avg_pool2d(alphas.float(), (latents.shape[-2], latents.shape[-1]))
    first, second = torch.triu_indices(num, num, 1)
    x, y = latents[first], latents[second]
    products = torch.stack([(x * y).sum(1), (x * x).sum(1), (y * y).sum(1)], dim=1)  # [pairs, 3, h, w]
    of_pairs = [
        torch.stack([_cosine(products, region[rows]) for rows in (first, second)]).nanmean(dim=0)
        for region in (weights, 1 - weights, torch.ones_like(weights))
    ]
    inside, outside, whole = (_table(values, num) for values in of_pairs)
    blurred = F.avg_pool2d(products, _WINDOW, stride=1, padding=_WINDOW // 2)
    local = blurred[:, 0] / (blurred[:, 1] * blurred[:, 2]).sqrt().clamp_min(_TINY)
    numbers = _table(torch.arange(len(first), device=latents.device).float(), num).long()
    partners = numbers[torch.arange(num), whole.argmax(dim=1)]
    return SeedAgreement(_mean_highest(inside), _mean_highest(outside), local[partners].mean(dim=0))


def predict_label(agreement: SeedAgreement, *, threshold: float) -> Label:
    """VM where the seeds agree everywhere, FM inside alone, BM outside alone, else NM."""
    inside, outside = (value is not None and value >= threshold for value in (agreement.inside, agreement.outside))
    if inside and (outside or agreement.outside is None):
        return "VM"
    if inside:
        return "FM"
    if outside:
        return "VM" if agreement.inside is None else "BM"
    return "NM"


def _cosine(products: Tensor, weights: Tensor) -> Tensor:
    """[pairs], NaN where the region is empty."""
    dot, xx, yy = (products * weights).sum(dim=(2, 3)).unbind(dim=1)
    norm = (xx * yy).sqrt()
    return torch.where(norm > _TINY, dot / norm.clamp_min(_TINY), torch.nan)


def _table(values: Tensor, num: int) -> Tensor:
    """Values of pairs as [num, num]; below every cosine where there is none."""
    table = values.new_full((num, num), -2.0)
    first, second = torch.triu_indices(num, num, 1)
    table[first, second] = table[second, first] = values.nan_to_num(-2.0)
    return table


def _mean_highest(table: Tensor) -> float | None:
    """Mean over the images that have a partner of the cosine with the nearest."""
    highest = table.amax(dim=1)
    highest = highest[highest >= -1.5]
    return highest.mean().item() if len(highest) else None
