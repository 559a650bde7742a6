"""DINOv2 as a descriptor: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision (2023)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.errors import InputError, WeightsNotFoundError

MODEL = "vit_small_patch14_dinov2"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with which the authors trained


class Dino:
    """The class token of a DINOv2 network of timm.

    Args:
        weights: State dict of timm's `vit_small_patch14_dinov2` or of another model of timm, as safetensors or .pth.
        model: Its name in timm.
        input_size: Side to which images are resized, px; a multiple of the patch size.
        device: Where it computes.

    Raises:
        WeightsNotFoundError: No such file.
        InputError: timm has no such model, or the weights are of another one.
    """

    fill = _MEAN

    def __init__(self, weights: Path, *, model: str = MODEL, input_size: int = 224, device: str = "cpu") -> None:
        import timm

        if not weights.is_file():
            cure = f"Download the weights of timm's {model}, or leave the descriptor out."
            raise WeightsNotFoundError("DINOv2 weights", looked=str(weights), cure=cure)
        try:
            network = timm.create_model(
                model, pretrained=False, num_classes=0, img_size=input_size, checkpoint_path=str(weights)
            )
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"weights of timm's {model}", reason, where=weights, cure="Name its own file.") from None
        self._network = network.to(device).eval()
        self.input_size, self.device = input_size, device
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        self.name = f"{model}@{digest}, {input_size}x{input_size}, ImageNet normalisation"

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """[n, d], the class token."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (_MEAN, _STD))
        resized = F.interpolate(images, size=(self.input_size,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        return self._network(((resized - mean) / std).to(self.device))


def from_file(weights: Path, *, device: str = "cpu") -> Dino:
    """DINOv2's small network with the weights of a file."""
    return Dino(weights, device=device)
