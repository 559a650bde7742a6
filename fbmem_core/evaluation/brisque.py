"""BRISQUE: how natural an image looks, without another one to compare it with and without anything to download.

Mittal, Moorthy, Bovik: No-reference image quality assessment in the spatial domain (2012). The statistics of locally
normalised luminance, at two scales, go into a support vector regression that was fitted to people's opinions of
distorted photographs. Its weights are the ones that the authors published (Laboratory for Image and Video Engineering,
University of Texas at Austin), in the form that the package `brisque` 0.2.0 ships; that package itself fails with
numpy 2.4 and needs a compiler and OpenCV, so it is repeated here and tested against it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

MIN_SIDE = 16  # px; half of it still holds the window
_MODEL = Path(__file__).with_name("brisque.npz")
_LUMINANCE = (0.2125, 0.7154, 0.0721)
_WINDOW, _SIGMA = 7, 7 / 6
_C = 1 / 255
_NOTHING = 1e-9
# OpenCV's bicubic kernel (a = -0.75) half-way between two pixels: how the weights' features were halved
_CUBIC = (-0.09375, 0.59375, 0.59375, -0.09375)


def brisque(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """BRISQUE of RGB images in [0, 1]: about 0 (as a good photograph) to 100, lower is better.

    Drawings are no photographs: compare a model's images with its own unmitigated ones, never with other models'. An
    image that no training image was like gets 155.8; NaN stands for one without any structure. At least 16 px a side.
    """
    images = images.double()
    luminance = (images * images.new_tensor(_LUMINANCE).view(3, 1, 1)).sum(dim=1, keepdim=True)
    features = torch.cat([_features(luminance), _features(_halved(luminance))], dim=1)
    model = {name: value.to(images.device) for name, value in _model().items()}
    scaled = 2 * (features - model["low"]) / (model["high"] - model["low"]) - 1
    kernel = torch.exp(-model["gamma"] * torch.cdist(scaled, model["support_vectors"]).square())
    return kernel @ model["coefficients"] - model["rho"]


@cache
def _model() -> dict[str, Tensor]:
    with np.load(_MODEL) as file:
        return {name: torch.from_numpy(file[name]).double() for name in file.files}


def _features(plane: Tensor) -> Tensor:
    """18 features of one scale [n, 1, h, w]: of the normalised luminance and of its products with four neighbours."""
    mean = _blurred(plane)
    deviation = (_blurred(plane**2) - mean**2).abs().sqrt()
    normal = ((plane - mean) / (deviation + _C))[:, 0]
    shape, _, left, right = _asymmetric_fit(normal)
    found = [shape, (left + right) / 2]
    for product in (
        normal[:, :, :-1] * normal[:, :, 1:],
        normal[:, :-1] * normal[:, 1:],
        normal[:, :-1, :-1] * normal[:, 1:, 1:],
        normal[:, 1:, :-1] * normal[:, :-1, 1:],
    ):
        found += _asymmetric_fit(product)
    return torch.stack(found, dim=1)


def _asymmetric_fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, mean, and variance left and right of an asymmetric generalised Gaussian, by moments; each [n]."""
    values = values.flatten(1)
    squares = values**2
    # on flat ground a value is 0 but for rounding, whose sign must not count; the authors leave 0 out of both sides
    is_left, is_right = values < -_NOTHING, values > _NOTHING
    left = (squares * is_left).sum(1) / is_left.sum(1)
    right = (squares * is_right).sum(1) / is_right.sum(1)
    ratio = (left / right).sqrt()
    moment = values.abs().mean(1) ** 2 / squares.mean(1)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = _shape_of(wanted)
    log_gamma = [torch.lgamma(order / shape) for order in (1, 2, 3)]
    mean = (right.sqrt() - left.sqrt()) * torch.exp(log_gamma[1] - (log_gamma[0] + log_gamma[2]) / 2)
    return shape, mean, left, right


def _shape_of(wanted: Tensor) -> Tensor:
    """Solves gamma(2/a)^2 / (gamma(1/a) gamma(3/a)) = wanted for a from 0.1 to 20 by halving; NaN stays NaN."""
    low, high = torch.full_like(wanted, 0.1), torch.full_like(wanted, 20.0)
    for _ in range(30):
        middle = (low + high) / 2
        value = torch.exp(2 * torch.lgamma(2 / middle) - torch.lgamma(1 / middle) - torch.lgamma(3 / middle))
        low, high = torch.where(value < wanted, middle, low), torch.where(value < wanted, high, middle)
    return torch.where(wanted.isnan(), torch.nan, (low + high) / 2)


def _blurred(plane: Tensor) -> Tensor:
    """By a Gaussian window; black beyond the border."""
    offsets = torch.arange(_WINDOW, dtype=plane.dtype, device=plane.device) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    pad = _WINDOW // 2
    rows = F.conv2d(plane, window.view(1, 1, -1, 1), padding=(pad, 0))
    return F.conv2d(rows, window.view(1, 1, 1, -1), padding=(0, pad))


def _halved(plane: Tensor) -> Tensor:
    """Half the size, as OpenCV does it with INTER_CUBIC; the border is repeated."""
    kernel = plane.new_tensor(_CUBIC)
    padded = F.pad(plane, (1, 1, 1, 1), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1), stride=(2, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1), stride=(1, 2))
