"""Multi-scale structural similarity of whole images, and what every measure of its kind shares.

Wang, Simoncelli, Bovik: Multi-scale structural similarity for image quality assessment (2003). Notation of the paper:
l, c, s for luminance, contrast and structure; here `cs` is the product of the last two.

A similarity is a product over scales whose factors are at most 1, so what has been multiplied from the coarsest scale
on bounds the whole from above. `Similarity` is such a product on its way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.errors import InputError
from fbmem_core.similarity.gaussian import WINDOW_SIZE, blur_inside

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
C1 = 0.01**2  # (K1 * data_range)**2, data_range fixed at 1
C2 = 0.03**2
MIN_TEXTURE = 0.1  # of a region, from which on a scale counts; a variance of C2 in each image is two thirds
MIN_SHARE = 0.3  # of the exponents, below which a region is undecided
_NUM_COARSE = 2  # scales at which smooth gradients are texture
_SMALLEST = 1e-6

Statistics = tuple[Tensor, ...]  # of one scale of a batch of images; the first axis of each is the image


@dataclass(frozen=True)
class Maps:
    """One scale of a batch of pairs: means and cs [m, 3, y, x].

    Of a region also how much of it a window sees, `weight` [m, 1, y, x], and that times the window's texture
    [m, 3, y, x], by which windows count; less of the image than `min_area` is too little.
    """

    mean_x: Tensor
    mean_y: Tensor
    cs: Tensor
    weight: Tensor | None = None
    texture: Tensor | None = None
    min_area: float = 0.0

    def average(self, with_luminance: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [m, 3] of the scale, with luminance for some pairs [m], and the mean texture [m] of the region.

        Of a region all channels have one factor, so that a channel that shows nothing does not speak for the others.
        """
        values = self.cs
        if bool(with_luminance.any()):
            luminance = _luminance(self.mean_x, self.mean_y) * values
            values = torch.where(with_luminance[:, None, None, None], luminance, values)
        if self.weight is None or self.texture is None:
            return values.mean(dim=(2, 3)), torch.ones(len(values), device=values.device)
        counted, area = self.texture.sum(dim=(1, 2, 3)), self.weight.sum(dim=(1, 2, 3))
        factor = (values * self.texture).sum(dim=(1, 2, 3)) / counted.clamp_min(1e-12)
        texture = counted / (3 * area).clamp_min(1e-12)
        too_small = area < self.min_area * self.weight[0].numel()
        return factor[:, None].expand(-1, 3), texture.masked_fill(too_small, 0.0)


class Measure(ABC):
    """One measure, scale by scale. Planes are [n, c, h, w]; statistics are computed once per image, not per pair."""

    @abstractmethod
    def planes(self, images: Float[Tensor, "n 3 h w"], alphas: Float[Tensor, "n 1 h w"]) -> Tensor:
        """The planes of the finest scale."""

    @abstractmethod
    def halve(self, planes: Tensor) -> Tensor:
        """The planes of the next coarser scale."""

    @abstractmethod
    def statistics(self, planes: Tensor) -> Statistics:
        """Statistics of one scale of one side of a pair."""

    @abstractmethod
    def maps(self, x: Statistics, y: Statistics) -> Maps:
        """Compare; x or y may hold a single image, which is compared with every one of the other."""

    def scales(self, images: Tensor, alphas: Tensor, num_scales: int = len(SCALE_WEIGHTS)) -> list[Tensor]:
        """The planes of every scale, finest first."""
        check_size(images.shape[-2:], num_scales)
        planes = [self.planes(images, alphas)]
        while len(planes) < num_scales:
            planes.append(self.halve(planes[-1]))
        return planes


class Plain(Measure):
    """MS-SSIM of the images as they are; of them with the background black or the foreground white (`on`)."""

    def __init__(self, on: str | None = None) -> None:
        self.on = on

    def planes(self, images: Tensor, alphas: Tensor) -> Tensor:
        """[n, 3, h, w]: the image, or what `on` leaves of it."""
        if self.on is None:
            return images
        return images * alphas if self.on == "black" else images + (1 - images) * alphas

    def halve(self, planes: Tensor) -> Tensor:
        """Means of four."""
        # odd sides are padded with zeros, as pytorch-msssim does it: 161 px hold five scales
        return F.avg_pool2d(planes, 2, padding=[side % 2 for side in planes.shape[-2:]])

    def statistics(self, planes: Tensor) -> Statistics:
        """Pixels, and means and variances of the windows that lie inside."""
        mean = blur_inside(planes)
        return planes, mean, blur_inside(planes * planes) - mean**2

    def maps(self, x: Statistics, y: Statistics) -> Maps:
        """The windows that lie inside, each counting alike."""
        covariance = blur_inside(x[0] * y[0]) - x[1] * y[1]
        return Maps(x[1], y[1], contrast_structure(x[2], y[2], covariance))


