"""The audited pipeline's own image encoder as a descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_LATENT_SIDE = 8  # of the pooled latents, so that a vector has a few hundred numbers


class Latents:
    """Latents of the pipeline's autoencoder, pooled to 8 x 8, less their mean.

    Args:
        vae: The autoencoder.
        image_size: Side to which images are resized, px.
    """

    fill = (0.5, 0.5, 0.5)

    def __init__(self, vae: AutoencoderKL, *, image_size: int) -> None:
        self.vae, self.image_size, self.device = vae, image_size, str(vae.device)
        self.name = f"latents of the pipeline, {image_size}x{image_size}"

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """[n, 64 c]."""
        resized = F.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        inputs = (resized * 2 - 1).to(self.vae.device, self.vae.dtype)
        latents = self.vae.encode(inputs).latent_dist.mean.float()
        pooled = F.adaptive_avg_pool2d(latents, _LATENT_SIDE)
        return (pooled - pooled.mean(dim=(2, 3), keepdim=True)).flatten(1)
