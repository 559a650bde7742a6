"""Labels: every branch of a pair, and what a generation makes of its pairs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbmem_core.labels import SEVERITY, GenerationLabel, PairSimilarity, label_generation, label_pair, matches

RULES = ("paper", "released", "per_region")
VALUES = st.sampled_from([0.0, 0.5, 0.7999, 0.8, 0.9, 1.0])
FRACTIONS = st.sampled_from([0.0, 0.03, 0.031, 0.5, 0.969, 0.97, 1.0])
PAIRS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=5).map(
    lambda rows: [PairSimilarity(f"r{number}", *row) for number, row in enumerate(rows)]
)


def pair(full, foreground, background, **objects):
    return PairSimilarity("r", full, foreground, background, **objects)


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize(
    ("foreground", "background", "fraction", "expected"),
    [
        (0.8, 0.8, 0.5, "VM"),
        (0.8, 0.79, 0.5, "FM"),
        (0.79, 0.8, 0.5, "BM"),
        (0.79, 0.79, 0.5, "NM"),
        # no foreground: the background alone is compared
        (1.0, 0.79, 0.03, "NM"),
        (1.0, 1.0, 0.0301, "VM"),
        # no background: the foreground alone is compared
        (1.0, 1.0, 0.97, "FM"),
        (0.79, 1.0, 0.97, "NM"),
        (1.0, 1.0, 1.0, "FM"),
        (1.0, 1.0, 0.9699, "VM"),
        # undecided or undefined regions are no match
        (None, 0.8, 0.5, "BM"),
        (0.8, None, 0.5, "FM"),
        (None, None, 0.5, "NM"),
        (math.nan, 0.8, 0.5, "BM"),
        (0.8, math.nan, 0.5, "FM"),
        # an undecided matte decides nothing
        (1.0, 1.0, None, None),
        (None, None, None, None),
    ],
)
def test_regions_decide_the_label_of_a_pair_whose_whole_images_differ(foreground, background, fraction, expected, rule):
    assert label_pair(pair(0.79, foreground, background), foreground_fraction=fraction, rule=rule) == expected


@pytest.mark.parametrize("fraction", [0.0, 0.03])
def test_a_copied_background_is_all_there_is_where_there_is_no_foreground(fraction):
    """By the authors' code too: an identical landscape is a copy."""
    labels = {rule: label_pair(pair(0.79, None, 1.0), foreground_fraction=fraction, rule=rule) for rule in RULES}
    assert labels == {"paper": "BM", "released": "VM", "per_region": "VM"}


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0, None])
def test_by_the_paper_equal_whole_images_are_verbatim_whatever_the_regions_say(fraction):
    assert label_pair(pair(0.8, 0.0, 0.0), foreground_fraction=fraction, rule="paper") == "VM"
    assert label_pair(pair(0.8, None, None), foreground_fraction=fraction, rule="paper") == "VM"


def test_the_released_rule_never_looks_at_the_whole_image():
    assert label_pair(pair(1.0, 0.0, 0.0), foreground_fraction=0.5, rule="released") == "NM"
    assert label_pair(pair(1.0, None, None), foreground_fraction=None, rule="released") is None


def test_both_thresholds_can_be_moved():
    assert label_pair(pair(0.6, 0.0, 0.0), foreground_fraction=0.5, tau=0.6, rule="paper") == "VM"
    assert label_pair(pair(0.0, 0.6, 0.6), foreground_fraction=0.5, tau=0.6) == "VM"
    assert label_pair(pair(0.0, 0.9, 0.9), foreground_fraction=0.2, beta=0.2, rule="paper") == "BM"
    assert label_pair(pair(0.0, 0.9, 0.9), foreground_fraction=0.8, beta=0.2, rule="paper") == "FM"


def test_foreground_and_background_may_come_from_different_references():
    pairs = [
        PairSimilarity("castle", 0.31, 0.92, 0.20),
        PairSimilarity("beach", 0.45, 0.10, 0.95),
        PairSimilarity("other", 0.50, 0.30, 0.30),
    ]
    assert label_generation(pairs, foreground_fraction=0.4) == GenerationLabel(
        label="FM",
        full_similarity=0.50,
        foreground_similarity=0.92,
        background_similarity=0.95,
        full_reference_id="other",
        foreground_reference_id="castle",
        background_reference_id="beach",
        foreground_copied=True,
        background_copied=True,
        transform="whole",
    )


