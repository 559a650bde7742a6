"""How detectors are scored: against scikit-learn, by hand, and with intervals that hold what they should."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fbmem_core.errors import InputError
from fbmem_core.evaluation.detection import best_threshold, detection, intersection_over_union, mask_of, mean_interval


def test_the_area_is_that_of_scikit_learn_ties_included():
    generator = np.random.default_rng(0)
    truth = generator.random(80) < 0.4
    scores = np.round(generator.normal(truth * 1.0), 1)
    result = detection(scores.tolist(), truth.tolist(), num_resamples=20)
    assert result.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert (result.num_memorized, result.num_non_memorized) == (truth.sum(), 80 - truth.sum())
    assert result.auc_low <= result.auc <= result.auc_high


def test_at_one_percent_false_alarms_two_of_two_hundred_may_be_above():
    others = np.arange(200.0)
    memorized = [196.5, 197.5, 198.5, 500.0]
    result = detection([*memorized, *others], [True] * 4 + [False] * 200, num_resamples=10)
    assert result.tpr == 0.75  # above 197, which the two highest of the others exceed
    few = detection([*memorized, *others[:99]], [True] * 4 + [False] * 99, num_resamples=10)
    assert few.tpr == 1.0  # none of 99 may be above


def test_wordings_of_one_thing_count_as_one():
    scores, truth = [1.0] * 20 + [0.0] * 5 + [0.5] * 10, [True] * 25 + [False] * 10
    families = ["loud"] * 20 + [f"quiet{n}" for n in range(5)] + [f"n{n}" for n in range(10)]
    alone, together = (detection(scores, truth, groups) for groups in (None, families))
    assert together.auc == alone.auc
    assert together.auc_high - together.auc_low > 1.5 * (alone.auc_high - alone.auc_low)


def test_without_both_kinds_there_is_one_clear_line():
    with pytest.raises(InputError, match="memorized and non-memorized prompts, but got memorized ones alone"):
        detection([1.0, 2.0], [True, True])
    with pytest.raises(InputError, match="as many scores as truths and groups, but got 1, 2 and 1"):
        detection([1.0], [True, False])


def test_intervals_of_means_hold_the_truth_in_most_of_many_trials():
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        means = generator.normal(0, 1, size=40)
        values = np.repeat(means, 3) + generator.normal(0, 0.1, size=120)
        low, high = mean_interval(values.tolist(), np.repeat(np.arange(40), 3).tolist(), num_resamples=400, seed=trial)
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.99
    assert mean_interval([1.0], ["a"]) == (None, None)


def test_the_threshold_of_masks_finds_the_square_that_a_map_shows():
    truth = np.zeros((8, 8), dtype=bool)
    truth[2:6, 2:6] = True
    generator = np.random.default_rng(0)
    maps = [truth * 2.0 + generator.random((8, 8)) for _ in range(3)]
    quantile = best_threshold(maps, [truth] * 3)
    assert quantile == pytest.approx(0.75, abs=0.03)
    assert intersection_over_union(mask_of(maps[0], quantile), truth) > 0.9
    assert intersection_over_union(truth, ~truth) == 0
    assert intersection_over_union(truth & ~truth, truth & ~truth) == 1
