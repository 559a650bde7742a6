"""Thresholds with a promise: from which similarity on a picture that copies nothing is taken for a copy how rarely.

A control is a picture that copies nothing, searched against all references as a generation is. Its copy similarity is
the highest threshold at which it would still be labelled a copy. The threshold of a rate is the lowest at which the
exact 95 % bound of the share of controls that reach it is not above the rate; so no rate below about 3 / n can be
promised by n controls, however they come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.evaluation.intervals import CONFIDENCE, Interval, share_interval
from fbmem_core.labels import BETA, PairSimilarity, label_generation, matches
from fbmem_core.rules import DEFAULT_RULE, load_rule

Source = Literal["non_memorized", "held_out", "references"]
# in this order they speak for generations: those of prompts that were declared first, then pictures from elsewhere
SOURCES: tuple[Source, ...] = ("non_memorized", "held_out", "references")
MIN_CONTROLS = 100
_STEP = 1e-6  # similarities that differ by less are the same
_NUM_SETS = 5  # smaller sets of references, each half of the next


@dataclass(frozen=True)
class Threshold:
    """A threshold and what the controls say of it.

    Attributes:
        value: From this copy similarity on an image is called a copy; None where nothing can be promised.
        low: Lower end of the 95 % interval of the similarity that controls reach at the promised rate.
        high: Its upper end; 1 where the controls are too few for one.
        promised_rate: Share of pictures that copy nothing but are called copies, which is at most this, with 95 %
            confidence. The rate that was asked for, or 3 / `num_controls` if that is higher.
        num_controls: Pictures behind it.
        num_above: Controls that reach the threshold.
        rate: Exact 95 % interval of the share of pictures that copy nothing and reach the threshold.
        reason: Why there is no threshold.
    """

    value: float | None
    low: float | None
    high: float | None
    promised_rate: float
    num_controls: int
    num_above: int
    rate: Interval
    reason: str | None = None


def lowest_rate(num_controls: int) -> float:
    """The lowest rate that so many controls can promise: 3 / n.

    >>> lowest_rate(300)
    0.01
    """
    return 3 / num_controls if num_controls else math.inf


def calibrated(scores: Sequence[float], *, rate: float, floor: float = 0.0) -> Threshold:
    """The lowest threshold that keeps a rate, with 95 % confidence.

    Args:
        scores: Copy similarity of each control, 0 to 1. Controls are independent of each other.
        rate: False-positive rate that is asked for, above 0 and below 1.
        floor: Similarities below it were not looked for: no threshold is lower.

    Raises:
        InputError: The rate is not between 0 and 1.

    >>> calibrated([n / 1000 for n in range(1000)], rate=0.01).value
    0.995001
    >>> calibrated([0.5] * 40, rate=0.01).reason
    '40 controls: below 100 there is no calibrated threshold, for they say nothing of rates below 7.5 %'
    """
    if not 0 < rate < 1:
        raise InputError("a rate between 0 and 1", rate, where="thresholds.rate", cure="0.01 is one in a hundred.")
    num = len(scores)
    promised = max(rate, lowest_rate(num)) if num else rate
    none = Threshold(None, None, None, promised, num, 0, Interval(None, None))
    if num < MIN_CONTROLS:
        return replace(none, reason=_too_few(num))
    highest = np.sort(np.asarray(scores, dtype=float))[::-1]
    allowed = _most_above(num, promised)
    value = max(float(highest[allowed]) + _STEP, floor)
    if value > 1:
        reason = f"{allowed + 1} of {num} controls are as similar to a reference as a picture to itself"
        return replace(none, reason=reason)
    low, high = _quantile_interval(highest, promised)
    above = int((highest >= value).sum())
    return Threshold(
        round(value, 6), max(low, floor), max(high, floor), promised, num, above, share_interval(above, num)
    )


def fixed(scores: Sequence[float], threshold: float) -> Threshold:
    """Counts of the controls that reach a threshold that was chosen without them; `promised_rate` is its upper bound.

    >>> fixed([0.1] * 99 + [0.9], 0.8).num_above
    1
    """
    above, num = int(sum(score >= threshold for score in scores)), len(scores)
    rate = share_interval(above, num)
    return Threshold(threshold, None, None, 1.0 if rate.high is None else rate.high, num, above, rate)


def copy_similarity(
    pairs: Sequence[PairSimilarity],
    *,
    foreground_fraction: float | None,
    rule: str = DEFAULT_RULE,
    beta: float = BETA,
) -> float:
    """The highest threshold at which a picture is labelled a copy, 0 to 1; 0: at none.

    Args:
        pairs: Its similarities to the references.
        foreground_fraction: Share of it that is foreground; None: its matte is undecided.
        rule: By which it is labelled.
        beta: A region of at most this share of the image counts as absent.

    >>> pair = PairSimilarity("horse", full=0.4, foreground=0.7, background=0.1)
    >>> copy_similarity([pair], foreground_fraction=0.3)
    0.7
    """
    region = getattr(load_rule(rule), "RANKED_BY", None)
    if region is not None:  # such a rule looks at one pair alone
        decided = [pair for pair in pairs if getattr(pair, region) is not None]
        pairs = sorted(decided, key=lambda pair: (-getattr(pair, region), pair.reference_id))[:1]
    best = 0.0
    for pair in pairs:
        for value in sorted(_similarities(pair), reverse=True):
            if value <= best:
                break
            label = label_generation([pair], foreground_fraction=foreground_fraction, rule=rule, tau=value, beta=beta)
            if matches(label.label):
                best = value
                break
    return best


def by_number_of_references(
    scores: Mapping[str, Mapping[str, float]], references: Sequence[str], *, seed: int = 0
) -> dict[int, list[float]]:
    """Copy similarity of each control to the most similar of ever more references, drawn by chance.

    Args:
        scores: By control, by reference its copy similarity; a reference that is left out has 0.
        references: All of them.
        seed: Of the draws.

    Returns:
        By number of references, down to a thirty-second of them, a score for each control.
    """
    order = np.random.default_rng(seed).permutation(len(references))
    sizes = sorted({max(1, len(references) >> step) for step in range(_NUM_SETS + 1)}) if references else []
    drawn = {size: {references[at] for at in order[:size]} for size in sizes}
    return {
        size: [max((value for name, value in row.items() if name in names), default=0.0) for row in scores.values()]
        for size, names in drawn.items()
    }


def _too_few(num: int) -> str:
    rest = f", for they say nothing of rates below {100 * lowest_rate(num):.1f} %" if num > 3 else ""
    return f"{num} control{'' if num == 1 else 's'}: below {MIN_CONTROLS} there is no calibrated threshold{rest}"


def _similarities(pair: PairSimilarity) -> set[float]:
    values = (
        pair.full, pair.foreground, pair.background, pair.common_foreground, *pair.object_similarities,
        *pair.reference_object_similarities,
    )  # fmt: skip
    return {min(value, 1.0) for value in values if value is not None and value > 0}


def _most_above(num: int, rate: float) -> int:
    """The most controls that may reach a threshold that keeps the rate: of more the one-sided bound is above it."""
    from scipy.stats import beta

    counts = np.arange(num)
    bounds = beta.ppf(CONFIDENCE, counts + 1, num - counts)
    return max(int(np.searchsorted(bounds, rate, side="right")) - 1, 0)


def _quantile_interval(highest: np.ndarray, rate: float) -> tuple[float, float]:
    """The exact 95 % interval of the similarity that pictures reach at this rate, from sorted scores."""
    from scipy.stats import binom

    num = len(highest)
    few, many = (int(binom.ppf(level, num, rate)) for level in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(highest[min(many, num - 1)]), 1.0 if few == 0 else float(highest[few - 1])


__all__ = [
    "MIN_CONTROLS", "SOURCES", "Source", "Threshold", "by_number_of_references", "calibrated", "copy_similarity",
    "fixed", "lowest_rate",
]  # fmt: skip
