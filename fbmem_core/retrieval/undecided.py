"""Regions of a picture that show nothing by which anything could be recognised: a clear sky, a page, a silhouette."""

from __future__ import annotations

import torch
from torch import Tensor

from fbmem_core.labels import BACKGROUND, FOREGROUND
from fbmem_core.retrieval.planes import OBJECT, Planes
from fbmem_core.similarity.fused import comparison
from fbmem_core.similarity.masked import Shared
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Similarity


def undecided_regions(images: Planes) -> list[tuple[str, ...]]:
    """The regions of each image that have no similarity even with themselves: those without texture.

    A foreground is one if all of its objects are. A region that an image does not have is none, and so is every region
    of a matte that is undecided; with masking `composite` every region can be compared.
    """
    num = len(images.images)
    if OBJECT not in images.measures or not num:
        return [()] * num
    background = _without_texture(images, BACKGROUND, num) & _has_background(images)
    objects = _without_texture(images, OBJECT, len(images.image_of_object))
    present, textured = (torch.zeros(num, dtype=torch.bool) for _ in range(2))
    present[images.image_of_object] = True
    textured[images.image_of_object[~objects]] = True
    foreground = present & ~textured
    regions = ((FOREGROUND, foreground.tolist()), (BACKGROUND, background.tolist()))
    return [
        tuple(region for region, flags in regions if flags[row] and images.images.decided[row]) for row in range(num)
    ]


def _without_texture(images: Planes, region: str, num: int) -> Tensor:
    """bool [num]: of each image, or object, whether it has no similarity with itself; from the coarsest scale on."""
    similarity = Similarity.begin((num,), images.device)
    by, planes_of = comparison(images.measures[region], images.device), images.side(region)
    left = torch.arange(num, device=images.device)
    for scale in reversed(range(len(SCALE_WEIGHTS))):
        for rows in left.split(max(1, by.chunk_floats // 2**18)):
            statistics = by.statistics(planes_of(scale, rows))
            itself = torch.arange(len(rows), device=rows.device)[:, None].expand(-1, 2)
            factors, textures = by.factors(statistics, statistics, itself, torch.zeros(len(rows), dtype=torch.bool))
            similarity.multiply(scale, factors, textures, (rows,))
        left = left[~similarity.is_decided[left]]
    return ~similarity.is_decided.cpu()


def _has_background(images: Planes) -> Tensor:
    """bool [n]: whether an image shows enough of it to be compared."""
    measure = images.measures[BACKGROUND]
    assert isinstance(measure, Shared)
    shown = []
    for rows in torch.arange(len(images.images)).split(16):
        _, alphas = images.images.tensors(rows)
        shown.append(measure.shown(alphas).float().mean(dim=(1, 2, 3)) >= measure.min_area)
    return torch.cat(shown)
