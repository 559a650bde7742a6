"""Sampling with one seed per image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from fbmem_core.diffusion.memory import smaller_batch
from fbmem_core.diffusion.settings import SamplingConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

_VERSION = 1  # raise it when the same settings begin to give other images


@dataclass(frozen=True)
class Request:
    """One image to be sampled."""

    prompt_id: str
    prompt: str
    seed: int


def sample(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    prompt_embeds: Tensor | None = None,
) -> Iterator[tuple[Request, Image.Image]]:
    """Sample images in batches of `sampling.batch_size`.

    The initial latents of an image are drawn by a CPU generator of its own seed, so they are exactly the same alone,
    in any batch and on any device. The finished image is the same to within 1 of 255 per pixel, because kernels sum in
    another order for another batch size.

    Where the device has too little memory for a batch, that and all later ones are half as large.

    With `prompt_embeds` [1, tokens, d] all are sampled with that embedding in the place of their prompts' own.

    Yields:
        Each request with its image, uint8 RGB.

    Raises:
        InputError: The device has too little memory for one image.
    """
    size, done = sampling.batch_size, 0
    while done < len(requests):
        batch = requests[done : done + size]
        images = _sample_batch(pipeline, batch, sampling, prompt_embeds)
        if images is None:
            size = smaller_batch(len(batch), sampling.device)
            continue
        yield from zip(batch, images, strict=True)
        done += len(batch)


def _sample_batch(
    pipeline: DiffusionPipeline, batch: Sequence[Request], sampling: SamplingConfig, prompt_embeds: Tensor | None
) -> list[Image.Image] | None:
    """The images of one batch; None where the device has no memory for so many."""
    import torch

    try:
        return pipeline(
            prompt=[request.prompt for request in batch] if prompt_embeds is None else None,
            prompt_embeds=None if prompt_embeds is None else prompt_embeds.expand(len(batch), -1, -1),
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            height=sampling.height,
            width=sampling.width,
        ).images
    except torch.OutOfMemoryError:
        return None


def content_key(fingerprint: str, method: str, request: Request, sampling: SamplingConfig) -> str:
    """12 hex digits that name an image by everything that determines it; batch size and device are not among that."""
    what = sampling.model_dump(include={"steps", "guidance_scale", "height", "width", "dtype"})
    parts = [_VERSION, fingerprint, method, request.prompt, request.seed, what]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
