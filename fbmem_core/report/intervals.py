"""Intervals of a report that are no plain k of n."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 2000
_SEED = 0


def share_over_prompts(counts: Sequence[tuple[int, int]], *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the share of images that are copies, by resampling prompts.

    The images of a prompt share its text and are not independent, so that prompts are drawn anew and not images
    (percentile bootstrap, 2,000 draws of a fixed seed: the same counts give the same interval).

    Args:
        counts: For each prompt its copies and its images.
        confidence: In (0, 1).

    Returns:
        Lower and upper end, in [0, 1]; (0, 1) without an image.

    >>> share_over_prompts([(5, 5)] * 10)
    (1.0, 1.0)
    """
    copies = np.array([k for k, _ in counts], dtype=np.float64)
    images = np.array([n for _, n in counts], dtype=np.float64)
    if not images.sum():
        return 0.0, 1.0
    random = np.random.default_rng(_SEED)
    shares = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        drawn = random.integers(0, len(copies), len(copies))
        shares[number] = copies[drawn].sum() / max(images[drawn].sum(), 1.0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)
