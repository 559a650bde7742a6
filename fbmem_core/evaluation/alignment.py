"""Alignment of images with their prompts by a diffusion model itself, which needs no other network's weights.

A diffusion classifier (Li et al., arXiv 2303.16203): of several prompts an image belongs to the one with which the
model denoises it best. Notation: z_0 latents of the image, y a prompt; the error of y is E ||target - f(z_t, t, y)||^2
over the same noises and steps for every prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.schedule import Step, output_from_both
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

NUM_OTHERS = 8
NUM_DRAWS = 8


@torch.no_grad()
def prompt_alignment(
    judge: DiffusionPipeline,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    rivals: Sequence[str],
    *,
    num_draws: int = NUM_DRAWS,
) -> list[float]:
    """Share of other prompts that fit an image less than its own does: 1 is best, 0.5 is chance.

    Args:
        judge: The model that judges: the clean twin where there is one, since a model that memorized a picture finds
            that it fits its prompt. It knows nothing of a prompt that it was not trained on, such as a planted one.
        images: n of them, of the size that the judge samples.
        prompts: The prompt of each.
        rivals: Texts to compare with; at most 8 different ones that are not the image's own are taken.
        num_draws: Steps and noises, the same for all prompts of an image.

    Raises:
        InputError: There are no other prompts, or not a prompt for each image.
    """
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} prompts, one an image", len(prompts), cure="Give the prompt of each image.")
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        chosen = _rivals(prompt, rivals)
        if not chosen:
            cure = "Audit more than one prompt."
            raise InputError("other prompts than the image's own", "none", where="prompt alignment", cure=cure)
        width, height = image.size
        conditions = denoiser_of(judge).encode([prompt, *chosen], height=height, width=width)
        errors = _errors(judge, image, conditions, num_draws)
        scores.append((errors[1:] > errors[0]).float().mean().item())
    return scores


def _rivals(prompt: str, rivals: Sequence[str]) -> list[str]:
    """The same ones for a prompt in every audit that has them: those whose hash with it is lowest."""
    texts = sorted(set(rivals) - {prompt}, key=lambda text: hashlib.sha256(f"{prompt}\0{text}".encode()).digest())
    return texts[:NUM_OTHERS]


def _errors(
    judge: DiffusionPipeline, image: Image.Image, conditions: Conditioning, num_draws: int
) -> Float[Tensor, " prompts"]:
    denoiser, generator = denoiser_of(judge), torch.Generator("cpu").manual_seed(0)
    latents = denoiser.encode_image(image)
    total = torch.zeros(len(conditions))
    for _ in range(num_draws):
        step = denoiser.training_steps(1, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noised = (step.signal * latents + step.noise * noise).to(latents).expand(len(conditions), -1, -1, -1)
        target = output_from_both(latents, noise, step, denoiser.prediction)
        total += _squared_error(denoiser.predict(noised, _repeated(step, len(conditions)), conditions), target).cpu()
    return total / num_draws


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.float() - target.float()).square().mean(dim=(1, 2, 3))


def _repeated(step: Step, num: int) -> Step:
    timestep, signal, noise = (torch.as_tensor(value) for value in (step.timestep, step.signal, step.noise))
    return Step(timestep.expand(num), signal.expand(num, 1, 1, 1), noise.expand(num, 1, 1, 1))
