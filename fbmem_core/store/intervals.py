"""Exact intervals for k of n."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CONFIDENCE = 0.95


def clopper_pearson(k: int, n: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a probability of which k of n trials were seen to succeed.

    It covers the true value at least as often as `confidence` says, whatever that value is. The trials must be
    independent: the seeds of one prompt are, the images of several prompts are not.

    Args:
        k: Successes, 0 to n.
        n: Trials, at least 1.
        confidence: In (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    >>> [round(end, 3) for end in clopper_pearson(0, 5)]
    [0.0, 0.522]
    >>> [round(end, 3) for end in clopper_pearson(5, 5)]
    [0.478, 1.0]
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"expected 0 <= k <= n and n >= 1, but got k={k}, n={n}")
    low, high = _ends(np.array([k]), np.array([n]), confidence)
    return float(low[0]), float(high[0])


def interval_rows(counts: Iterable[int]) -> list[tuple[int, int, float, float]]:
    """`(k, n, low, high)` for every k from 0 to n, for each n of `counts`; 95 %, exact."""
    sizes = sorted({n for n in counts if n > 0})
    k = np.concatenate([np.arange(n + 1) for n in sizes]) if sizes else np.empty(0, dtype=np.int64)
    n = np.concatenate([np.full(n + 1, n) for n in sizes]) if sizes else np.empty(0, dtype=np.int64)
    low, high = _ends(k, n, CONFIDENCE)
    return list(zip(k.tolist(), n.tolist(), low.tolist(), high.tolist(), strict=True))


def _ends(k: np.ndarray, n: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the beta distribution: Clopper and Pearson, Biometrika 26 (1934), in today's form."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), n - k + 1, tail))
        high = np.where(k == n, 1.0, betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail))
    return low, high