@dataclass
class Similarity:
    """Similarities of pairs, multiplied from the coarsest scale on.

    Scales at which a pair's region is too small or shows too little texture do not count; the exponents of the others
    grow to the same sum at the end. A region is undecided if fewer than `MIN_SHARE` of the exponents count, or if it
    shows texture at coarse scales alone, as any two smooth gradients do.

    `product` [..., 3] per channel; `counted` and `missing` [...], the exponents that count so far and those of scales
    that are still to come; `finest` [...], the finest scale that counts.
    """

    product: Tensor
    counted: Tensor
    missing: Tensor
    finest: Tensor
    scale_weights: Sequence[float] = SCALE_WEIGHTS

    @classmethod
    def begin(
        cls, shape: tuple[int, ...], device: torch.device, scale_weights: Sequence[float] = SCALE_WEIGHTS
    ) -> Similarity:
        """The empty product: 1."""
        zero = torch.zeros(shape, device=device)
        finest = torch.full(shape, len(scale_weights), dtype=torch.int8, device=device)
        product = torch.ones(*shape, 3, device=device)
        return cls(product, zero, torch.full_like(zero, sum(scale_weights)), finest, scale_weights)

    @property
    def value(self) -> Tensor:
        """The similarity, or while finer scales are missing a bound from above; NaN where it is undecided."""
        total, left = sum(self.scale_weights), self.missing.clamp_min(0)
        exponent = total / (self.counted + left).clamp_min(_SMALLEST)
        undecided = self.counted + left < MIN_SHARE * total
        undecided |= (left < _SMALLEST) & self._is_coarse
        return (self.product ** exponent[..., None]).mean(dim=-1).masked_fill(undecided, torch.nan)

    @property
    def is_decided(self) -> Tensor:
        """True where enough scales count already, so that no finer one can make it undecided."""
        return (self.counted >= MIN_SHARE * sum(self.scale_weights)) & ~self._is_coarse

    @property
    def _is_coarse(self) -> Tensor:
        """True where no scale counts but coarse ones, at which smooth gradients are texture."""
        return self.finest > max(len(self.scale_weights) - _NUM_COARSE - 1, 0)

    def of(self, rows: Tensor | int, columns: Tensor | int) -> Similarity:
        """Similarities of a few pairs of a table."""
        at = (rows, columns)
        return Similarity(self.product[at], self.counted[at], self.missing[at], self.finest[at], self.scale_weights)

    def is_first(self, at: tuple[Tensor, ...] | slice = slice(None)) -> Tensor:
        """True where no scale counts yet, of the pairs `at`: at the first that does, luminance counts too."""
        return self.counted[at] == 0

    def multiply(
        self, scale: int, factor: Tensor, texture: Tensor, at: tuple[Tensor, ...] | slice = slice(None)
    ) -> None:
        """Take in the factors [m, 3] of one scale, for the pairs `at`; scales come coarsest first.

        `texture` [m] is how much a pair's region shows at this scale, 0 to 1.
        """
        weight, counts = self.scale_weights[scale], texture >= MIN_TEXTURE
        self.product[at] *= (factor.clamp(0, 1) ** weight).masked_fill(~counts[:, None], 1.0)  # rounding may pass 1
        self.counted[at] += weight * counts
        self.missing[at] -= weight
        self.finest[at] = torch.where(counts, torch.full_like(self.finest[at], scale), self.finest[at])


def compare(
    measure: Measure, x: Sequence[Tensor], y: Sequence[Tensor], *, scale_weights: Sequence[float] = SCALE_WEIGHTS
) -> Float[Tensor, " n"]:
    """The similarity of pairs from their planes at every scale; one side may hold a single image."""
    num_pairs = max(len(x[0]), len(y[0]))
    similarity = Similarity.begin((num_pairs,), x[0].device, scale_weights)
    for scale in reversed(range(len(scale_weights))):
        maps = measure.maps(measure.statistics(x[scale]), measure.statistics(y[scale]))
        similarity.multiply(scale, *maps.average(similarity.is_first()))
    return similarity.value


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

    Args:
        x: One image of each pair.
        y: The other, of the same size.
        scale_weights: Exponents of the scales, the finest first.

    Returns:
        Similarities in [0, 1], 1 for identical images.

    Raises:
        InputError: Shapes differ, or a side is too small for that many scales (161 px for five).

    Example:
        >>> images = torch.rand(2, 3, 176, 176, generator=torch.Generator().manual_seed(0))
        >>> ms_ssim(images, images)
        tensor([1., 1.])
        >>> [round(value, 2) for value in ms_ssim(images, images.flip(0)).tolist()]
        [0.07, 0.07]
    """
    check_shapes(x, y)
    plain, num_scales = Plain(), len(scale_weights)
    return compare(
        plain, plain.scales(x, x[:, :1], num_scales), plain.scales(y, y[:, :1], num_scales), scale_weights=scale_weights
    )


def check_shapes(x: Tensor, y: Tensor) -> None:
    """Raise InputError unless both batches have one shape."""
    if x.shape != y.shape:
        raise InputError("two batches of one shape", f"{tuple(x.shape)} and {tuple(y.shape)}", cure="Resize first.")


def check_size(shape: Sequence[int], num_scales: int = len(SCALE_WEIGHTS)) -> None:
    """Raise InputError unless images of this height and width hold that many scales."""
    smallest = (WINDOW_SIZE - 1) * 2 ** (num_scales - 1) + 1
    if min(shape) < smallest:
        cure = "Score at a larger size, or with fewer scales."
        raise InputError(f"sides of at least {smallest} px for {num_scales} scales", tuple(shape), cure=cure)


def contrast_structure(variance_x: Tensor, variance_y: Tensor, covariance: Tensor) -> Tensor:
    """cs of windows."""
    return (2 * covariance + C2) / (variance_x + variance_y + C2)


def _luminance(mean_x: Tensor, mean_y: Tensor) -> Tensor:
    return (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
