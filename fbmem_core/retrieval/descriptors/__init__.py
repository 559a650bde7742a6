"""Descriptors: images to vectors, for copy detection beside MS-SSIM and for the prefilter.

A descriptor is one file of this folder: its name is what an audit file calls it, its function `from_file` makes it of a
file of weights and a device. Nothing else has to be written.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from fbmem_core.retrieval.image_sets import ImageSet

_BATCH = 16


class Descriptor(Protocol):
    """Images to vectors.

    Attributes:
        name: What identifies its numbers: network, weights and preprocessing. Similarities of different descriptors are
            not comparable.
        fill: RGB in [0, 1] of the pixels outside a region, what the network takes for nothing.
        device: Where it computes.
    """

    name: str
    fill: tuple[float, float, float]
    device: str

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Vectors of RGB images in [0, 1]; their length does not matter."""
        ...


DESCRIPTORS = tuple(module.name for module in iter_modules(__path__))


def load_descriptor(name: str, weights: Path, *, device: str = "cpu") -> Descriptor:
    """The descriptor of this name with the weights of a file.

    Args:
        name: One of `DESCRIPTORS`.
        weights: Its file; each class says which.
        device: Where it computes.

    Raises:
        InputError: There is no such descriptor, it is made of something else than a file, or the file does not fit it.
        WeightsNotFoundError: No such file.

    Example:
        >>> load_descriptor("resnet", Path("resnet.pt"))
        Traceback (most recent call last):
        fbmem_core.errors.InputError: Expected one of dino, latents, open_clip, sscd, but got `resnet` ... Choose one.
    """
    if name not in DESCRIPTORS:
        raise InputError(f"one of {', '.join(DESCRIPTORS)}", f"`{name}`", where="the descriptor", cure="Choose one.")
    module = import_module(f"{__name__}.{name}")
    if not hasattr(module, "from_file"):
        raise InputError("a descriptor that is made of a file", f"`{name}`", cure="Leave the file out.")
    return module.from_file(weights, device=device)


def describe(
    descriptor: Descriptor, images: Float[Tensor, "n 3 h w"], visible: Float[Tensor, "n 1 h w"] | None = None
) -> Float[Tensor, "n d"]:
    """Vectors of unit length of RGB images in [0, 1].

    Args:
        descriptor: Gives the vectors.
        images: Any size; each descriptor resizes them as its network wants it.
        visible: Weight in [0, 1] of each pixel; the rest has the descriptor's `fill`.

    Example:
        >>> import torch
        >>> class MeanColor:
        ...     name, fill, device = "mean colour", (0.5, 0.5, 0.5), "cpu"
        ...     def __call__(self, images):
        ...         return images.mean(dim=(2, 3))
        >>> describe(MeanColor(), torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
        tensor([[1., 0., 0.]])
    """
    import torch

    if visible is not None:
        fill = torch.tensor(descriptor.fill, device=images.device)[:, None, None]
        images = images * visible + fill * (1 - visible)
    return torch.nn.functional.normalize(descriptor(images).float(), dim=1)


def region_descriptors(images: ImageSet, descriptor: Descriptor) -> dict[str, Float[Tensor, "n d"]]:
    """Vectors of unit length of the whole images, their foregrounds and their backgrounds; NaN: undecided matte.

    Args:
        images: n images with their mattes.
        descriptor: Gives the vectors.
    """
    import torch

    parts: dict[str, list[Tensor]] = {"full": [], "foreground": [], "background": []}
    for rows in torch.arange(len(images)).split(_BATCH):
        pixels, alphas = images.tensors(rows, descriptor.device)
        undecided = torch.from_numpy(~images.decided[rows.numpy()]).to(descriptor.device)[:, None]
        parts["full"].append(describe(descriptor, pixels))
        for region, visible in (("foreground", alphas), ("background", 1 - alphas)):
            parts[region].append(describe(descriptor, pixels, visible).masked_fill(undecided, torch.nan))
    return {region: torch.cat(vectors) for region, vectors in parts.items()}


__all__ = ["DESCRIPTORS", "Descriptor", "describe", "load_descriptor", "region_descriptors"]
