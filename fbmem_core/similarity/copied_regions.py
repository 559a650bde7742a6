"""Copied regions: which pixels of a generation are copied from a reference, as a map and object by object.

At every pixel cs, by which MS-SSIM compares windows, is averaged over scales, each counting by its exponent and by how
much texture the window shows. Where no scale shows texture nothing can be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from fbmem_core.similarity.masked import MIN_VARIANCE
from fbmem_core.similarity.ms_ssim import C2, SCALE_WEIGHTS
from fbmem_core.similarity.objects import objects

SIDE = 256  # px, at which maps are drawn
COPIED = 0.7  # local similarity from which on a pixel counts as copied
_SCALES = (0, 1, 2)  # of the map's side: finer is noise, coarser has no place
_MIN_TEXTURE = 0.15
_CLEAR = 64  # of 255, as in `masked`
IMAGE, FOREGROUND, BACKGROUND = "image", "foreground", "background"
OBJECT, REFERENCE_OBJECT = "object", "reference object"


@dataclass(frozen=True)
class CopyMap:
    """Map of one pair, float32 [side, side].

    `similarity` is local, -1 to 1, NaN where nothing of the reference is shown; `texture` how much there is, 0 to 1.
    """

    similarity: np.ndarray
    texture: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        """bool [side, side]: where there is texture."""
        return (self.texture >= _MIN_TEXTURE) & ~np.isnan(self.similarity)

    @property
    def copied(self) -> np.ndarray:
        """bool [side, side]: which pixels are copied."""
        return self.decided & (np.nan_to_num(self.similarity) >= COPIED)


@dataclass(frozen=True)
class CopiedRegion:
    """One region of a generation and what of it is copied.

    `region` is the whole `image`, its `foreground`, its `background`, `object 1` and so on, or `reference object 1`:
    the place where the reference shows an object, whatever the generation's matte says of it. `left`, `top`, `right`,
    `bottom`, `area` and `largest_area`, that of the largest connected copied part, are shares of the image;
    `share_copied` is the share of the region's pixels with texture that are copied, None without any.
    """

    region: str
    left: float
    top: float
    right: float
    bottom: float
    area: float
    share_copied: float | None
    largest_area: float


def copy_map(generation: np.ndarray, reference: np.ndarray, covered: np.ndarray | None = None) -> CopyMap:
    """Local similarity of two RGB pictures uint8 [h, w, 3] of one size.

    Args:
        generation: The picture whose pixels are judged.
        reference: The other, already moved to where the generation shows it.
        covered: bool [h, w]: where the generation shows something of it; everywhere by default.
    """
    x, y = (
        (cv2.resize(side, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255).astype(np.float32)
        for side in (generation, reference)
    )
    agreement, texture, total = (np.zeros((SIDE, SIDE), np.float32) for _ in range(3))
    for scale in _SCALES:
        if scale:
            x, y = (
                np.asarray(cv2.resize(side, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.float32)
                for side in (x, y)
            )
        cs, shown = _local(x, y)
        weight = SCALE_WEIGHTS[scale + 1]
        cs, shown = (cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for plane in (cs, shown))
        agreement += weight * shown * cs
        texture += weight * shown
        total += weight
    similarity = agreement / np.maximum(texture, 1e-6)
    if covered is not None:
        outside = cv2.resize(covered.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) == 0
        similarity = np.where(outside, np.float32(np.nan), similarity)
    return CopyMap(similarity, texture / total)


def _local(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cs [h, w] over the three channels by their texture, and that texture, 0 to 1."""
    mean_x, mean_y, square_x, square_y, product = (
        cv2.GaussianBlur(plane, (11, 11), 1.5) for plane in (x, y, x * x, y * y, x * y)
    )
    variances = np.maximum(square_x - mean_x**2, 0) + np.maximum(square_y - mean_y**2, 0)
    cs = np.clip(2 * (product - mean_x * mean_y) / np.maximum(variances, MIN_VARIANCE), -1, 1)
    texture = variances / (variances + C2)
    return (cs * texture).sum(axis=2) / np.maximum(texture.sum(axis=2), 1e-6), texture.mean(axis=2)


def copied_regions(
    copies: CopyMap, alpha: np.ndarray | None, reference_alpha: np.ndarray | None = None
) -> Iterator[CopiedRegion]:
    """Copied regions by a map: of the image, of its foreground and background, and of each object.

    Args:
        copies: The map.
        alpha: uint8 [h, w]: the generation's matte; None: undecided, the image alone is told of.
        reference_alpha: The reference's, moved as the reference was; None: undecided.
    """
    yield _region(IMAGE, np.ones((SIDE, SIDE), bool), copies)
    if alpha is None:
        return
    numbers = _numbers(alpha)
    clear = cv2.resize(alpha, (SIDE, SIDE), interpolation=cv2.INTER_AREA) < _CLEAR
    for name, place in ((FOREGROUND, numbers > 0), (BACKGROUND, clear)):
        if place.any():
            yield _region(name, place, copies)
    theirs = np.zeros_like(numbers) if reference_alpha is None else _numbers(reference_alpha)
    for name, of_objects in ((OBJECT, numbers), (REFERENCE_OBJECT, theirs)):
        for number in range(1, int(of_objects.max()) + 1):
            yield _region(f"{name} {number}", of_objects == number, copies)


def _numbers(alpha: np.ndarray) -> np.ndarray:
    return cv2.resize(objects(alpha), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def _region(name: str, place: np.ndarray, copies: CopyMap) -> CopiedRegion:
    rows, columns = (np.flatnonzero(place.any(axis=axis)) for axis in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    decided, copied = copies.decided & place, copies.copied & place
    share = float(copied.sum() / decided.sum()) if decided.any() else None
    _, _, statistics, _ = cv2.connectedComponentsWithStats(copied.astype(np.uint8), connectivity=8)
    largest = int(statistics[1:, cv2.CC_STAT_AREA].max(initial=0))
    left, top, right, bottom = (float(edge) / SIDE for edge in box)
    return CopiedRegion(name, left, top, right, bottom, float(place.mean()), share, largest / SIDE**2)


def draw(generation: np.ndarray, copies: CopyMap) -> np.ndarray:
    """The generation in grey, uint8 [side, side, 3], with what is copied in orange and what is not in blue.

    Pixels without texture stay grey.
    """
    grey = cv2.cvtColor(cv2.resize(generation, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for place, color in ((copies.copied, (230, 159, 0)), (copies.decided & ~copies.copied, (0, 114, 178))):
        picture[place] = 0.5 * picture[place] + 0.5 * np.array(color, np.float32)
    return picture.round().astype(np.uint8)
