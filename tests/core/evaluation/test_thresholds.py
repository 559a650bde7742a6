"""Thresholds with a promise: on scores whose true rate is known, and on crops of photographs."""

import numpy as np
import pytest

from fbmem_core.errors import InputError
from fbmem_core.evaluation.intervals import share_interval
from fbmem_core.evaluation.thresholds import (
    by_number_of_references,
    calibrated,
    copy_similarity,
    fixed,
    lowest_rate,
)
from fbmem_core.labels import PairSimilarity, label_generation


def test_the_promised_rate_is_kept_in_nineteen_of_twenty_draws_whatever_the_number_of_references():
    rng = np.random.default_rng(0)
    values = []
    for num_references in (100, 1_000, 10_000):
        kept = 0
        for _ in range(200):
            # the greatest of n similarities that are exponential with mean 1/40, by inversion
            scores = -np.log1p(-(rng.uniform(size=400) ** (1 / num_references))) / 40
            threshold = calibrated(scores.tolist(), rate=0.02)
            true_rate = 1 - (1 - np.exp(-40 * threshold.value)) ** num_references
            kept += true_rate <= threshold.promised_rate
        assert kept >= 0.9 * 200
        assert threshold.promised_rate == 0.02
        values.append(threshold.value)
    assert values == sorted(values)


def test_a_threshold_grows_with_the_number_of_references():
    rng = np.random.default_rng(1)
    references = [f"r{n}" for n in range(320)]
    scores = {f"c{n}": dict(zip(references, rng.beta(5, 5, size=320), strict=True)) for n in range(300)}
    by_number = by_number_of_references(scores, references)
    assert list(by_number) == [10, 20, 40, 80, 160, 320]
    values = [calibrated(values, rate=0.02).value for values in by_number.values()]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.05


def test_no_rate_below_three_over_n_is_promised():
    scores = np.linspace(0, 0.7, 150).tolist()
    threshold = calibrated(scores, rate=0.001)
    assert threshold.promised_rate == lowest_rate(150) == 0.02
    assert threshold.num_above == 0
    assert threshold.value == pytest.approx(0.7, abs=1e-5)
    assert threshold.rate.high < 0.025
    assert (threshold.low, threshold.high) == (pytest.approx(0.6624, abs=0.01), 1.0)


def test_below_a_hundred_controls_there_is_no_threshold_and_the_reason_is_given():
    threshold = calibrated([0.1] * 99, rate=0.01)
    assert threshold.value is None
    assert threshold.reason.startswith("99 controls: below 100 there is no calibrated threshold")
    assert calibrated([], rate=0.01).reason.startswith("0 controls")


def test_controls_that_are_copies_leave_nothing_to_promise():
    threshold = calibrated([1.0] * 30 + [0.1] * 100, rate=0.05)
    assert threshold.value is None
    assert "as similar to a reference as a picture to itself" in threshold.reason


def test_similarities_below_the_floor_were_not_looked_for_so_no_threshold_is_lower():
    assert calibrated([0.2] * 200, rate=0.02, floor=0.6).value == 0.6


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(InputError, match="a rate between 0 and 1, but got 0"):
        calibrated([0.1] * 200, rate=0)


def test_the_fixed_threshold_has_the_exact_interval_of_its_controls():
    threshold = fixed([0.9] * 2 + [0.1] * 198, 0.8)
    assert (threshold.num_above, threshold.rate) == (2, share_interval(2, 200))


@pytest.mark.parametrize("rule", ["per_region", "paper", "released"])
def test_the_copy_similarity_is_the_highest_threshold_at_which_the_picture_is_a_copy(rule):
    rng = np.random.default_rng(2)
    for number in range(60):
        pairs = [PairSimilarity(f"r{n}", *rng.uniform(0.2, 1, size=3)) for n in range(4)]
        fraction = (None, 0.01, 0.3, 0.99)[number % 4]
        value = copy_similarity(pairs, foreground_fraction=fraction, rule=rule)

        def is_copy(tau, pairs=pairs, fraction=fraction):
            label = label_generation(pairs, foreground_fraction=fraction, rule=rule, tau=tau).label
            return label in ("VM", "FM", "BM")

        if value == 0:
            assert not is_copy(0.05) or fraction is None
            continue
        assert is_copy(value)
        assert not any(is_copy(tau) for tau in np.linspace(value + 1e-6, 1, 20))