def test_by_the_release_only_the_reference_of_the_highest_average_counts():
    pairs = [PairSimilarity("castle", 0.99, 0.92, 0.10), PairSimilarity("beach", 0.45, 0.70, 0.75)]
    assert label_generation(pairs, foreground_fraction=0.4, rule="released") == GenerationLabel(
        "NM", 0.45, 0.70, 0.75, "beach", "beach", "beach", False, False, "whole"
    )


def test_by_the_release_a_pair_without_an_average_never_counts():
    pairs = [PairSimilarity("castle", 0.99, None, 0.99), PairSimilarity("beach", 0.45, 0.1, 0.2)]
    assert label_generation(pairs, foreground_fraction=0.4, rule="released").full_reference_id == "beach"
    nobody = label_generation(pairs[:1], foreground_fraction=0.4, rule="released")
    assert nobody == GenerationLabel("NM", *(None,) * 6, False, False)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_of_equally_similar_references_the_first_by_id_is_named(rule):
    pairs = [PairSimilarity(name, 0.9, 0.9, 0.9) for name in ("c", "a", "b")]
    label = label_generation(pairs, foreground_fraction=0.4, rule=rule)
    assert {label.full_reference_id, label.foreground_reference_id, label.background_reference_id} == {"a"}


def test_an_undecided_matte_leaves_the_label_open_unless_the_whole_image_decides():
    different = PairSimilarity("a", 0.4, None, None)
    same = PairSimilarity("b", 0.85, None, None)
    assert label_generation([different], foreground_fraction=None).label is None
    assert label_generation([different, same], foreground_fraction=None) == GenerationLabel(
        "VM", 0.85, None, None, "b", None, None, transform="whole", undecided="matte"
    )
    assert label_generation([different, same], foreground_fraction=None, rule="released").label is None


def test_an_undecided_reference_takes_no_other_reference_with_it():
    pairs = [PairSimilarity("undecided", 0.4, None, None), PairSimilarity("copied", 0.5, 0.9, 0.1)]
    label = label_generation(pairs, foreground_fraction=0.4)
    assert (label.label, label.foreground_reference_id) == ("FM", "copied")


def test_without_any_pair_nothing_is_memorized_and_an_undecided_matte_stays_undecided():
    nothing = (None,) * 6
    assert label_generation([], foreground_fraction=0.4) == GenerationLabel("NM", *nothing, False, False)
    assert label_generation([], foreground_fraction=None) == GenerationLabel(None, *nothing, undecided="matte")


@given(PAIRS, FRACTIONS)
def test_by_the_paper_a_generation_has_the_label_of_its_most_severe_pair(pairs, fraction):
    labels = [label_pair(p, foreground_fraction=fraction, rule="paper") for p in pairs]
    label = label_generation(pairs, foreground_fraction=fraction, rule="paper").label
    assert SEVERITY[label] == max(SEVERITY[x] for x in labels)


