"""Similarity of regions: the whole image, the foreground alone, the background alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.similarity import Masking
from fbmem_core.similarity.masked import Background, Object
from fbmem_core.similarity.ms_ssim import Measure, Plain, check_shapes, compare
from fbmem_core.similarity.objects import MIN_AREA, objects

MIN_BACKGROUND = 0.03  # of the image, that both show; the paper's beta
# `object`: the place of one object of one of two images; the foreground of a pair is the most similar of them
MEASURES: dict[Masking, dict[str, Measure]] = {
    "masked": {"full": Plain(), "background": Background(MIN_BACKGROUND), "object": Object(MIN_AREA / 2)},
    "composite": {"full": Plain(), "foreground": Plain(on="black"), "background": Plain(on="white")},
}


@dataclass(frozen=True)
class RegionSimilarity:
    """Similarities [n] in [0, 1]; NaN where a matte or a region is undecided, or a region empty."""

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
    `masked`: MS-SSIM over the region's pixels alone. The foreground is the most similar of the objects of both mattes,
    each compared over its own place in both images; the background is what both mattes leave clear, so that a moved
    object does not count against it. A matte of NaN is undecided, and so is a region without texture.

    Args:
        x: Generations, one of each pair.
        y: References, the same number at the same size.
        alpha_x: Mattes of `x`.
        alpha_y: Mattes of `y`.
        masking: `masked` or `composite`.

    Raises:
        InputError: Shapes differ, a masking is unknown, or a side is under 161 px.

    Example:
        >>> images = torch.rand(1, 3, 176, 176, generator=torch.Generator().manual_seed(0))
        >>> mattes = torch.zeros(1, 1, 176, 176)
        >>> mattes[..., 40:120, 40:120] = 1
        >>> pasted = images * mattes + (1 - images) * (1 - mattes)  # another background
        >>> similarity = region_similarity(pasted, images, mattes, mattes)
        >>> round(similarity.foreground.item(), 2), round(similarity.background.item(), 2)
        (1.0, 0.0)
    """
    check_shapes(x, y)
    check_shapes(alpha_x, alpha_y)
    if masking not in MEASURES:
        raise InputError(f"one of {', '.join(MEASURES)}", f"`{masking}`", where="masking", cure="Choose one.")
    undecided = (alpha_x + alpha_y).isnan().any(dim=(1, 2, 3))
    values = {}
    for region, measure in MEASURES[masking].items():
        if region == "object":
            parts = [
                _foreground(measure, *(side[i : i + 1] for side in (x, y, alpha_x, alpha_y))) for i in range(len(x))
            ]
            values["foreground"] = torch.tensor(parts, device=x.device).masked_fill(undecided, torch.nan)
            continue
        value = compare(measure, measure.scales(x, alpha_x.nan_to_num()), measure.scales(y, alpha_y.nan_to_num()))
        values[region] = value if region == "full" else value.masked_fill(undecided, torch.nan)
    return RegionSimilarity(**values)


def _foreground(measure: Measure, x: Tensor, y: Tensor, alpha_x: Tensor, alpha_y: Tensor) -> float:
    """The similarity of the most similar object of either image; NaN where there is none that could be compared."""
    best = torch.nan
    everywhere = measure.scales(x, torch.ones_like(alpha_x)), measure.scales(y, torch.ones_like(alpha_y))
    for image, alpha, opposite in ((x, alpha_x, everywhere[1]), (y, alpha_y, everywhere[0])):
        numbers = objects((alpha[0, 0].nan_to_num() * 255).round().byte().cpu().numpy())
        for number in range(1, int(numbers.max()) + 1):
            place = torch.from_numpy((numbers == number).astype(np.float32))[None, None].to(x.device)
            best = float(np.fmax(best, compare(measure, measure.scales(image, place), opposite).item()))
    return best
