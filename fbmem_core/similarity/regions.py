"""Similarity of regions: the whole image, the foreground alone, the background alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.audit import Region
from fbmem_core.similarity.ms_ssim import masked_ms_ssim, ms_ssim


@dataclass(frozen=True)
class RegionSimilarity:
    """Similarities [n] in [0, 1]; NaN where a matte is undecided or a region is empty."""

    full: Float[Tensor, " n"]
    foreground: Float[Tensor, " n"]
    background: Float[Tensor, " n"]

    @property
    def average(self) -> Float[Tensor, " n"]:
        """Mean of foreground and background similarity, what the released code ranks references by."""
        return (self.foreground + self.background) / 2


def region_similarity(
    x: Float[Tensor, "n 3 h w"],
    y: Float[Tensor, "n 3 h w"],
    alpha_x: Float[Tensor, "n 1 h w"],
    alpha_y: Float[Tensor, "n 1 h w"],
    *,
    region: Region = "masked",
) -> RegionSimilarity:
    """Similarity of each pair (x[i], y[i]) of RGB images in [0, 1] with mattes in [0, 1] (1 = foreground).

    `composite` (arXiv 2508.12148): foregrounds on black, backgrounds on white, MS-SSIM of the whole composite. Constant
    fill agrees by construction, so unrelated pictures score high and moved objects spoil a copied background.
    `masked`: MS-SSIM over the region's pixels alone. The foreground region is the union of the two foregrounds, so that
    another outline counts against a match; the background region is the background that both have, so that a moved
    object does not. Half-transparent border pixels, a mixture of both regions, belong to neither.
    """
    return RegionSimilarity(ms_ssim(x, y), *regional(x, y, alpha_x, alpha_y, region=region))


def regional(
    x: Tensor, y: Tensor, alpha_x: Tensor, alpha_y: Tensor, *, region: Region
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Foreground and background similarity alone; see `region_similarity`."""
    if region == "composite":
        undecided = (alpha_x + alpha_y).isnan().any(dim=(1, 2, 3))
        foreground = ms_ssim(x * alpha_x, y * alpha_y)
        background = ms_ssim(x + (1 - x) * alpha_x, y + (1 - y) * alpha_y)
        return foreground.masked_fill(undecided, torch.nan), background.masked_fill(undecided, torch.nan)
    union = torch.maximum(_sure(alpha_x), _sure(alpha_y))
    common = torch.minimum(_sure(1 - alpha_x), _sure(1 - alpha_y))
    return masked_ms_ssim(x, y, union), masked_ms_ssim(x, y, common)


def _sure(alpha: Tensor) -> Tensor:
    """0 up to half coverage, then straight to 1: how surely a pixel shows the region and nothing else."""
    return (2 * alpha - 1).clamp(0, 1)
