"""The factors of many pairs at one scale on the CPU: each pair in one pass over its planes, compiled by numba.

The same numbers as `Measure.maps` gives but for rounding, which goes several times over all pixels of a pair. Where one
image of a pair shows nothing (0 in every plane: black, or outside its foreground), the covariance is 0 and cs is what
the other image gives alone; so the pass goes over the rectangle alone in which both show something.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.similarity import kernels, masked_kernels
from fbmem_core.similarity.gaussian import WINDOW_SIZE
from fbmem_core.similarity.masked import Shared
from fbmem_core.similarity.ms_ssim import Measure, Plain

_REACH = WINDOW_SIZE // 2
Arrays = tuple[np.ndarray, ...]  # of one scale of a batch of images; the first axis of each is the image


class _Fused:
    chunk_floats = 2**21  # of the planes of images whose statistics are held at once


class FusedPlain(_Fused):
    """`Plain`, pair by pair."""

    def statistics(self, planes: Tensor) -> Arrays:
        """Pixels, means, variances + C2 / 2, where each image shows something, and the sum of cs against nothing."""
        pixels = planes.contiguous().numpy()
        windows = (*planes.shape[:2], *(side - 2 * _REACH for side in planes.shape[2:]))
        mean, half, alone = np.empty(windows, np.float32), np.empty(windows, np.float32), np.empty(windows[:2])
        _share(len(planes), lambda part: _moments(pixels[part], mean[part], half[part], alone[part]))
        return pixels, mean, half, _boxes(planes, windows, 2 * _REACH).numpy(), alone

    def factors(self, x: Arrays, y: Arrays, pairs: Tensor, bright: Tensor) -> tuple[Tensor, Tensor]:
        """[k, 3] factors and [k] masses of pairs [k, 2] of rows of x and y; with luminance where it is bright [k]."""
        return _over_pairs(kernels.plain, x, y, pairs, bright)


class FusedShared(_Fused):
    """`Shared`, pair by pair."""

    def __init__(self, min_area: float) -> None:
        self.min_area = min_area

    def statistics(self, planes: Tensor) -> Arrays:
        """Padded colours where the region is shown, and where that is; and the rectangle about it."""
        shown = planes[:, 3:]
        padded = F.pad(torch.cat([planes[:, :3] * shown, shown], dim=1), (_REACH,) * 4)
        return _arrays(padded, _boxes(shown, shown.shape))

    def factors(self, x: Arrays, y: Arrays, pairs: Tensor, with_luminance: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of pairs; see `FusedPlain.factors`, with the mean texture of each pair's region."""

        def kernel(x: Arrays, y: Arrays, rows: np.ndarray, flags: np.ndarray, *out: np.ndarray) -> None:
            masked_kernels.shared(x, y, rows, flags, self.min_area, *out)

        return _over_pairs(kernel, x, y, pairs, with_luminance)


class Batched:
    """Any measure on any device, one row of x after another, by `Measure.maps`."""

    chunk_floats = 2**18  # so that products stay in the cache

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def statistics(self, planes: Tensor) -> tuple[Tensor, ...]:
        """Statistics of the measure."""
        return self._measure.statistics(planes)

    def factors(
        self, x: tuple[Tensor, ...], y: tuple[Tensor, ...], pairs: Tensor, bright: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Factors of pairs; see `FusedPlain.factors`."""
        factors = torch.empty(len(pairs), 3, device=pairs.device)
        masses = torch.empty(len(pairs), device=pairs.device)
        for row in pairs[:, 0].unique().tolist():
            at = (pairs[:, 0] == row).nonzero()[:, 0]
            maps = self._measure.maps(tuple(part[row : row + 1] for part in x), tuple(part[pairs[at, 1]] for part in y))
            factors[at], masses[at] = maps.average(bright[at])
        return factors, masses


def joined(statistics: list[Any]) -> Any:
    """The statistics of batches of images as those of all of them."""
    if len(statistics) == 1:
        return statistics[0]
    join: Any = torch.cat if isinstance(statistics[0][0], Tensor) else np.concatenate
    return tuple(join(parts) for parts in zip(*statistics, strict=True))


def comparison(measure: Measure, device: torch.device) -> Any:
    """The fastest implementation of a measure's statistics and factors; one without loops of its own is batched."""
    has_loops = device.type == "cpu" and isinstance(measure, Plain | Shared)
    return fused(measure) if has_loops else Batched(measure)


def fused(measure: Measure) -> FusedPlain | FusedShared:
    """Compiled loops that give the numbers of a measure, `Plain` or a `Shared`."""
    return FusedShared(measure.min_area) if isinstance(measure, Shared) else FusedPlain()


def _moments(planes: np.ndarray, mean: np.ndarray, half: np.ndarray, alone: np.ndarray) -> None:
    kernels.moments(*(array.reshape(-1, *array.shape[2:]) for array in (planes, mean, half, alone)))


def _arrays(*tensors: Tensor) -> Arrays:
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


def _boxes(planes: Tensor, windows: tuple[int, ...], before: int = 0, after: int = 0) -> Tensor:
    """[n, 4]: top, bottom, left, right of the windows that see anything but 0; empty where none does."""
    shown = (planes != 0).any(dim=1)
    sides = []
    for axis, length in ((2, windows[-2]), (1, windows[-1])):
        line = shown.any(dim=axis).to(torch.int8)
        first, last = line.argmax(dim=1), line.shape[1] - line.flip(1).argmax(dim=1)
        holds_any = line.any(dim=1)
        sides += [(first - before).clamp(0, length) * holds_any, (last + after).clamp(0, length) * holds_any]
    return torch.stack(sides, dim=1)


def _over_pairs(
    kernel: Callable[..., None], x: Arrays, y: Arrays, pairs: Tensor, bright: Tensor
) -> tuple[Tensor, Tensor]:
    factors, masses = torch.empty(len(pairs), 3), torch.empty(len(pairs))
    rows, flags = pairs.contiguous().numpy(), bright.contiguous().numpy()
    _share(
        len(pairs),
        lambda part: kernel(x, y, rows[part], flags[part], factors.numpy()[part], masses.numpy()[part]),
    )
    return factors, masses


def _share(num: int, run: Callable[[slice], None]) -> None:
    """Run over all of `num` items, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    size = max(1, min(-(-num // threads), 64))
    parts = [slice(first, min(first + size, num)) for first in range(0, num, size)]
    if len(parts) < 2 or threads < 2:
        for part in parts:
            run(part)
        return
    list(_pool(threads).map(run, parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
