"""MS-SSIM of a region alone: every mean, variance and average counts a pixel by its weight in the region.

Planes are weighted once per image, at every scale, so that a pair costs little more than its cross terms and coarse
scales bound the whole from above as they do for whole images. Values are taken about 1/2, so that small windows of
bright pixels do not cancel. Windows reach over the border of the image as they reach over the border of the region.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.similarity.gaussian import blur
from fbmem_core.similarity.ms_ssim import Maps, Measure, Statistics, contrast_structure

_GREY = 0.5
_CLEAR = 0.25  # a pixel that the object covers less than this shows the background
MIN_WEIGHT = 1e-8  # less of a region than this under a window counts as none


class Foreground(Measure):
    """The foregrounds on grey, over the union of both: where only one has its object, the other shows grey.

    So another outline counts against a match, and no pixel outside an image's own foreground has any effect. A pixel
    weighs what it is covered beyond one half, twice: border pixels, which show a mixture, hardly count.
    """

    def planes(self, images: Tensor, alphas: Tensor) -> Tensor:
        """[n, 4, h, w]: the weighted colours about grey, and the weights."""
        weight = (2 * alphas - 1).clamp(0, 1)
        return torch.cat([(images - _GREY) * weight, weight], dim=1)

    def halve(self, planes: Tensor) -> Tensor:
        """Means of four, weights too; the last row or column of an odd side makes coarse pixels of its own."""
        return F.avg_pool2d(planes, 2, ceil_mode=True)

    def statistics(self, planes: Tensor) -> Statistics:
        """Colours times the root of their weights, weights, and the blurred first and second moments."""
        root, weight = self.roots(planes)
        return root, weight, *blur(planes[:, :3], root * root)

    @staticmethod
    def roots(planes: Tensor) -> tuple[Tensor, Tensor]:
        """A pixel of weight w and colour c becomes sqrt(w) c: products of two images then weigh sqrt(w1 w2)."""
        weight = planes[:, 3:]
        return planes[:, :3] / weight.clamp_min(MIN_WEIGHT).sqrt(), weight

    def maps(self, x: Statistics, y: Statistics) -> Maps:
        """Moments over the union, divided by how much of it a window sees."""
        union = torch.maximum(x[1], y[1])
        product, total = blur(x[0] * y[0], union)
        total = total.clamp_min(MIN_WEIGHT)
        mean_x, mean_y = x[2] / total, y[2] / total
        covariance = product / total - mean_x * mean_y
        cs = contrast_structure(x[3] / total - mean_x**2, y[3] / total - mean_y**2, covariance)
        return Maps(mean_x + _GREY, mean_y + _GREY, cs, union)


class Background(Measure):
    """The background that both images have: a moved object takes no more than its place.

    A coarse pixel counts if all that it covers is background, so no foreground pixel has any effect at any scale.
    """

    def planes(self, images: Tensor, alphas: Tensor) -> Tensor:
        """[n, 4, h, w]: colours about grey, and 1 where the background is."""
        return torch.cat([images - _GREY, (alphas < _CLEAR).to(images.dtype)], dim=1)

    def halve(self, planes: Tensor) -> Tensor:
        """Means of four colours; clear where all four are."""
        colors = F.avg_pool2d(planes[:, :3], 2, ceil_mode=True)
        return torch.cat([colors, -F.max_pool2d(-planes[:, 3:], 2, ceil_mode=True)], dim=1)

    def statistics(self, planes: Tensor) -> Statistics:
        """Weights, colours and their squares where the region is."""
        clear = planes[:, 3:]
        colors = planes[:, :3] * clear
        return clear, torch.cat([colors, colors * colors], dim=1)

    def maps(self, x: Statistics, y: Statistics) -> Maps:
        """Moments over what is clear in both; all of them depend on the pair."""
        common = x[0] * y[0]
        total, *sums = blur(common, x[1] * y[0], y[1] * x[0], x[1][:, :3] * y[1][:, :3])
        mean_x, square_x, mean_y, square_y, product = (
            part for moments in sums for part in (moments / total.clamp_min(MIN_WEIGHT)).split(3, dim=1)
        )
        cs = contrast_structure(square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y)
        return Maps(mean_x + _GREY, mean_y + _GREY, cs, common)
