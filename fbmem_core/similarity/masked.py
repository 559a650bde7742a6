"""MS-SSIM of a region alone, of pixels that both images of a pair show: all moments of a pair have one common weight.

So a covariance is bounded by the variances, |cs| <= 1, and equal content has similarity 1 whatever the masks are. A
window counts by how much texture it holds, in either image, V / (V + C2) with V the sum of both variances; its cs is
2 cov / V. MS-SSIM adds C2 above and below that line too, by which two smooth places that share nothing come near 1:
here they agree about nothing, whatever their contrast. A region without texture has no similarity: there is nothing
that could be recognised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.similarity.gaussian import blur
from fbmem_core.similarity.ms_ssim import C2, Maps, Measure, Statistics

_GREY = 0.5  # values are taken about it, so that small windows of bright pixels do not cancel
_CLEAR = 0.25  # a pixel that the object covers less than this shows the background
_COVERED = 0.5  # from here on it shows the object
MIN_WEIGHT = 1e-8  # less of a region than this under a window counts as none
MIN_VARIANCE = 1e-7  # below it, of both images together, is rounding; such a window has no weight


class Shared(Measure):
    """Comparison of what both images show of a region, given by a mask for each.

    Masks are binary and a coarse pixel counts if all that it covers does, so nothing outside the region has an effect
    at any scale. Windows reach over the border of the image as over that of the region.

    Args:
        min_area: Less of the image than this, shown by both, is too little at that scale.
    """

    def __init__(self, min_area: float) -> None:
        self.min_area = min_area

    def shown(self, alphas: Tensor) -> Tensor:
        """[n, 1, h, w]: 1 where an image of these mattes shows the region."""
        raise NotImplementedError

    def planes(self, images: Tensor, alphas: Tensor) -> Tensor:
        """[n, 4, h, w]: colours about grey, and 1 where the region is shown."""
        return torch.cat([images - _GREY, self.shown(alphas).to(images.dtype)], dim=1)

    def halve(self, planes: Tensor) -> Tensor:
        """Means of four colours; shown where all four are."""
        colors = F.avg_pool2d(planes[:, :3], 2, ceil_mode=True)
        return torch.cat([colors, -F.max_pool2d(-planes[:, 3:], 2, ceil_mode=True)], dim=1)

    def statistics(self, planes: Tensor) -> Statistics:
        """Masks of where the region is shown, with colours and their squares there."""
        shown = planes[:, 3:]
        colors = planes[:, :3] * shown
        return shown, torch.cat([colors, colors * colors], dim=1)

    def maps(self, x: Statistics, y: Statistics) -> Maps:
        """Moments over what both show; all of them depend on the pair."""
        common = x[0] * y[0]
        total, *sums = blur(common, x[1] * y[0], y[1] * x[0], x[1][:, :3] * y[1][:, :3])
        mean_x, square_x, mean_y, square_y, product = (
            part for moments in sums for part in (moments / total.clamp_min(MIN_WEIGHT)).split(3, dim=1)
        )
        variances = ((square_x - mean_x**2) + (square_y - mean_y**2)).clamp_min(0)
        cs = (2 * (product - mean_x * mean_y) / variances.clamp_min(MIN_VARIANCE)).clamp(-1, 1)  # but for rounding
        texture = common * variances / (variances + C2)
        return Maps(mean_x + _GREY, mean_y + _GREY, cs, common, texture, self.min_area)


class Background(Shared):
    """The background that both images show: a moved object takes no more than its place."""

    def shown(self, alphas: Tensor) -> Tensor:
        """Pixels of which the object covers less than a quarter."""
        return alphas < _CLEAR


class Object(Shared):
    """The place of one object of one of the two images, in both; the other's mask is 1 everywhere."""

    def shown(self, alphas: Tensor) -> Tensor:
        """Pixels of which the object covers at least half."""
        return alphas >= _COVERED
