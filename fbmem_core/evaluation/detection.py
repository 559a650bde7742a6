"""Quality of a detector of memorized prompts: area under the ROC curve, hits at few false alarms, masks.

Intervals draw what is independent: groups of prompts (wordings of one thing), memorized and non-memorized apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fbmem_core.errors import InputError

FALSE_POSITIVE_RATE = 0.01
NUM_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Detection:
    """Separation of two sets of prompts by scores.

    Attributes:
        auc: Area under the ROC curve; 0.5 is chance.
        auc_low: Lower end of its 95 % interval; None for fewer than two groups of a kind.
        auc_high: Upper end.
        tpr: Share of memorized prompts above the threshold that at most 1 % of the others reach.
        tpr_low: Lower end of its interval.
        tpr_high: Upper end.
        num_memorized: Prompts.
        num_non_memorized: Prompts; of fewer than 100 none may reach the threshold.
    """

    auc: float
    auc_low: float | None
    auc_high: float | None
    tpr: float
    tpr_low: float | None
    tpr_high: float | None
    num_memorized: int
    num_non_memorized: int


def detection(
    scores: Sequence[float],
    is_memorized: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Detection:
    """Score a detector.

    Args:
        scores: Of n prompts, higher if memorized.
        is_memorized: The truth about each.
        groups: What prompts are independent by; each its own by default.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: All prompts are of one kind, or the lengths differ.

    >>> result = detection([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    >>> result.auc, result.tpr, result.num_memorized
    (1.0, 1.0, 2)
    """
    values, truth = np.asarray(scores, dtype=float), np.asarray(is_memorized, dtype=bool)
    names = list(range(len(values))) if groups is None else list(groups)
    if not len(values) == len(truth) == len(names):
        lengths = f"{len(values)}, {len(truth)} and {len(names)}"
        raise InputError("as many scores as truths and groups", lengths, where="detection", cure="Give one a prompt.")
    if truth.all() or not truth.any():
        kind = "memorized" if truth.any() else "non-memorized"
        cure = "Add prompts of the other kind."
        raise InputError("memorized and non-memorized prompts", f"{kind} ones alone", where="detection", cure=cure)
    memorized, non_memorized = values[truth], values[~truth]
    resampled = _resampled(values, truth, names, num_resamples, seed)
    low, high = np.percentile(resampled, _INTERVAL, axis=0) if len(resampled) else ([None, None], [None, None])
    return Detection(
        auc=_auc(memorized, non_memorized), auc_low=_number(low[0]), auc_high=_number(high[0]),
        tpr=_true_positive_rate(memorized, non_memorized), tpr_low=_number(low[1]), tpr_high=_number(high[1]),
        num_memorized=len(memorized), num_non_memorized=len(non_memorized),
    )  # fmt: skip


def intersection_over_union(mask: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Share of the pixels in either mask that are in both, 0 to 1; 1 for two empty masks.

    >>> intersection_over_union(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 1.0


def best_threshold(
    maps: Sequence[Float[np.ndarray, "h w"]], truths: Sequence[Bool[np.ndarray, "h w"]], *, num_candidates: int = 50
) -> float:
    """The quantile of a map above which its mask has the highest mean IoU with the truth; for development images.

    A quantile, because maps of different prompts have different scales.
    """
    quantiles = np.linspace(0, 1, num_candidates, endpoint=False)
    means = [
        np.mean(
            [intersection_over_union(mask_of(one, float(q)), truth) for one, truth in zip(maps, truths, strict=True)]
        )
        for q in quantiles
    ]
    return float(quantiles[int(np.argmax(means))])


def mask_of(values: Float[np.ndarray, "h w"], quantile: float) -> Bool[np.ndarray, "h w"]:
    """Mask of where a map is at least this quantile of itself.

    >>> mask_of(np.array([[1.0, 2.0], [3.0, 4.0]]), 0.5).tolist()
    [[False, False], [True, True]]
    """
    return values >= np.quantile(values, quantile)


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of a mean over groups, each drawn with all its values; None for a single group.

    >>> mean_interval([1.0, 1.0, 1.0], ["a", "b", "b"])
    (1.0, 1.0)
    """
    members = _members(groups, np.arange(len(values)))
    if len(members) < 2:
        return None, None
    numbers = np.asarray(values, dtype=float)
    totals = np.array([numbers[one].sum() for one in members])
    counts = np.array([len(one) for one in members])
    drawn = np.random.default_rng(seed).multinomial(
        len(members), np.full(len(members), 1 / len(members)), num_resamples
    )
    low, high = np.percentile((drawn @ totals) / (drawn @ counts), _INTERVAL)
    return float(low), float(high)


def _resampled(
    values: np.ndarray, truth: np.ndarray, groups: Sequence[Hashable], num_resamples: int, seed: int
) -> np.ndarray:
    """[resamples, 2]: both measures over drawn groups; none where a kind has a single group."""
    members = [_members(groups, np.flatnonzero(kind)) for kind in (truth, ~truth)]
    if min(map(len, members)) < 2:
        return np.empty((0, 2))
    generator = np.random.default_rng(seed)
    results = np.empty((num_resamples, 2))
    for number in range(num_resamples):
        memorized, non_memorized = (
            values[np.concatenate([kind[index] for index in generator.integers(len(kind), size=len(kind))])]
            for kind in members
        )
        results[number] = _auc(memorized, non_memorized), _true_positive_rate(memorized, non_memorized)
    return results


def _members(groups: Sequence[Hashable], indices: np.ndarray) -> list[np.ndarray]:
    by_group: dict[Hashable, list[int]] = {}
    for index in indices.tolist():
        by_group.setdefault(groups[index], []).append(index)
    return [np.array(members) for members in by_group.values()]


def _auc(memorized: np.ndarray, non_memorized: np.ndarray) -> float:
    """Share of the pairs in which the memorized prompt scores higher; ties count half."""
    ordered = np.sort(non_memorized)
    below = np.searchsorted(ordered, memorized, side="left")
    not_above = np.searchsorted(ordered, memorized, side="right")
    return float((below + not_above).mean() / (2 * len(non_memorized)))


def _true_positive_rate(memorized: np.ndarray, non_memorized: np.ndarray) -> float:
    """Share of the memorized prompts above the score that floor(1 %) of the others exceed."""
    allowed = int(FALSE_POSITIVE_RATE * len(non_memorized))
    threshold = np.sort(non_memorized)[::-1][allowed]
    return float((memorized > threshold).mean())


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
