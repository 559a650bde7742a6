"""Alignment of a reference with a generation that shows it mirrored, shifted, cropped, scaled or turned.

A transform is first guessed, from coarse pictures or from keypoints, then refined by the correlation of all pixels
(ECC, Evangelidis and Psarakis 2008). Both are OpenCV's. Pairs are compared after it by `region_similarity`'s measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

ECC_SIDE = 128  # px, of the pictures by which a transform is refined
_ECC_STEPS = 60
_MIN_CORRELATION = 0.6  # of the aligned pictures, below which a transform is given up
_RATIO = 0.85  # of the distances to the nearest and the second nearest keypoint
_MIN_MATCHES = 8  # keypoints that agree on a transform
_TOLERANCE = 0.012  # of the side, by which they may differ
_MAX_SCALE = 4.0


@dataclass(frozen=True)
class Transform:
    """Movement of a reference: from a generation's pixel to the reference's.

    `matrix` [2, 3] maps generation coordinates (x, y, 1), in units of the side, to those of the reference, which is
    mirrored first if `mirrored`.
    """

    matrix: np.ndarray
    mirrored: bool = False

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Transform:
        """The transform of six `numbers`."""
        matrix = np.array(numbers, dtype=np.float64).reshape(2, 3)
        mirrored = bool(np.linalg.det(matrix[:, :2]) < 0)
        return cls(_mirror(matrix) if mirrored else matrix, mirrored)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Six numbers, row by row, that map a generation's (x, y, 1) to its reference's, in units of the side.

        The determinant of a mirrored one is negative.

        >>> shifted(0.25, 0.0, mirrored=True).numbers
        (-1.0, 0.0, 1.25, 0.0, 1.0, 0.0)
        """
        matrix = _mirror(self.matrix) if self.mirrored else self.matrix
        return tuple(float(number) + 0.0 for number in matrix.flatten())

    @cached_property
    def scale(self) -> float:
        """Factor by which the reference is shown larger."""
        return 1 / math.sqrt(max(abs(float(np.linalg.det(self.matrix[:, :2]))), 1e-9))

    @cached_property
    def degrees(self) -> float:
        """Degrees by which it is turned, counterclockwise."""
        return math.degrees(math.atan2(self.matrix[1, 0] - self.matrix[0, 1], self.matrix[0, 0] + self.matrix[1, 1]))

    @property
    def shift(self) -> tuple[float, float]:
        """Distances that its middle went right and down, in sides of the image."""
        middle = np.linalg.solve(self.matrix[:, :2], np.array([0.5, 0.5]) - self.matrix[:, 2])
        return float(middle[0] - 0.5), float(middle[1] - 0.5)

    @property
    def is_identity(self) -> bool:
        """True if nothing moves by a four-hundredth of the side."""
        corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
        return not self.mirrored and float(np.abs(corners @ self.matrix.T - corners[:, :2]).max()) < 2.5e-3

    def __str__(self) -> str:
        """Words for tables."""
        right, down = self.shift
        words = ["mirrored"] if self.mirrored else []
        if max(abs(right), abs(down)) >= 5e-4:
            words.append(f"shifted {right:+.1%} {down:+.1%}")
        if abs(self.scale - 1) >= 5e-3:
            words.append(f"scaled {self.scale:.2f}")
        if abs(self.degrees) >= 0.1:
            words.append(f"turned {self.degrees:+.1f} degrees")
        return ", ".join(words) or ("whole" if self.is_identity else "distorted")

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The reference [h, w(, 3)] as the generation shows it; 0 where it shows nothing of it."""
        height, width = image.shape[:2]
        source = image[:, ::-1] if self.mirrored else image
        return cv2.warpAffine(
            np.ascontiguousarray(source), self._pixels(width, height), (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
        )  # fmt: skip

    def covered(self, side: int) -> np.ndarray:
        """bool [side, side]: where the generation shows something of the reference."""
        return self.apply(np.full((side, side), 255, np.uint8)) == 255

    def _pixels(self, width: int, height: int) -> np.ndarray:
        """The matrix for pixel centres."""
        to_unit = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
        return (np.linalg.inv(to_unit) @ np.vstack([self.matrix, [0, 0, 1]]) @ to_unit)[:2].astype(np.float32)


def _mirror(matrix: np.ndarray) -> np.ndarray:
    """The matrix to a reference's pixels, of that to those of its mirror image; and back."""
    return np.stack([np.array([0.0, 0.0, 1.0]) - matrix[0], matrix[1]])


