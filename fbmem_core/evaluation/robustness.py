"""Disturbances under which labels are made again: changes of a picture, of its matte, and of beta.

Pictures are RGB uint8 [h, w, 3], mattes uint8 [h, w] with 255 = foreground. Strengths are shares of the side, so that
they mean the same at every size. A label that flips under a small change of the mask, which two segmenters, or one on
two machines, may differ by, is fragile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from fbmem_core.evaluation.intervals import Interval, share_interval
from fbmem_core.labels import BETA
from fbmem_core.rules import Label
from fbmem_core.similarity.objects import objects

Change = Literal["image", "mask", "beta"]
BETAS = (0.0, 0.01, 0.02, BETA, 0.05, 0.1)
_SMALL, _LARGE = 0.01, 0.04  # of the side, by which outlines move
_JPEG_QUALITY = 30
_SIGMA = 0.006  # of the side: 1.5 px of 256, 3 px of 512
_GAMMA = 2.2
_CROP = 0.95


@dataclass(frozen=True)
class Disturbance:
    """One disturbance: what it changes, whether it is a small change of a mask, and the function that does it."""

    name: str
    changes: Change
    apply: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    is_small: bool = False


@dataclass(frozen=True)
class FlipRate:
    """Labels that flip: the share `num_flips / num_images` with its exact 95 % interval."""

    num_images: int
    num_flips: int
    interval: Interval

    @property
    def rate(self) -> float:
        """The share of labels that flip; 0 without images."""
        return self.num_flips / self.num_images if self.num_images else 0.0


def flip_rate(before: Sequence[Label | None], after: Sequence[Label | None]) -> FlipRate:
    """Count the labels that differ.

    >>> flip_rate(["VM", "NM"], ["VM", "FM"]).rate
    0.5
    """
    flips = sum(first != second for first, second in zip(before, after, strict=True))
    return FlipRate(len(before), flips, share_interval(flips, len(before)))


def _blurred(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cv2.GaussianBlur(image, (0, 0), _SIGMA * image.shape[0]), alpha


def _compressed(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return np.asarray(decoded, dtype=np.uint8)[..., ::-1].copy(), alpha


def _darkened(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    table = np.round(255 * (np.arange(256) / 255) ** _GAMMA).astype(np.uint8)
    return table[image], alpha


def _cropped(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = alpha.shape
    top, left = round(height * (1 - _CROP) / 2), round(width * (1 - _CROP) / 2)
    inside = np.s_[top : height - top, left : width - left]
    return tuple(cv2.resize(side[inside], (width, height), interpolation=cv2.INTER_AREA) for side in (image, alpha))  # type: ignore[return-value]


def _of_mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return lambda image, alpha: (image, change(alpha))


def _kernel(alpha: np.ndarray, share: float) -> np.ndarray:
    side = 2 * max(1, round(share * alpha.shape[0])) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), dtype=np.uint8)


def _dilated(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda alpha: np.asarray(cv2.dilate(alpha, _kernel(alpha, share)), dtype=np.uint8)


def _eroded(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda alpha: np.asarray(cv2.erode(alpha, _kernel(alpha, share)), dtype=np.uint8)


def _softened(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda alpha: np.asarray(cv2.GaussianBlur(alpha, (0, 0), share * alpha.shape[0]), dtype=np.uint8)


def _without_largest(alpha: np.ndarray) -> np.ndarray:
    """The segmenter misses the largest object."""
    return np.where(objects(alpha) == 1, 0, alpha).astype(np.uint8)


def _with_others(alpha: np.ndarray) -> np.ndarray:
    """The segmenter takes four pieces of scenery, each of a fiftieth of the area, for objects."""
    height, width = alpha.shape
    added, radius = alpha.copy(), round((height * width / 50 / np.pi) ** 0.5)
    for across, down in ((0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)):
        cv2.circle(added, (round(across * width), round(down * height)), radius, 255, thickness=-1)
    return added


DISTURBANCES = (
    Disturbance("blur", "image", _blurred),
    Disturbance("jpeg", "image", _compressed),
    Disturbance("low_light", "image", _darkened),
    Disturbance("crop", "image", _cropped),
    Disturbance("no_object", "mask", _of_mask(np.zeros_like)),
    Disturbance("many_objects", "mask", _of_mask(_with_others)),
    Disturbance("mask_missed", "mask", _of_mask(_without_largest)),
    Disturbance("mask_dilated", "mask", _of_mask(_dilated(_LARGE))),
    Disturbance("mask_eroded", "mask", _of_mask(_eroded(_LARGE))),
    Disturbance("mask_soft", "mask", _of_mask(_softened(_LARGE))),
    Disturbance("mask_dilated_little", "mask", _of_mask(_dilated(_SMALL)), is_small=True),
    Disturbance("mask_eroded_little", "mask", _of_mask(_eroded(_SMALL)), is_small=True),
    Disturbance("mask_soft_little", "mask", _of_mask(_softened(_SMALL)), is_small=True),
)


def disturbed(
    images: np.ndarray, alphas: np.ndarray, disturbance: Disturbance
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each image uint8 [n, h, w, 3] and matte [n, h, w] after one disturbance."""
    for image, alpha in zip(images, alphas, strict=True):
        yield disturbance.apply(np.asarray(image), np.asarray(alpha))
