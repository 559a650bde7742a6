"""Sampling with one seed per image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from fbmem_core.diffusion.denoiser import Denoiser, denoiser_of
from fbmem_core.diffusion.guidance import guidance_of
from fbmem_core.diffusion.settings import SamplingConfig
from fbmem_core.store.images import UNUSABLE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

_VERSION = 2  # raise it when the same settings begin to give other images


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
    embeds: Tensor | None = None,
    latents: Mapping[int, Tensor] | None = None,
) -> Iterator[tuple[Request, Image.Image]]:
    """Sample images in batches of `sampling.batch_size`.

    The initial latents of an image are drawn by a CPU generator of its own seed, so they are exactly the same alone,
    in any batch and on any device. The finished image is the same to within 1 of 255 per pixel, because kernels sum in
    another order for another batch size.

    Where the device has too little memory for a batch, that and all later ones of this pipeline are half as large.

    Args:
        pipeline: The model.
        requests: What is sampled, in this order.
        sampling: How.
        embeds: [1, tokens, d] in the place of the prompts' own embeddings.
        latents: By seed [c, h, w], of unit variance: initial latents in the place of the seed's own.

    Yields:
        Each request with its image, uint8 RGB. An image that holds no picture says why in `info["unusable"]`: the model
        gave no numbers, or black alone.

    Raises:
        InputError: The device has too little memory for one image.
    """
    denoiser = denoiser_of(pipeline)
    batches = denoiser.batches("sampling", sampling.batch_size)

    def sampled(batch: Sequence[Request]) -> list[tuple[Request, Image.Image]]:
        pixels = pipeline(
            **_texts(denoiser, batch, sampling, embeds),
            **denoiser.call_arguments(guidance_of(sampling)),
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            latents=_initial_latents(denoiser, batch, sampling, latents or {}),
            num_inference_steps=sampling.steps,
            height=sampling.height,
            width=sampling.width,
            output_type="np",
        ).images
        return [(request, to_image(image)) for request, image in zip(batch, pixels, strict=True)]

    return chain.from_iterable(batches.run(sampled, requests))


def to_image(pixels: np.ndarray) -> Image.Image:
    """The image of pixels [h, w, 3] in [0, 1], rounded as diffusers rounds; `info["unusable"]` where it is none.

    >>> to_image(np.full((2, 2, 3), np.nan)).info["unusable"]
    'the model gave no numbers (NaN)'
    """
    is_finite = bool(np.isfinite(pixels).all())
    image = Image.fromarray((np.nan_to_num(pixels) * 255).round().astype(np.uint8))
    if not is_finite:
        image.info[UNUSABLE] = "the model gave no numbers (NaN)"
    elif not np.asarray(image).any():
        image.info[UNUSABLE] = "the model gave black alone"
    return image


def _texts(
    denoiser: Denoiser, batch: Sequence[Request], sampling: SamplingConfig, embeds: Tensor | None
) -> dict[str, Any]:
    """Arguments with which the pipeline is called for prompts."""
    prompts = [request.prompt for request in batch]
    if embeds is None:
        return {"prompt": prompts}
    condition = denoiser.encode(prompts, height=sampling.height, width=sampling.width).with_embeds(embeds)
    return denoiser.embed_arguments(condition, guidance_of(sampling))


def _initial_latents(
    denoiser: Denoiser, batch: Sequence[Request], sampling: SamplingConfig, latents: Mapping[int, Tensor]
) -> Tensor | None:
    """Latents of the whole batch where any of them is replaced; None lets the pipeline draw them."""
    if not any(request.seed in latents for request in batch):
        return None
    seeds = [request.seed for request in batch]
    own = denoiser.initial_latents(seeds, height=sampling.height, width=sampling.width)
    rows = [latents.get(seed, drawn) for seed, drawn in zip(seeds, own, strict=True)]
    return torch.stack([row.to(own) for row in rows])


def content_key(fingerprint: str, method: str, request: Request, sampling: SamplingConfig) -> str:
    """12 hex digits that name an image by everything that determines it; batch size and device are not among
    that."""
    what = sampling.of_images()
    parts = [_VERSION, fingerprint, method, request.prompt, request.seed, what]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
