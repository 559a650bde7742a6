"""Multi-scale structural similarity, and its masked form.

Wang, Simoncelli, Bovik: Multi-scale structural similarity for image quality assessment (2003). Notation of the paper:
l, c, s for luminance, contrast and structure; here `cs` is the product of the last two.

Gaussian blurs are products with a banded matrix: on a CPU several times faster than a convolution of many small planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.errors import InputError

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_SIZE = 11
SIGMA = 1.5
_C1 = 0.01**2  # (K1 * data_range)**2, data_range fixed at 1
_C2 = 0.03**2
_MIN_WEIGHT = 1e-4  # less of a mask than this under one pixel counts as none


@dataclass(frozen=True)
class Level:
    """One scale of a batch of images: pixels [n, 3, h, w], and means and variances of the windows that lie inside."""

    image: Tensor
    mean: Tensor
    variance: Tensor


Pyramid = list[Level]  # finest scale first


def ms_ssim(
    x: Float[Tensor, "n 3 h w"],
    y: Float[Tensor, "n 3 h w"],
    *,
    scale_weights: tuple[float, ...] = SCALE_WEIGHTS,
) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair (x[i], y[i]) of RGB images in [0, 1]; the other pairs of the batch do not matter.

    11 px Gaussian window, sigma 1.5, K1 0.01, K2 0.03, data range 1; negative factors are clamped to 0, scales are
    multiplied per channel and channels averaged last, as in pytorch-msssim. torchmetrics averages channels first and
    counts reflected windows at the coarsest scale; see docs/similarity.md.

    Returns:
        Similarities in [0, 1], 1 for identical images.

    Raises:
        InputError: Shapes differ, or a side is too small for that many scales (161 px for five).
    """
    _check_shapes(x, y)
    num_scales = len(scale_weights)
    return pyramid_ms_ssim(pyramid(x, num_scales), pyramid(y, num_scales), scale_weights=scale_weights)


def pyramid(x: Float[Tensor, "n 3 h w"], num_scales: int = len(SCALE_WEIGHTS)) -> Pyramid:
    """What MS-SSIM needs of one side of a pair, so that it is computed once per image and not once per pair."""
    _check_size(x, num_scales)
    levels = []
    for scale in range(num_scales):
        if scale:  # odd sides are padded with zeros, as pytorch-msssim does it: 161 px hold five scales
            x = F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[-2:]])
        mean = _blur_inside(x)
        levels.append(Level(x, mean, _blur_inside(x * x) - mean**2))
    return levels


def pyramid_ms_ssim(x: Pyramid, y: Pyramid, *, scale_weights: tuple[float, ...] = SCALE_WEIGHTS) -> Float[Tensor, " n"]:
    """`ms_ssim` of two pyramids; one of them may hold a single image, which is compared with every one of the other."""
    result: Tensor | None = None
    for number, (a, b, weight) in enumerate(zip(x, y, scale_weights, strict=True)):
        covariance = _blur_inside(a.image * b.image) - a.mean * b.mean
        maps = _contrast_structure(a.variance, b.variance, covariance)
        if number == len(scale_weights) - 1:
            maps = maps * _luminance(a.mean, b.mean)
        factor = maps.mean(dim=(2, 3)).clamp(0, 1) ** weight  # rounding may lead past 1
        result = factor if result is None else result * factor
    assert result is not None
    return result.mean(dim=1)


def masked_ms_ssim(
    x: Float[Tensor, "n 3 h w"],
    y: Float[Tensor, "n 3 h w"],
    weight: Float[Tensor, "n 1 h w"],
    *,
    scale_weights: tuple[float, ...] = SCALE_WEIGHTS,
) -> Float[Tensor, " n"]:
    """MS-SSIM of a region: every mean, variance and average counts a pixel by its `weight` in [0, 1].

    Windows are normalised by the blur of the weights, so no pixel of weight 0 has any effect at any scale, and windows
    reach over the border of the image as they reach over the border of the region (plain MS-SSIM keeps to windows
    that lie inside), so any size will do. Symmetric in x and y.

    Returns:
        Similarities in [0, 1]; 1 for regions that are equal; NaN where the region is empty.
    """
    _check_shapes(x, y)
    result = x.new_ones(x.shape[:2])
    empty = weight.sum(dim=(1, 2, 3)) < 1
    for scale, exponent in enumerate(scale_weights):
        if scale:
            x, y, weight = _masked_halves(x, y, weight)
        luminance, cs = _masked_ssim_maps(x, y, weight)
        last = scale == len(scale_weights) - 1
        maps = luminance * cs if last else cs
        factor = (maps * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(_MIN_WEIGHT)
        result = result * factor.clamp(0, 1) ** exponent
    return torch.where(empty, torch.nan, result.mean(dim=1))


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise InputError("two batches of one shape", f"{tuple(x.shape)} and {tuple(y.shape)}", cure="Resize first.")


def _check_size(x: Tensor, num_scales: int) -> None:
    smallest = (WINDOW_SIZE - 1) * 2 ** (num_scales - 1) + 1
    if min(x.shape[-2:]) < smallest:
        cure = "Score at a larger size, or with fewer scales."
        raise InputError(f"sides of at least {smallest} px for {num_scales} scales", tuple(x.shape[-2:]), cure=cure)


def _blur_inside(planes: Tensor) -> Tensor:
    """Gaussian means of the windows that lie inside the image."""
    rows, columns = (_blur_matrix(side, "valid", planes.dtype, planes.device) for side in planes.shape[-2:])
    return rows @ planes @ columns.mT


def _masked_ssim_maps(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (_blur_matrix(side, "same", x.dtype, x.device) for side in x.shape[-2:])
    total = (rows @ weight @ columns.mT).clamp_min(_MIN_WEIGHT)

    def blur(planes: Tensor) -> Tensor:
        return rows @ (planes * weight) @ columns.mT / total

    # about 1/2, so that small windows of bright pixels do not cancel
    x, y = x - 0.5, y - 0.5
    mean_x, mean_y = blur(x), blur(y)
    # rounding may leave variances a little under 0, as it may covariances: clamped alone, equal regions would differ
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    cs = _contrast_structure(variance_x, variance_y, covariance)
    return _luminance(mean_x + 0.5, mean_y + 0.5), cs


def _luminance(mean_x: Tensor, mean_y: Tensor) -> Tensor:
    return (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)


def _contrast_structure(variance_x: Tensor, variance_y: Tensor, covariance: Tensor) -> Tensor:
    return (2 * covariance + _C2) / (variance_x + variance_y + _C2)


def _masked_halves(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Halve the resolution; a coarse pixel is the weighted mean of its four, its weight their mean.

    The last row or column of an odd side makes coarse pixels of its own, so that a region there is not lost.
    """
    half, sum_x, sum_y = (F.avg_pool2d(planes, 2, ceil_mode=True) for planes in (weight, x * weight, y * weight))
    total = half.clamp_min(_MIN_WEIGHT)
    return sum_x / total, sum_y / total, half


@cache
def _blur_matrix(side: int, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gaussian blur of a line of `side` pixels as a banded matrix: [side - 10, side] (valid) or [side, side] (same)."""
    offset = torch.arange(WINDOW_SIZE, dtype=torch.float64) - WINDOW_SIZE // 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    wide = torch.zeros(side, side + WINDOW_SIZE - 1, dtype=torch.float64)
    for row in range(side):
        wide[row, row : row + WINDOW_SIZE] = kernel
    reach = WINDOW_SIZE // 2
    band = wide[:, reach : reach + side]
    return (band[reach : side - reach] if mode == "valid" else band).to(dtype).to(device).contiguous()
