"""How much memory a mitigation removes: labels before and after, matched by prompt and seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.labels import SEVERITY, Label

Weights = Literal["severity", "released"]
Key = tuple[Hashable, Hashable]  # prompt_id, seed
Labels = Mapping[Key, Label | None]
Transition = tuple[Label, Label]  # before, after

LABELS: tuple[Label, ...] = get_args(Label)
# the one cell in which the code of arXiv 2508.12148 is not the difference of the severities, which is -1
_ODD_CELL: tuple[Transition, float] = (("BM", "FM"), -0.5)
NUM_RESAMPLES = 10_000
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class MitigationScore:
    """How far the severity fell.

    Attributes:
        score: Mean fall over the generations; below 0 the mitigation made it worse.
        achievable: Mean severity before: the score if no memory were left.
        num_generations: That count: labelled before and after.
        num_missing: That do not: absent, or undecided, before or after.
        low: Lower end of the 95 % interval of `score` over prompts; None for a single prompt.
        high: Upper end.
    """

    score: float
    achievable: float
    num_generations: int
    num_missing: int
    low: float | None
    high: float | None


def mitigation_score(
    before: Labels, after: Labels, *, weights: Weights = "severity", num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> MitigationScore:
    """Mean of severity(before) - severity(after) over generations of the same prompt and seed.

    Args:
        before: By (prompt_id, seed), the label without mitigation; None where undecided.
        after: The same with it.
        weights: `severity`, or `release` as the authors' code counts (BM -> FM is -0.5 there, not -1).
        num_resamples: Of the bootstrap, which draws prompts: the images of one prompt are no independent samples.
        seed: Of the bootstrap.

    Raises:
        InputError: No generation is labelled both before and after.
    """
    transitions = _matched(before, after)
    if not transitions:
        cure = "Label the mitigated images first."
        raise InputError("a generation that is labelled before and after", "none", where="mitigation_score", cure=cure)
    falls = {key: transition_weight(*transition, weights=weights) for key, transition in transitions.items()}
    low, high = _interval(falls, num_resamples, seed)
    return MitigationScore(
        score=float(np.mean(list(falls.values()))),
        achievable=float(np.mean([SEVERITY[first] for first, _ in transitions.values()])),
        num_generations=len(falls),
        num_missing=len(before.keys() | after.keys()) - len(falls),
        low=low,
        high=high,
    )


@dataclass(frozen=True)
class ScoreDifference:
    """By how much one mitigation removes more than another.

    Attributes:
        difference: Mean of severity(other) - severity(after) over the generations; above 0 `after` removes more.
        num_generations: That count: labelled without mitigation and under both.
        low: Lower end of the 95 % interval of `difference` over prompts; None for a single prompt.
        high: Upper end.
    """

    difference: float
    num_generations: int
    low: float | None
    high: float | None


def score_difference(
    before: Labels, after: Labels, other: Labels, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> ScoreDifference:
    """Two mitigations on the same generations: what their prompts have in common is in neither's favour.

    The intervals of two scores overlap long before this one holds 0, because most of their width is how much the
    prompts differ. For arguments see `mitigation_score`; `other` are the labels under the other mitigation.

    Raises:
        InputError: No generation is labelled before and under both.
    """
    both = {key: labels for key, labels in _matched(other, after).items() if before.get(key) is not None}
    if not both:
        cure = "Label the images of both mitigations first."
        raise InputError("a generation that is labelled under both", "none", where="score_difference", cure=cure)
    gains = {key: SEVERITY[first] - SEVERITY[second] for key, (first, second) in both.items()}
    low, high = _interval(gains, num_resamples, seed)
    return ScoreDifference(float(np.mean(list(gains.values()))), len(gains), low, high)


def label_transitions(before: Labels, after: Labels) -> dict[Transition, int]:
    """How many generations went from each label to each: all 16 counts, by (before, after)."""
    counts: dict[Transition, int] = dict.fromkeys(product(LABELS, LABELS), 0)
    for transition in _matched(before, after).values():
        counts[transition] += 1
    return counts


def transition_weight(before: Label, after: Label, *, weights: Weights = "severity") -> float:
    """What a generation of this transition counts."""
    if weights == "released" and (before, after) == _ODD_CELL[0]:
        return _ODD_CELL[1]
    return SEVERITY[before] - SEVERITY[after]


def _matched(before: Labels, after: Labels) -> dict[Key, Transition]:
    found = {}
    for key, first in before.items():
        second = after.get(key)
        if first is not None and second is not None:
            found[key] = (first, second)
    return found


def _interval(values: Mapping[Key, float], num_resamples: int, seed: int) -> tuple[float | None, float | None]:
    """Bootstrap over prompts; a prompt that is drawn brings all its generations."""
    of_prompt: dict[Hashable, list[float]] = {}
    for (prompt_id, _), value in values.items():
        of_prompt.setdefault(prompt_id, []).append(value)
    if len(of_prompt) < 2:
        return None, None
    totals = np.array([sum(some) for some in of_prompt.values()])
    counts = np.array([len(some) for some in of_prompt.values()])
    # how often each prompt is drawn [resamples, prompts]
    drawn = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), size=num_resamples
    )
    low, high = np.percentile((drawn @ totals) / (drawn @ counts), _INTERVAL)
    return float(low), float(high)
