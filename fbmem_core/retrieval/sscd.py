"""Copy detection by SSCD descriptors, beside MS-SSIM: for those who compare with the literature.

Pizzi et al.: A Self-Supervised Descriptor for Image Copy Detection (CVPR 2022). The network is a TorchScript file, as
its authors publish it. Thresholds of different papers are not comparable: they depend on the network and on how images
are resized, which `Sscd.name` says.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.similarity.regions import RegionSimilarity

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, with which the authors trained
_STD = (0.229, 0.224, 0.225)
_BATCH = 16


class Sscd:
    """An SSCD network.

    Args:
        path: TorchScript file, for example `sscd_disc_mixup.torchscript.pt`.
        input_size: Side to which images are resized, px; the authors use 320 for batches of square images.
        device: Where it runs.

    Raises:
        WeightsNotFoundError: No such file.
        InputError: The file is no TorchScript, or gives no vector for an image.
    """

    def __init__(self, path: Path, *, input_size: int = 320, device: str = "cpu") -> None:
        if not path.is_file():
            cure = "Download a TorchScript model of SSCD, or leave it out."
            raise WeightsNotFoundError("an SSCD network", looked=str(path), cure=cure)
        try:
            with warnings.catch_warnings():  # torch prefers torch.export by now; SSCD is published as TorchScript
                warnings.simplefilter("ignore", FutureWarning)
                self._network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError("a TorchScript file", reason, where=path, cure="Download it anew.") from None
        self.device = device
        self.input_size = input_size
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.name = f"{path.name}@{digest}, {input_size}x{input_size}, ImageNet normalisation"
        with torch.inference_mode():
            found = self._network(torch.zeros(1, 3, input_size, input_size, device=device))
        if not isinstance(found, Tensor) or found.ndim != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError("a network that gives [n, d] descriptors", got, where=path, cure="Use one of SSCD's.")

    def descriptors(self, images: Float[Tensor, "n 3 h w"], shown: Tensor | None = None) -> Float[Tensor, "n d"]:
        """Descriptors of unit length of RGB images in [0, 1].

        `shown` [n, 1, h, w] in [0, 1] is the region that the network sees; the rest has ImageNet's mean colour.
        """
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (_MEAN, _STD))
        seen = (images - mean) / std
        if shown is not None:
            seen = seen * shown
        seen = F.interpolate(seen, size=(self.input_size,) * 2, mode="bilinear", antialias=True)
        with torch.inference_mode():
            return F.normalize(self._network(seen.to(self.device)).float(), dim=1)

    def region_descriptors(self, images: ImageSet) -> dict[str, Float[Tensor, "n d"]]:
        """Descriptors of the whole images, their foregrounds and their backgrounds; NaN where a matte is undecided."""
        parts: dict[str, list[Tensor]] = {"full": [], "foreground": [], "background": []}
        for rows in torch.arange(len(images)).split(_BATCH):
            pixels, alphas = images.tensors(rows, self.device)
            undecided = torch.from_numpy(~images.decided[rows.numpy()]).to(self.device)[:, None]
            parts["full"].append(self.descriptors(pixels))
            for part, shown in (("foreground", alphas), ("background", 1 - alphas)):
                parts[part].append(self.descriptors(pixels, shown).masked_fill(undecided, torch.nan))
        return {part: torch.cat(found) for part, found in parts.items()}


def sscd_similarity(network: Sscd, x: Tensor, y: Tensor, alpha_x: Tensor, alpha_y: Tensor) -> RegionSimilarity:
    """Cosine similarity in [-1, 1] of each pair (x[i], y[i]) of RGB images [n, 3, h, w] with mattes [n, 1, h, w]."""
    shown = {"full": (None, None), "foreground": (alpha_x, alpha_y), "background": (1 - alpha_x, 1 - alpha_y)}
    found = {
        part: (network.descriptors(x, of_x) * network.descriptors(y, of_y)).sum(dim=1)
        for part, (of_x, of_y) in shown.items()
    }
    return RegionSimilarity(**found)
