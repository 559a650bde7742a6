"""The Gaussian blur of MS-SSIM: 11 px, sigma 1.5."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

WINDOW_SIZE = 11
SIGMA = 1.5
_REACH = WINDOW_SIZE // 2
# on a CPU a product with a banded matrix is fastest for small planes, a sum of shifted planes for large ones; both are
# several times faster than a convolution
_DENSE_SIDE = 96
_CACHE_FLOATS = 2**19  # of the shifted planes, so many at a time that they stay in the cache


def blur_inside(planes: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n y x"]:
    """Gaussian means of the windows that lie inside the image: ten rows and columns fewer."""
    if max(planes.shape[-2:]) > _DENSE_SIDE:
        return _blur_shifted(planes, reach=0)
    rows, columns = (_inside_matrix(side, planes.dtype, planes.device) for side in planes.shape[-2:])
    return rows @ planes @ columns.mT


def blur(*planes: Float[Tensor, "n _ h w"]) -> tuple[Float[Tensor, "n _ h w"], ...]:
    """Gaussian means of the windows about every pixel, for each of some planes; outside the image is zero."""
    if max(planes[0].shape[-2:]) > _DENSE_SIDE:
        return tuple(_blur_shifted(stack, reach=_REACH) for stack in planes)
    rows, columns = (_same_matrix(side, planes[0].dtype, planes[0].device) for side in planes[0].shape[-2:])
    blurred = rows @ torch.cat(planes, dim=1) @ columns.mT
    return blurred.split([stack.shape[1] for stack in planes], dim=1)


def _blur_shifted(planes: Tensor, *, reach: int) -> Tensor:
    flat = planes.flatten(0, -3)
    parts = flat.split(max(1, _CACHE_FLOATS // flat[0].numel()))
    blurred = [_sum_shifted(_sum_shifted(F.pad(part, (reach,) * 4), -1), -2) for part in parts]
    return torch.cat(blurred).unflatten(0, planes.shape[:-2])


@cache
def kernel() -> list[float]:
    """The weights of the window along one side, which sum to 1."""
    weights = torch.exp(-((torch.arange(WINDOW_SIZE, dtype=torch.float64) - _REACH) ** 2) / (2 * SIGMA**2))
    return (weights / weights.sum()).tolist()


def _sum_shifted(planes: Tensor, axis: int) -> Tensor:
    length, weights = planes.shape[axis] - WINDOW_SIZE + 1, kernel()
    total = planes.narrow(axis, _REACH, length) * weights[_REACH]
    for near in range(_REACH):
        pair = planes.narrow(axis, near, length) + planes.narrow(axis, WINDOW_SIZE - 1 - near, length)
        total.add_(pair, alpha=weights[near])
    return total


@cache
def _inside_matrix(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[side - 10, side]: a line of pixels to the Gaussian means of the windows inside."""
    matrix = torch.zeros(side - WINDOW_SIZE + 1, side, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW_SIZE] = torch.tensor(kernel(), dtype=torch.float64)
    return matrix.to(dtype).to(device)


@cache
def _same_matrix(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[side, side]: the same about every pixel."""
    wide = _inside_matrix(side + WINDOW_SIZE - 1, dtype, device)
    return wide[:, _REACH : side + _REACH].contiguous()
