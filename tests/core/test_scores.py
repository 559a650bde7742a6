"""Mitigation scores: matched by key, both weightings, intervals over prompts."""

import math

import numpy as np
import pytest

import fbmem_core
from fbmem_core.errors import InputError
from fbmem_core.evaluation.scores import (
    LABELS,
    label_transitions,
    mitigation_score,
    score_difference,
    transition_weight,
)

PAIRS = [(before, after) for before in LABELS for after in LABELS]
# severity before - severity after, as arXiv 2508.12148 defines it: rows before, columns after, in the order VM FM BM NM
FALLS = {
    "VM": (0.0, 0.5, 1.5, 2.0),
    "FM": (-0.5, 0.0, 1.0, 1.5),
    "BM": (-1.5, -1.0, 0.0, 0.5),
    "NM": (-2.0, -1.5, -0.5, 0.0),
}


def labels_of(pairs, counts):
    """Labels before and after that hold each transition so many times, five generations a prompt."""
    every = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    keys = [(f"p{number // 5}", number % 5) for number in range(len(every))]
    return (
        {key: before for key, (before, _) in zip(keys, every, strict=True)},
        {key: after for key, (_, after) in zip(keys, every, strict=True)},
    )


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_each_of_the_sixteen_cells_counts_what_the_paper_and_the_release_say(before, after):
    expected = dict(zip(LABELS, FALLS[before], strict=True))[after]
    score = mitigation_score({("p", 0): before}, {("p", 0): after})
    assert score.score == transition_weight(before, after) == expected
    released = mitigation_score({("p", 0): before}, {("p", 0): after}, weights="released")
    assert released.score == (-0.5 if (before, after) == ("BM", "FM") else expected)


def test_the_release_weighting_is_the_sum_of_the_transitions():
    counts = np.random.default_rng(0).integers(0, 9, len(PAIRS)).tolist()
    before, after = labels_of(PAIRS, counts)
    assert label_transitions(before, after) == dict(zip(PAIRS, counts, strict=True))
    total = sum(
        count * (-0.5 if pair == ("BM", "FM") else FALLS[pair[0]][LABELS.index(pair[1])])
        for pair, count in zip(PAIRS, counts, strict=True)
    )
    released = mitigation_score(before, after, weights="released")
    assert math.isclose(released.score * released.num_generations, total)
    by_severity = mitigation_score(before, after)
    assert math.isclose(
        (released.score - by_severity.score) * sum(counts), 0.5 * counts[PAIRS.index(("BM", "FM"))], abs_tol=1e-9
    )


def test_a_missing_or_undecided_image_is_counted_and_never_shifts_another():
    before = {("p", 0): "VM", ("p", 1): "NM", ("q", 0): "BM", ("q", 1): "FM"}
    after = {("q", 1): "NM", ("q", 0): None, ("p", 1): "NM", ("r", 0): "VM"}  # other order, p/0 lost, q/0 undecided
    score = mitigation_score(before, after)
    assert (score.score, score.num_generations, score.num_missing) == (0.75, 2, 3)
    assert score.achievable == 0.75
    assert sum(label_transitions(before, after).values()) == 2


def test_without_any_memory_left_the_score_is_the_achievable():
    before, _ = labels_of(PAIRS, [3] * 16)
    score = mitigation_score(before, dict.fromkeys(before, "NM"))
    assert score.score == score.achievable == 1.0


def test_the_interval_is_over_prompts_not_over_images():
    # two prompts mitigated, two not, in the same share of images as a coin for each image would
    together = {(f"p{prompt}", seed): prompt < 2 for prompt in range(4) for seed in range(100)}
    apart = {key: seed % 2 == 0 for key, (_, seed) in zip(together, together, strict=True)}
    before = dict.fromkeys(together, "VM")
    wide, narrow = (
        mitigation_score(before, {key: "NM" if gone else "VM" for key, gone in cases.items()})
        for cases in (together, apart)
    )
    assert wide.score == narrow.score == narrow.low == narrow.high == 1.0
    assert (wide.low <= 0.5, wide.high >= 1.5) == (True, True)


def test_wordings_of_one_thing_are_one_unit():
    before = {(f"{thing}{wording}", 0): "VM" for thing in "abcd" for wording in range(7)}
    after = {(name, seed): "NM" if name[0] in "ab" else "VM" for name, seed in before}
    units = {name: name[0] for name, _ in before}
    by_prompt, by_thing = mitigation_score(before, after), mitigation_score(before, after, units=units)
    assert (by_prompt.score, by_prompt.num_units) == (by_thing.score, 28)
    assert by_thing.num_units == 4
    assert by_thing.high - by_thing.low > 2 * (by_prompt.high - by_prompt.low)
    assert score_difference(before, after, before).verdict == "more"
    assert score_difference(before, after, before, units=units).verdict == "cannot be told apart"


def test_the_interval_agrees_with_the_normal_one_for_many_prompts_and_is_seeded():
    drawn = np.random.default_rng(1).random(400) < 0.3
    before = {(prompt, 0): "VM" for prompt in range(400)}
    after = {(prompt, 0): "NM" if gone else "VM" for prompt, gone in enumerate(drawn)}
    score = mitigation_score(before, after)
    half = 1.96 * 2 * drawn.std() / 20
    assert score.low == pytest.approx(score.score - half, abs=0.02)
    assert score.high == pytest.approx(score.score + half, abs=0.02)
    assert score == mitigation_score(before, after)
    one, other = (mitigation_score(before, after, num_resamples=40, seed=seed) for seed in (0, 1))
    assert one != other


def test_two_mitigations_are_compared_on_the_same_prompts():
    # prompts differ much, the two mitigations little: the second leaves one image more of each third prompt
    before = {(prompt, seed): ("VM", "BM")[prompt % 2] for prompt in range(30) for seed in range(2)}
    better = dict.fromkeys(before, "NM")
    worse = better | {(prompt, 0): before[prompt, 0] for prompt in range(0, 30, 3)}
    found = score_difference(before, better, worse)
    one, other = mitigation_score(before, better), mitigation_score(before, worse)
    assert found.difference == pytest.approx(one.score - other.score)
    assert 0 < found.low < found.difference < found.high
    assert other.high > one.low  # the intervals of the scores do not tell them apart
    assert score_difference(before, worse, better).difference == -found.difference
    assert found.num_generations == 60
    undecided = better | {(0, 0): None}
    assert score_difference(before, undecided, worse).num_generations == 59
    with pytest.raises(InputError, match="labelled under both, but got none"):
        score_difference(before, {}, worse)


def test_one_prompt_has_no_interval_and_nothing_in_common_is_one_clear_line():
    score = mitigation_score({("p", 0): "VM", ("p", 1): "VM"}, {("p", 0): "NM", ("p", 1): "VM"})
    assert (score.low, score.high) == (None, None)
    with pytest.raises(InputError, match="labelled before and after, but got none"):
        mitigation_score({("p", 0): "VM"}, {("p", 1): "VM"})


def test_it_is_exported():
    assert fbmem_core.mitigation_score is mitigation_score
    assert fbmem_core.score_difference is score_difference
