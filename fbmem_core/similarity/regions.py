"""Similarity of regions: the whole image, the foreground alone, the background alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.similarity import Masking
from fbmem_core.similarity.masked import Background, Foreground
from fbmem_core.similarity.ms_ssim import Measure, Plain, check_shapes, compare

MEASURES: dict[Masking, dict[str, Measure]] = {
    "masked": {"full": Plain(), "foreground": Foreground(), "background": Background()},
    "composite": {"full": Plain(), "foreground": Plain(on="black"), "background": Plain(on="white")},
}


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
    masking: Masking = "masked",
) -> RegionSimilarity:
    """Similarity of each pair (x[i], y[i]) of RGB images in [0, 1] with mattes in [0, 1] (1 = foreground).

    `composite` (arXiv 2508.12148): foregrounds on black, backgrounds on white, MS-SSIM of the whole composite. Constant
    fill agrees by construction, so unrelated pictures score high and moved objects spoil a copied background.
    `masked`: MS-SSIM over the region's pixels alone. The foreground region is the union of the two foregrounds, so that
    another outline counts against a match; the background region is the background that both have, so that a moved
    object does not. A matte of NaN is undecided.

    Raises:
        InputError: Shapes differ, a region definition is unknown, or a side is under 161 px.
    """
    check_shapes(x, y)
    check_shapes(alpha_x, alpha_y)
    if masking not in MEASURES:
        raise InputError(f"one of {', '.join(MEASURES)}", f"`{masking}`", where="masking", cure="Choose one.")
    undecided = (alpha_x + alpha_y).isnan().any(dim=(1, 2, 3))
    found = {}
    for region, measure in MEASURES[masking].items():
        value = compare(measure, measure.scales(x, alpha_x.nan_to_num()), measure.scales(y, alpha_y.nan_to_num()))
        found[region] = value if region == "full" else value.masked_fill(undecided, torch.nan)
    return RegionSimilarity(**found)
