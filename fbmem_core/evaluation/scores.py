"""Mitigation scores: labels before and after, matched by prompt and seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.evaluation.intervals import NUM_RESAMPLES, UnitMean, Verdict, unit_mean
from fbmem_core.labels import SEVERITY
from fbmem_core.rules import Label

Weights = Literal["severity", "released"]
Key = tuple[Hashable, Hashable]  # prompt_id, seed
Labels = Mapping[Key, Label | None]
Transition = tuple[Label, Label]  # before, after
Units = Mapping[Hashable, Hashable]  # by prompt_id

LABELS: tuple[Label, ...] = get_args(Label)
# the one cell in which the code of arXiv 2508.12148 is not the difference of the severities, which is -1
_ODD_CELL: tuple[Transition, float] = (("BM", "FM"), -0.5)


@dataclass(frozen=True)
class MitigationScore:
    """Mean fall of severity, with its interval.

    Attributes:
        score: Mean fall over the generations; below 0 the mitigation made it worse.
        achievable: Mean severity before: the score if no memory were left.
        num_generations: That count: labelled before and after.
        num_missing: That do not: absent, or undecided, before or after.
        low: Lower end of the 95 % interval of `score` over independent units; None for a single one.
        high: Upper end.
        num_units: Independent units: prompts, unless told which of them are one thing.
    """

    score: float
    achievable: float
    num_generations: int
    num_missing: int
    low: float | None
    high: float | None
    num_units: int


def mitigation_score(
    before: Labels,
    after: Labels,
    *,
    units: Units | None = None,
    weights: Weights = "severity",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MitigationScore:
    """Mean of severity(before) - severity(after) over generations of the same prompt and seed.

    Args:
        before: By (prompt_id, seed), the label without mitigation; None where undecided.
        after: The same with it.
        weights: `severity`, or `released` as the authors' code counts (BM -> FM is -0.5 there, not -1).
        units: Which prompts are wordings of one thing, see `intervals.independent_units`; without it each is its own.
        num_resamples: Of the bootstrap, which draws units: their images are no independent samples.
        seed: Of the bootstrap.

    Raises:
        InputError: No generation is labelled both before and after.

    Example:
        >>> before = {("owl", 0): "VM", ("owl", 1): "VM", ("cat", 0): "FM"}
        >>> after = {("owl", 0): "NM", ("owl", 1): "VM", ("cat", 0): "NM"}
        >>> result = mitigation_score(before, after)
        >>> round(result.score, 2), round(result.achievable, 2), result.num_units
        (1.17, 1.83, 2)
    """
    transitions = _matched(before, after)
    if not transitions:
        cure = "Label the mitigated images first."
        raise InputError("a generation that is labelled before and after", "none", where="mitigation_score", cure=cure)
    falls = {key: transition_weight(*transition, weights=weights) for key, transition in transitions.items()}
    fall = _over_units(falls, units, num_resamples, seed)
    return MitigationScore(
        score=fall.mean,
        achievable=float(np.mean([SEVERITY[first] for first, _ in transitions.values()])),
        num_generations=len(falls),
        num_missing=len(before.keys() | after.keys()) - len(falls),
        low=fall.interval.low,
        high=fall.interval.high,
        num_units=fall.num_units,
    )


@dataclass(frozen=True)
class ScoreDifference:
    """Paired difference of two mitigations, with its interval.

    Attributes:
        difference: Mean of severity(other) - severity(after) over the generations; above 0 `after` removes more.
        num_generations: That count: labelled without mitigation and under both.
        low: Lower end of the 95 % interval of `difference` over independent units; None for a single one.
        high: Upper end.
        num_units: Independent units.
        p_value: Of the test that draws the sign of each unit, two-sided.
        verdict: `more`, `less` or `cannot be told apart`: interval and test must agree.
    """

    difference: float
    num_generations: int
    low: float | None
    high: float | None
    num_units: int
    p_value: float
    verdict: Verdict


def score_difference(
    before: Labels,
    after: Labels,
    rival: Labels,
    *,
    units: Units | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ScoreDifference:
    """Two mitigations on the same generations: what their prompts have in common is in neither's favour.

    The intervals of two scores overlap long before this one holds 0, because most of their width is how much the
    prompts differ.

    Args:
        before: Labels without mitigation by (prompt_id, seed); None where undecided.
        after: The same under one mitigation.
        rival: The same under another.
        units: See `mitigation_score`, as for the others.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: No generation is labelled before and under both.

    Example:
        >>> before, after, rival = {("owl", 0): "VM"}, {("owl", 0): "NM"}, {("owl", 0): "BM"}
        >>> result = score_difference(before, after, rival)
        >>> result.difference, result.low, result.verdict
        (0.5, None, 'cannot be told apart')
    """
    both = {key: labels for key, labels in _matched(rival, after).items() if before.get(key) is not None}
    if not both:
        cure = "Label the images of both mitigations first."
        raise InputError("a generation that is labelled under both", "none", where="score_difference", cure=cure)
    gains = {key: SEVERITY[first] - SEVERITY[second] for key, (first, second) in both.items()}
    gain = _over_units(gains, units, num_resamples, seed)
    ends = gain.interval
    return ScoreDifference(gain.mean, len(gains), ends.low, ends.high, gain.num_units, gain.p_value, gain.verdict)


def label_transitions(before: Labels, after: Labels) -> dict[Transition, int]:
    """Counts of generations by (label before, label after): all 16."""
    counts: dict[Transition, int] = dict.fromkeys(product(LABELS, LABELS), 0)
    for transition in _matched(before, after).values():
        counts[transition] += 1
    return counts


def transition_weight(before: Label, after: Label, *, weights: Weights = "severity") -> float:
    """Weight of one generation of this transition."""
    if weights == "released" and (before, after) == _ODD_CELL[0]:
        return _ODD_CELL[1]
    return SEVERITY[before] - SEVERITY[after]


def _matched(before: Labels, after: Labels) -> dict[Key, Transition]:
    transitions = {}
    for key, first in before.items():
        second = after.get(key)
        if first is not None and second is not None:
            transitions[key] = (first, second)
    return transitions


def _over_units(values: Mapping[Key, float], units: Units | None, num_resamples: int, seed: int) -> UnitMean:
    grouped: dict[Hashable, list[float]] = {}
    for (prompt_id, _), value in values.items():
        grouped.setdefault(prompt_id if units is None else units.get(prompt_id, prompt_id), []).append(value)
    return unit_mean(grouped, num_resamples=num_resamples, seed=seed)