@given(PAIRS, FRACTIONS, st.sampled_from(["paper", "released"]), st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(pairs, fraction, rule, random):
    shuffled = random.sample(pairs, len(pairs))
    expected = label_generation(pairs, foreground_fraction=fraction, rule=rule)
    assert label_generation(shuffled, foreground_fraction=fraction, rule=rule) == expected


@given(PAIRS, FRACTIONS)
def test_one_more_reference_never_makes_a_label_less_severe(pairs, fraction):
    fewer = label_generation(pairs[1:], foreground_fraction=fraction).label
    assert SEVERITY[label_generation(pairs, foreground_fraction=fraction).label] >= SEVERITY[fewer]


def test_severity_ranks_foregrounds_over_backgrounds():
    assert SEVERITY == {"VM": 2.0, "FM": 1.5, "BM": 0.5, "NM": 0.0}


def test_only_copied_regions_are_matches():
    assert [label for label in ("VM", "FM", "BM", "NM", None) if matches(label)] == ["VM", "FM", "BM"]


def test_the_average_needs_both_regions():
    assert PairSimilarity("a", 0.1, 0.4, 0.8).average == pytest.approx(0.6)
    assert PairSimilarity("a", 0.1, None, 0.8).average is None
    assert PairSimilarity("a", 0.1, 0.4, None).average is None


@pytest.mark.parametrize(
    ("fraction", "foreground", "background", "label"),
    [
        (0.7, 0.95, 0.2, "FM"),  # a large copied foreground, though the whole image is similar
        (0.05, 0.2, 0.95, "BM"),  # a small new object before a copied background
        (0.4, 0.9, 0.9, "VM"),
        (0.4, 0.2, 0.2, "NM"),
        (0.01, None, 0.95, "VM"),  # there is nothing but background, and it is copied
        (0.99, 0.95, None, "VM"),
        (0.01, 0.95, 0.2, "NM"),
    ],
)
def test_rule_regions_asks_every_region_and_not_the_whole(fraction, foreground, background, label):
    found = label_pair(pair(0.95, foreground, background), foreground_fraction=fraction, rule="per_region")
    assert found == label


def test_rule_regions_asks_the_whole_where_the_matte_is_undecided():
    assert label_pair(pair(0.95, None, None), foreground_fraction=None, rule="per_region") == "VM"
    assert label_pair(pair(0.5, None, None), foreground_fraction=None, rule="per_region") is None


@pytest.mark.parametrize(
    ("background", "common", "areas", "similarities", "label"),
    [
        (0.9, 0.95, (0.2, 0.1), (0.95, 0.9), "VM"),
        (0.9, 0.95, (0.2, 0.1), (0.95, 0.1), "FM"),  # one of two objects is new: not the whole
        (0.9, 0.95, (0.1, 0.2), (0.95, 0.1), "BM"),  # a new object before the scenery and what stands in it
        (0.9, 0.20, (0.2, 0.1), (0.95, 0.1), "BM"),  # a matte that takes scenery for an object
        (0.9, 0.95, (0.2, 0.01), (0.95, None), "VM"),  # an object without texture decides nothing
        (0.9, None, (0.2,), (None,), "BM"),
        (0.2, 0.95, (0.2, 0.1), (0.95, 0.1), "FM"),  # a copied object before other scenery, beside a new one
        (0.2, None, (0.2, 0.1), (0.95, 0.1), "FM"),  # the reference's matte misses it
        (0.2, 0.95, (0.2, 0.02), (0.1, 0.95), "NM"),  # a copied object smaller than beta
        (0.2, 0.50, (0.2, 0.1), (0.5, 0.1), "NM"),
    ],
)
def test_objects_are_judged_one_by_one(background, common, areas, similarities, label):
    foreground = max((value for value in similarities if value is not None), default=None)
    one = pair(
        0.9, foreground, background, common_foreground=common, object_areas=areas, object_similarities=similarities
    )
    assert label_pair(one, foreground_fraction=sum(areas)) == label


def test_an_object_that_the_generations_matte_misses_is_seen_by_the_references():
    one = pair(0.3, 0.9, 0.2, reference_object_areas=(0.2,), reference_object_similarities=(0.9,))
    assert label_pair(one, foreground_fraction=0.0) == "FM"


def test_both_copied_regions_are_named_where_they_come_from_two_references():
    pairs = [PairSimilarity("castle", 0.3, 0.95, 0.1), PairSimilarity("beach", 0.4, 0.2, 0.97)]
    label = label_generation(pairs, foreground_fraction=0.3)
    assert (label.label, label.foreground_copied, label.background_copied) == ("FM", True, True)
    assert (label.foreground_reference_id, label.background_reference_id) == ("castle", "beach")


PLAIN = {"undecided_regions": ("background",)}


@pytest.mark.parametrize(
    ("full", "foreground", "background", "label", "background_copied"),
    [
        (0.95, 0.95, None, "VM", None),  # a product on a white page, and the same picture
        (0.50, 0.95, None, "FM", None),  # the same product on a page of another brightness
        (0.95, 0.20, None, "NM", None),  # another product on a white page
        (0.50, 0.95, 0.10, "FM", None),  # before a scenery in the reference: this pair decides, but no white page can
    ],
)
def test_before_a_background_that_shows_nothing_the_foreground_decides(
    full, foreground, background, label, background_copied
):
    found = label_generation([pair(full, foreground, background, **PLAIN)], foreground_fraction=0.3)
    assert (found.label, found.background_copied, found.undecided) == (label, background_copied, "background")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("fraction", "plain"), [(0.0, "background"), (0.5, "foreground, background"), (0.99, "foreground")]
)
def test_a_picture_that_shows_nothing_has_no_label_and_is_no_silent_nm(rule, fraction, plain):
    one = pair(0.7, None, None, undecided_regions=tuple(plain.split(", ")))
    found = label_generation([one], foreground_fraction=fraction, rule=rule)
    assert (found.label, found.undecided) == (None, plain)
    assert (found.foreground_copied, found.background_copied) == tuple(
        None if region in plain else False for region in ("foreground", "background")
    )


def test_a_region_that_shows_nothing_leaves_the_others_label():
    one = pair(0.7, None, 0.9, undecided_regions=("foreground",))
    found = label_generation([one], foreground_fraction=0.3)
    assert (found.label, found.foreground_copied, found.background_copied) == ("BM", None, True)
    assert found.undecided == "foreground"
