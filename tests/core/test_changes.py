"""What changed between two checkpoints, and what chance alone would show."""

from itertools import product

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbmem_core.evaluation.changes import compare_prompts, label_prompts, measure_rise, sign_flip_test


def prompts(*texts):
    return pl.DataFrame({"prompt_id": [str(at) for at in range(len(texts))], "prompt": texts})


def labels(*of_prompts):
    """Labels of each prompt's images, seeds from 0 on."""
    rows = [(str(at), seed, label) for at, some in enumerate(of_prompts) for seed, label in enumerate(some)]
    return pl.DataFrame(rows, schema={"prompt_id": str, "seed": int, "label": str}, orient="row")


def images(texts, *of_prompts):
    return labels(*of_prompts).join(prompts(*texts), on="prompt_id")


def test_a_prompt_has_its_most_frequent_label_and_of_two_the_more_severe():
    found = label_prompts(
        labels(["NM", "NM", "VM"], ["NM", "BM"], ["BM", "FM", "NM", "VM"], [None, None], [None, "BM"]),
        prompts("a", "b", "c", "d", "e", "never sampled"),
    )
    assert found.rows() == [
        ("0", "a", "NM", 3, 1),
        ("1", "b", "BM", 2, 1),
        ("2", "c", "VM", 4, 3),
        ("3", "d", None, 2, 0),
        ("4", "e", "BM", 2, 1),
        ("5", "never sampled", None, 0, 0),
    ]


def test_every_prompt_of_either_checkpoint_is_told_what_became_of_it():
    one = ("same", "new", "old", "other", "open", "gone", "twice", "twice")
    two = ("added", "same", "new", "old", "other", "open", "twice", "twice")
    before = label_prompts(labels(*([x] for x in ("NM", "NM", "VM", "FM", None, "VM", "NM", "VM"))), prompts(*one))
    after = label_prompts(labels(*([x] for x in ("VM", "NM", "BM", "NM", "VM", "VM", "VM", "VM"))), prompts(*two))
    found = compare_prompts(before, after)
    assert found.columns == ["prompt_id", "prompt", "change", "label_before", "label_after"]
    assert sorted(found.rows()) == [
        ("0", "added", "added", None, "VM"),
        ("1", "same", "same", "NM", "NM"),
        ("2", "new", "newly_memorized", "NM", "BM"),
        ("3", "old", "no_longer_memorized", "VM", "NM"),
        ("4", "other", "other_label", "FM", "VM"),
        ("5", "gone", "removed", "VM", None),
        ("5", "open", "undecided", None, "VM"),
        ("6", "twice", "newly_memorized", "NM", "VM"),
        ("7", "twice", "same", "VM", "VM"),
    ]


def test_only_images_that_both_have_and_both_decide_are_compared():
    before = images(("a", "b", "c"), ["NM", "NM", None, "NM"], ["VM", "NM"], ["VM"])
    after = images(("b", "a", "d"), ["VM", "BM", "VM"], ["NM", "FM", "VM"], ["VM"])
    rise = measure_rise(before, after)
    # a: seeds 0 and 1, one copy more; b: seeds 0 and 1, one more
    assert (rise.num_prompts, rise.num_images, rise.share_before, rise.share_after) == (2, 4, 0.25, 0.75)
    assert rise.p_value == 0.25


def test_nothing_in_common_is_no_rise():
    rise = measure_rise(images(("a",), ["NM"]), images(("b",), ["VM"]))
    assert (rise.num_prompts, rise.num_images, rise.share_before, rise.p_value) == (0, 0, None, 1.0)


def test_the_seeds_of_one_prompt_are_one_observation():
    texts = tuple("abcdefgh")
    one = images(texts, *[["NM"] * 20 for _ in texts])
    single = images(texts, ["VM"] * 20, *[["NM"] * 20 for _ in texts[1:]])
    several = images(texts, *[["VM"] * 3 + ["NM"] * 17 for _ in texts])
    assert measure_rise(one, single).p_value == 0.5
    assert measure_rise(one, several).p_value == 2**-8


def test_wordings_of_one_thing_are_one_observation():
    texts = tuple("abcdefgh")
    one, other = images(texts, *[["NM"]] * 8), images(texts, *[["VM"]] * 7, ["NM"])
    by_prompt = measure_rise(one, other)
    by_thing = measure_rise(one, other, units=dict.fromkeys(one["prompt_id"][:7].to_list(), "thing"))
    assert (by_prompt.num_units, by_prompt.p_value) == (8, 2**-7)
    assert (by_thing.num_units, by_thing.p_value) == (2, 0.5)
    assert by_prompt.low > 0 >= by_thing.low


def test_with_one_image_a_prompt_it_is_mcnemars_exact_test():
    from scipy.stats import binomtest

    for gained, lost in ((9, 2), (3, 3), (0, 4), (25, 10)):
        expected = binomtest(gained, gained + lost, alternative="greater").pvalue
        assert sign_flip_test([1] * gained + [-1] * lost + [0] * 50) == pytest.approx(expected)


@given(st.lists(st.integers(-6, 6), max_size=8))
def test_it_is_the_share_of_all_signs_that_reach_the_sum(changes):
    sums = [
        sum(sign * abs(c) for sign, c in zip(signs, changes, strict=True))
        for signs in product((1, -1), repeat=len(changes))
    ]
    expected = sum(value >= sum(changes) for value in sums) / len(sums)
    assert sign_flip_test(changes) == pytest.approx(expected)


def test_chance_alone_is_rarely_called_a_rise():
    import numpy as np

    draws = np.random.default_rng(0)
    rare = [sign_flip_test((draws.binomial(5, 0.3, 40) - draws.binomial(5, 0.3, 40)).tolist()) for _ in range(400)]
    assert np.mean([p <= 0.05 for p in rare]) <= 0.08
