"""Copy maps of a report's cards: which pixels of a generation are copied, and region by region how many."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fbmem_core.retrieval.image_sets import CENTER_CROP
from fbmem_core.similarity.alignment import Transform, grey, refine
from fbmem_core.similarity.copied_regions import SIDE, copied_regions, copy_map, draw

Row = dict[str, Any]
_SHIFT = re.compile(r"shifted ([+-][\d.]+)% ([+-][\d.]+)%")
_SCALE = re.compile(r"scaled ([\d.]+)")
_TURN = re.compile(r"turned ([+-][\d.]+) degrees")


def map_of_copies(
    generation: Image.Image, reference: Image.Image, *, transform: str | None, matte: Image.Image | None = None
) -> tuple[Image.Image, list[Row]]:
    """Draw what a generation copies of a reference, and count it.

    Args:
        generation: The image that is judged.
        reference: As its file is.
        transform: How the reference was moved when it was compared, as the table `labels` says; None: not at all.
        matte: Of the generation; without one only the whole image is counted.

    Returns:
        A picture of `SIDE` px (grey; orange: copied; blue: not copied; grey stays what has no texture), and for the
        image, its background and each object a row of `CopiedRegion`'s values.
    """
    x, y, covered = aligned(generation, reference, transform)
    copies = copy_map(x, y, covered)
    alpha = None if matte is None else np.asarray(matte.convert("L").resize(generation.size))
    regions = [vars(region) for region in copied_regions(copies, alpha)]
    return Image.fromarray(draw(x, copies)), regions


def aligned(
    generation: Image.Image, reference: Image.Image, transform: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A generation and its reference as they were compared.

    Returns:
        Both as uint8 [SIDE, SIDE, 3], and bool [SIDE, SIDE]: where something of the reference is shown; None:
        everywhere.
    """
    moved = parsed_transform(transform or "")
    if (transform or "").startswith(CENTER_CROP):
        reference = _center(reference)
    x, y = _pixels(generation), _pixels(reference)
    if moved.is_identity:
        return x, y, None
    moved = refine(grey(x), grey(y), moved) or moved
    return x, moved.apply(y), moved.covered(SIDE)


def parsed_transform(words: str) -> Transform:
    """The transform that `str(transform)` says, to the digits that it says.

    >>> str(parsed_transform("mirrored, shifted +5.0% -2.0%, scaled 1.20"))
    'mirrored, shifted +5.0% -2.0%, scaled 1.20'
    >>> parsed_transform("whole").is_identity
    True
    """
    shift, scale, turn = (pattern.search(words) for pattern in (_SHIFT, _SCALE, _TURN))
    middle = np.array([0.5, 0.5]) + (np.array([float(shift[1]), float(shift[2])]) / 100 if shift else 0.0)
    angle = np.deg2rad(float(turn[1])) if turn else 0.0
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turned / (float(scale[1]) if scale else 1.0)
    matrix = np.hstack([linear, (np.array([0.5, 0.5]) - linear @ middle)[:, None]])
    return Transform(matrix, "mirrored" in words)


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]"""
    return cv2.resize(np.asarray(image.convert("RGB")), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _center(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