def shifted(right: float, down: float, *, mirrored: bool = False, scale: float = 1.0) -> Transform:
    """A reference shown `scale` times larger about its middle, which lies so far right and down, in sides."""
    across, along = 0.5 - (0.5 + right) / scale, 0.5 - (0.5 + down) / scale
    return Transform(np.array([[1 / scale, 0, across], [0, 1 / scale, along]]), mirrored)


def refine(generation: np.ndarray, reference: np.ndarray, guess: Transform) -> Transform | None:
    """The affine transform near a guess by which two grey pictures [h, w] agree best; None where they don't agree."""
    side = generation.shape[0]
    template = reference[:, ::-1] if guess.mirrored else reference
    try:
        correlation, matrix = cv2.findTransformECC(  # type: ignore[call-overload]  # None: no mask
            generation, np.ascontiguousarray(template), guess._pixels(side, side), cv2.MOTION_AFFINE,
            (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ECC_STEPS, 1e-5), None, 5,
        )  # fmt: skip
    except cv2.error:  # it does not converge
        return None
    to_unit = np.array([[1 / side, 0, 0.5 / side], [0, 1 / side, 0.5 / side], [0, 0, 1]])
    units = (to_unit @ np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(to_unit))[:2]
    transform = Transform(units, guess.mirrored)
    if correlation < _MIN_CORRELATION or not 1 / _MAX_SCALE < transform.scale < _MAX_SCALE:
        return None
    return transform


def grey(image: np.ndarray, side: int = ECC_SIDE) -> np.ndarray:
    """An RGB picture uint8 [h, w, 3] as a small grey one."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Keypoints:
    """SIFT keypoints: places [k, 2] in units of the side, and descriptors [k, 128] of unit length."""

    places: np.ndarray
    descriptors: np.ndarray


def _sift(num: int) -> Any:
    return cv2.SIFT_create(nfeatures=num)  # type: ignore[attr-defined]  # OpenCV's stubs lack it


def keypoints(image: np.ndarray, *, num: int = 500) -> Keypoints:
    """The strongest keypoints of an RGB picture uint8 [h, w, 3]; descriptors are compared as RootSIFT."""
    points, descriptors = _sift(num).detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    places = (np.array([point.pt for point in points], np.float32) + 0.5) / np.array(image.shape[1::-1], np.float32)
    return Keypoints(places, roots.astype(np.float32))


def agreeing(generation: Keypoints, reference: Keypoints, *, mirrored: bool) -> list[Transform]:
    """The similarity transforms on which enough matching keypoints agree, that of the most of them first.

    With `mirrored`, the reference's keypoints are those of its mirror image.
    """
    places = _matching(generation, reference)
    transforms: list[Transform] = []
    while len(places[0]) >= _MIN_MATCHES and len(transforms) < 3:
        matrix, inliers = cv2.estimateAffinePartial2D(
            places[0], places[1], method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE, maxIters=1000
        )
        agree = None if inliers is None else inliers[:, 0] > 0
        if agree is None or agree.sum() < _MIN_MATCHES:
            break
        transform = Transform(matrix, mirrored)
        if 1 / _MAX_SCALE < transform.scale < _MAX_SCALE:
            transforms.append(transform)
        places = places[0][~agree], places[1][~agree]
    return transforms


def _matching(generation: Keypoints, reference: Keypoints) -> tuple[np.ndarray, np.ndarray]:
    """Places [k, 2] of keypoints of both whose descriptors are much nearer to each other than to any second one."""
    if len(generation.places) < _MIN_MATCHES or len(reference.places) < _MIN_MATCHES:
        return generation.places[:0], reference.places[:0]
    similar = generation.descriptors @ reference.descriptors.T
    second, nearest = np.partition(similar, -2, axis=1)[:, -2:].T
    distance = np.sqrt(np.maximum(2 - 2 * np.stack([nearest, second]), 0))
    matches = distance[0] < _RATIO * distance[1]
    return generation.places[matches], reference.places[similar.argmax(axis=1)[matches]]
