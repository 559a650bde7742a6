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
from fbmem_core.retrieval.descriptors import describe
from fbmem_core.similarity.regions import RegionSimilarity

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, with which the authors trained
_STD = (0.229, 0.224, 0.225)


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

    fill = _MEAN

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
            vectors = self._network(torch.zeros(1, 3, input_size, input_size, device=device))
        if not isinstance(vectors, Tensor) or vectors.ndim != 2:
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise InputError("a network that gives [n, d] descriptors", got, where=path, cure="Use one of SSCD's.")

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Descriptors of RGB images in [0, 1]."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (_MEAN, _STD))
        seen = F.interpolate((images - mean) / std, size=(self.input_size,) * 2, mode="bilinear", antialias=True)
        with torch.inference_mode():
            return self._network(seen.to(self.device)).float()


def sscd_similarity(network: Sscd, x: Tensor, y: Tensor, alpha_x: Tensor, alpha_y: Tensor) -> RegionSimilarity:
    """Cosine similarity in [-1, 1] of each pair (x[i], y[i]) of RGB images [n, 3, h, w] with mattes [n, 1, h, w]."""
    visible = {"full": (None, None), "foreground": (alpha_x, alpha_y), "background": (1 - alpha_x, 1 - alpha_y)}
    return RegionSimilarity(
        **{
            region: (describe(network, x, visible_x) * describe(network, y, visible_y)).sum(dim=1)
            for region, (visible_x, visible_y) in visible.items()
        }
    )


def from_file(weights: Path, *, device: str = "cpu") -> Sscd:
    """SSCD with the TorchScript network of a file."""
    return Sscd(weights, device=device)
