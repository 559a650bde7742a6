"""Intervals hold what they promise: exact shares, bootstraps over units, units of prompts that copy one thing."""

import numpy as np
import pytest

from fbmem_core.errors import InputError
from fbmem_core.evaluation.intervals import (
    independent_units,
    mean_interval,
    share_interval,
    unit_mean,
)

NUM_AUDITS = 1_000


def audit_of(rng, num_units):
    """Falls of severity by unit: one to three wordings of five images each, what remains differs from unit to unit."""
    remaining = rng.beta(0.5, 0.7, num_units)
    sizes = 5 * rng.integers(1, 4, num_units)
    return {unit: 2.0 * (rng.random(sizes[unit]) > remaining[unit]) for unit in range(num_units)}


def test_an_exact_share_is_that_of_the_tables():
    interval = share_interval(3, 20)
    assert (interval.low, interval.high) == pytest.approx((0.0321, 0.3789), abs=5e-5)
    assert share_interval(0, 10).low == 0.0
    assert share_interval(10, 10).high == 1.0
    assert share_interval(0, 0).low is None
    with pytest.raises(InputError, match="a count from 0 to 4, but got 5"):
        share_interval(5, 4)


@pytest.mark.slow
def test_bootstrap_intervals_of_a_thousand_audits_hold_the_truth_in_93_to_97_percent():
    rng = np.random.default_rng(3)
    values = audit_of(rng, 300_000)
    truth = sum(map(sum, values.values())) / sum(map(len, values.values()))
    held = 0
    for audit in range(NUM_AUDITS):
        interval = mean_interval(audit_of(rng, 24), num_resamples=600, seed=audit)
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / NUM_AUDITS <= 0.97


def test_exact_intervals_of_a_thousand_audits_hold_the_truth_in_at_least_95_percent():
    rng = np.random.default_rng(4)
    for share in (0.02, 0.3, 0.9):
        counts = rng.binomial(20, share, NUM_AUDITS).tolist()
        ends = {count: share_interval(count, 20) for count in set(counts)}
        assert np.mean([ends[count].low <= share <= ends[count].high for count in counts]) >= 0.95


def test_a_mean_over_wordings_of_one_thing_is_less_sure_than_over_things():
    apart = {unit: [float(unit % 2)] for unit in range(40)}
    together = {unit: [float(unit % 2)] * 10 for unit in range(4)}
    one, other = unit_mean(apart), unit_mean(together)
    assert one.mean == other.mean == 0.5
    assert other.interval.high - other.interval.low > 2 * (one.interval.high - one.interval.low)


def test_differences_are_put_in_words():
    assert unit_mean({unit: [1.0, 0.5] for unit in range(8)}).verdict == "more"
    assert unit_mean({unit: [-1.0, -0.5] for unit in range(8)}).verdict == "less"
    assert unit_mean({unit: [(-1.0) ** unit] for unit in range(8)}).verdict == "cannot be told apart"
    assert unit_mean({unit: [1.0] for unit in range(3)}).verdict == "cannot be told apart"  # p is 1/4 at best
    assert unit_mean({"one": [1.0, 1.0]}).interval.low is None
    with pytest.raises(InputError, match="Expected a value"):
        unit_mean({})


def test_prompts_that_copy_one_thing_are_one_unit():
    copies = [("a", "owl"), ("b", "owl"), ("b", "fox"), ("d", "fox"), ("c", None), ("gone", "owl")]
    units = independent_units(["a", "b", "c", "d", "e"], copies)
    assert units == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e"}
    assert independent_units([], []) == {}
