"""The objects of a matte: its connected parts, which are compared one by one."""

from __future__ import annotations

import cv2
import numpy as np

MIN_AREA = 0.01  # of the image; smaller parts are taken together
MAX_OBJECTS = 8  # the largest; the others are taken together
_COVERED = 128


def objects(alpha: np.ndarray) -> np.ndarray:
    """Number the objects of a matte.

    An object is a connected part (eight neighbours) of the pixels that are covered by at least half, of at least
    `MIN_AREA` of the image. What else is covered makes one more object, if it is as large together: hair, letters,
    crowds. So a matte without objects has next to no foreground.

    Args:
        alpha: uint8 [h, w], 255 = foreground.

    Returns:
        uint8 [h, w]: 0 where there is no object, else its number, from 1, the largest first.

    >>> alpha = np.zeros((100, 100), np.uint8)
    >>> alpha[10:30, 10:30] = alpha[50:90, 50:90] = 255
    >>> numbers = objects(alpha)
    >>> int(numbers[20, 20]), int(numbers[70, 70]), int(numbers[0, 0])
    (2, 1, 0)
    """
    count, parts, statistics, _ = cv2.connectedComponentsWithStats((alpha >= _COVERED).astype(np.uint8), connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    least = MIN_AREA * alpha.size
    large = [part for part in np.argsort(-areas, kind="stable")[:MAX_OBJECTS] if areas[part] >= least]
    has_rest = areas.sum() - areas[large].sum() >= least
    number_of = np.full(count, len(large) + 1 if has_rest else 0, np.uint8)
    number_of[0] = 0
    number_of[np.array(large, dtype=int) + 1] = np.arange(1, len(large) + 1)
    return number_of[parts]
