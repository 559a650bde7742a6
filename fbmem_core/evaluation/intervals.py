"""Intervals and tests in the right unit: what was drawn independently, not wordings of one thing nor its seeds.

A unit is a set of prompts that share a copied reference, or a single prompt. A share of units has an exact interval; a
mean has a bootstrap over units; two means of the same units are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    import polars as pl

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
# by label, the column that names the reference that was copied
REFERENCE_OF = {"VM": "full_reference_id", "FM": "foreground_reference_id", "BM": "background_reference_id"}
Verdict = Literal["more", "less", "cannot be told apart"]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; both ends None where a single unit says nothing about others."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class UnitMean:
    """A mean over images, and how sure it is.

    Attributes:
        mean: Over all values, so that a unit of more values weighs more.
        num_units: Independent units.
        interval: Of the mean, see `mean_interval`.
        p_value: Of the hypothesis that the sign of a unit's sum is a coin's, two-sided; 1 where every sum is 0.
    """

    mean: float
    num_units: int
    interval: Interval
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """Words for whether the mean is told apart from 0, by interval and test alike.

        >>> UnitMean(0.2, 9, Interval(-0.1, 0.5), 0.3).verdict
        'cannot be told apart'
        """
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or low <= 0 <= high or self.p_value > 1 - CONFIDENCE:
            return "cannot be told apart"
        return "more" if low > 0 else "less"


def share_interval(count: int, total: int, *, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval of a share (Clopper and Pearson), for any count however small.

    Args:
        count: Units of which it is true, from 0 to `total`.
        total: Units; none has no interval.
        confidence: Between 0 and 1.

    Raises:
        InputError: `count` is not between 0 and `total`.

    >>> interval = share_interval(0, 12)
    >>> interval.low, round(interval.high, 2)
    (0.0, 0.26)
    """
    from scipy.stats import binomtest

    if not 0 <= count <= total:
        raise InputError(f"a count from 0 to {total}", count, where="share_interval", cure="Count units once.")
    if not total:
        return Interval(None, None)
    ends = binomtest(count, total).proportion_ci(confidence_level=confidence, method="exact")
    return Interval(float(ends.low), float(ends.high))


def mean_interval(
    values: Mapping[Hashable, Sequence[float]],
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The expanded percentile bootstrap of a mean: units are drawn, and each brings all its values.

    The plain percentiles are too narrow for few units; theirs are taken at the level at which the mean of as many
    normal values would have Student's interval (Hesterberg, The American Statistician 69, 2015).

    Args:
        values: By unit.
        confidence: Between 0 and 1.
        num_resamples: Draws of as many units as there are.
        seed: Of the draws.

    >>> interval = mean_interval({"a": [1, 1], "b": [0], "c": [1], "d": [0, 0]})
    >>> interval.low < 0.5 < interval.high
    True
    """
    from scipy.stats import bootstrap, norm, t

    if len(values) < 2:
        return Interval(None, None)
    totals = np.array([sum(of_unit) for of_unit in values.values()], dtype=float)
    counts = np.array([len(of_unit) for of_unit in values.values()], dtype=float)
    num = len(counts)
    tail = norm.cdf(np.sqrt(num / (num - 1)) * t.ppf((1 - confidence) / 2, num - 1))
    drawn = bootstrap(
        (totals, counts),
        _ratio,
        n_resamples=num_resamples,
        batch=1_000,
        vectorized=True,
        paired=True,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def unit_mean(
    values: Mapping[Hashable, Sequence[float]], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> UnitMean:
    """Mean, interval and sign test of values by unit; of differences, whether one side has more.

    Args:
        values: By unit, at least one value.
        num_resamples: Of the bootstrap, and of the test where the signs are too many to try all.
        seed: Of both.

    Raises:
        InputError: There is no value.

    Example:
        >>> result = unit_mean({"a": [1, 1], "b": [0], "c": [1], "d": [1, 1]})
        >>> round(result.mean, 2), result.num_units, round(result.p_value, 2)
        (0.83, 4, 0.25)
    """
    flat = [value for of_unit in values.values() for value in of_unit]
    if not flat:
        raise InputError("a value", "none", where="unit_mean", cure="Label images first.")
    interval = mean_interval(values, num_resamples=num_resamples, seed=seed)
    sums = [float(sum(of_unit)) for of_unit in values.values()]
    return UnitMean(float(np.mean(flat)), len(values), interval, _sign_p_value(sums, num_resamples, seed))


def independent_units(prompt_ids: Iterable[str], copies: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Units of prompts that are one thing: those that copy a common reference, directly or through others.

    Args:
        prompt_ids: All prompts.
        copies: Pairs of prompt_id and the reference_id of a copy; None is no copy.

    Returns:
        By prompt_id the unit, named by its first prompt_id.

    >>> independent_units(["a", "b", "c"], [("a", "owl"), ("b", "owl"), ("c", None)])
    {'a': 'a', 'b': 'a', 'c': 'c'}
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    prompts = {prompt_id: row for row, prompt_id in enumerate(dict.fromkeys(prompt_ids))}
    pairs = [pair for pair in copies if pair[1] is not None and pair[0] in prompts]
    references = {name: len(prompts) + row for row, name in enumerate(dict.fromkeys(name for _, name in pairs))}
    size = len(prompts) + len(references)
    edges = [prompts[prompt_id] for prompt_id, _ in pairs], [references[name] for _, name in pairs]
    _, component = connected_components(coo_array((np.ones(len(pairs)), edges), shape=(size, size)), directed=False)
    first: dict[int, str] = {}
    return {prompt_id: first.setdefault(int(component[row]), prompt_id) for prompt_id, row in prompts.items()}


def label_units(*labels: pl.DataFrame) -> dict[str, str]:
    """The units of labelled prompts: `independent_units` of the references that their images copy.

    Args:
        labels: Rows `prompt_id, label, full_reference_id, foreground_reference_id, background_reference_id`, one per
            image; of several tables prompts of the same id are one.
    """
    prompt_ids = [prompt_id for table in labels for prompt_id in table["prompt_id"].to_list()]
    copies = [
        (row["prompt_id"], row[REFERENCE_OF[row["label"]]])
        for table in labels
        for row in table.iter_rows(named=True)
        if row["label"] in REFERENCE_OF
    ]
    return independent_units(prompt_ids, copies)


def _ratio(totals: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return totals.sum(axis=axis) / counts.sum(axis=axis)


def _sign_p_value(sums: Sequence[float], num_resamples: int, seed: int) -> float:
    from scipy.stats import permutation_test

    steps = np.array([value for value in sums if value])
    if len(steps) < 2:
        return 1.0
    result = permutation_test(
        (steps,),
        lambda steps, axis: steps.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
