"""The image tower of an open_clip model as a descriptor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.clustering import load_open_clip


class OpenClip:
    """The image tower of an open_clip model.

    Args:
        model: Its name in open_clip.
        weights: A tag that open_clip knows, or the path of a checkpoint file.
        device: Where to compute.

    Raises:
        InputError: open_clip has no such model.
        WeightsNotFoundError: The weights are neither here nor to be had.
    """

    fill = (0.5, 0.5, 0.5)

    def __init__(self, model: str, weights: str, *, device: str = "cpu") -> None:
        self.network = load_open_clip(model, weights, device=device)
        self.device, self.name = device, f"open_clip {model}, {weights}"
        visual = self.network.visual
        size = visual.image_size
        self.size = size if isinstance(size, tuple) else (size, size)
        self.mean, self.std = (
            torch.tensor(getattr(visual, f"image_{name}"))[:, None, None] for name in ("mean", "std")
        )

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """[n, d]."""
        resized = F.interpolate(images, size=self.size, mode="bicubic", antialias=True).clamp(0, 1).cpu()
        return self.network.encode_image(((resized - self.mean) / self.std).to(self.device)).float()
