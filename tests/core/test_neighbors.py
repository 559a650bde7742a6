"""Nearest references: the same as a plain double loop over region_similarity, as far as is promised."""

import math

import pytest
import torch

from fbmem_core.labels import TAU, PairSimilarity, label_generation
from fbmem_core.retrieval.neighbors import nearest_references, pair_similarities
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.regions import region_similarity
from tests.core.test_image_sets import image_set
from tests.core.test_ms_ssim import SIDE, images, patch, variant

MASKINGS = ["masked", "composite"]
FLOORS = [0.0, 0.45, 0.6, 0.8]
BASES = images(100, 3)
THING = patch(40, 30, 80, 90)
UNDECIDED = torch.full((1, 1, SIDE, SIDE), torch.nan)


def reference_set():
    """35 variants of three pictures, from near to unrelated; two are equal, some have no matte or an extreme one."""
    pictures = torch.cat([variant(BASES[i % 3][None], 200 + i, (i // 3) / 20) for i in range(35)])
    alphas = torch.cat([patch(40 + i % 3, 30, 80 - i % 5, 90 + i) for i in range(35)])
    pictures[7], alphas[7] = pictures[3], alphas[3]
    alphas[4], alphas[5], alphas[6] = UNDECIDED, 0, 1
    return image_set("r", pictures, alphas)


def generation_set():
    """A near copy, a variant, an undecided one, one of foreground alone, a copied foreground, something unrelated."""
    other = images(300, 3)
    pasted = BASES[2] * THING + other[1:2] * (1 - THING)
    mixed = variant(BASES, 301, 0.3)
    pictures = torch.cat([variant(BASES[:1], 302, 0.05), mixed[1:2], mixed[2:], mixed[:1], pasted, other[2:]])
    whole = patch(0, 0, SIDE, SIDE)
    return image_set("g", pictures, torch.cat([THING, patch(50, 30, 60, 80), UNDECIDED, whole, THING, THING]))


@pytest.fixture(scope="module")
def references():
    return reference_set()


@pytest.fixture(scope="module")
def generations():
    return generation_set()


def one(images_of, row):
    """The picture and the matte of a row; NaN is an undecided matte."""
    picture, alpha = images_of.tensors(torch.tensor([row]))
    return picture, alpha if images_of.decided[row] else alpha * torch.nan


@pytest.fixture(scope="module", params=MASKINGS)
def double_loop(request, generations, references):
    """The region definition and, by it, the similarity of every (generation, criterion): {reference: value}."""
    masking, table = request.param, {(g, c): {} for g in generations.ids for c in REGIONS}
    for row, generation in enumerate(generations.ids):
        x, alpha_x = one(generations, row)
        for column, reference in enumerate(references.ids):
            y, alpha_y = one(references, column)
            similarity = region_similarity(x, y, alpha_x, alpha_y, masking=masking)
            for region in REGIONS:
                table[generation, region][reference] = getattr(similarity, region).item()
    return masking, table


def defined(values):
    """(reference, value), highest first; equal ones in the order of the set."""
    return sorted(((r, v) for r, v in values.items() if not math.isnan(v)), key=lambda pair: -pair[1])


def of(found, region):
    return [neighbor for neighbor in found if neighbor.region == region]


def assert_these(mine, ranked):
    """These references, in this order, and none above them missing."""
    assert [n.reference_id for n in mine] == [reference for reference, _ in ranked]
    assert [n.similarity for n in mine] == pytest.approx([value for _, value in ranked], abs=1e-5)
    assert all(n.complete for n in mine)


def assert_promised(mine, ranked, *, floor, top_k, best_is_known):
    """What is promised of one criterion of one generation."""
    assert [n.rank for n in mine] == list(range(1, len(mine) + 1))
    if floor == 0:
        assert_these(mine, ranked[: max(top_k, int(best_is_known), sum(value >= TAU for _, value in ranked))])
    elif above := [(reference, value) for reference, value in ranked if value >= floor]:
        assert_these(mine, above)
    elif best_is_known:
        assert_these(mine, ranked[:1])
    elif top_k == 0:
        assert mine == []
    else:
        assert len(mine) == min(1, len(ranked))
        for n in mine:
            assert n.similarity == pytest.approx(dict(ranked)[n.reference_id], abs=1e-5)
            assert not n.complete or n.reference_id == ranked[0][0]


@pytest.mark.parametrize("top_k", [3, 0])
@pytest.mark.parametrize("floor", FLOORS)
def test_the_nearest_references_are_those_of_a_plain_double_loop(generations, references, double_loop, floor, top_k):
    masking, table = double_loop
    found = dict(nearest_references(generations, references, masking=masking, top_k=top_k, floor=floor))
    assert tuple(found) == generations.ids
    for (generation, region), values in table.items():
        parts = [*table[generation, "foreground"].values(), *table[generation, "background"].values()]
        best_is_known = region == "average" and any(value >= TAU for value in parts)
        mine = of(found[generation], region)
        assert_promised(mine, defined(values), floor=floor, top_k=top_k, best_is_known=best_is_known)


def test_the_double_loop_has_every_case(double_loop):
    """Or the test above would promise less than it seems to."""
    _, table = double_loop
    highest = {key: max([value for _, value in defined(values)], default=None) for key, values in table.items()}
    assert highest["g0", "full"] > TAU
    assert highest["g2", "foreground"] is None
    assert all(highest["g5", region] < 0.8 for region in REGIONS)
    assert highest["g4", "foreground"] > TAU > highest["g4", "average"]


def test_the_highest_average_is_found_below_the_floor_where_a_region_is_copied(generations, references, double_loop):
    masking, table = double_loop
    [(_, found)] = nearest_references(generations.select([4]), references, masking=masking, floor=TAU)
    best, value = defined(table["g4", "average"])[0]
    assert value < TAU
    assert_these(of(found, "average"), [(best, value)])


def labels_of(table, region_pairs, rule, tau):
    """The label of each generation by these (reference ids by generation) of its pairs."""
    labels = {}
    for generation, names in region_pairs.items():
        values = [[table[generation, region][name] for region in REGIONS[:3]] for name in names]
        pairs = [
            PairSimilarity(name, full, *(None if math.isnan(part) else part for part in parts))
            for name, (full, *parts) in zip(names, values, strict=True)
        ]
        fraction = None if generation == "g2" else 0.3
        labels[generation] = label_generation(pairs, foreground_fraction=fraction, rule=rule, tau=tau).label
    return labels


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize(("tau", "floor"), [(0.8, 0.8), (0.8, 0.6), (0.7, 0.7), (0.7, 0.0)])
def test_labels_are_those_of_every_pair(generations, references, double_loop, rule, tau, floor):
    masking, table = double_loop
    found = nearest_references(generations, references, masking=masking, tau=tau, floor=floor)
    pairs = {generation: sorted({n.reference_id for n in neighbors}) for generation, neighbors in found}
    expected = labels_of(table, dict.fromkeys(generations.ids, references.ids), rule, tau)
    assert labels_of(table, pairs, rule, tau) == expected
    assert len(set(expected.values())) > 1


def test_every_pair_has_the_similarity_of_a_plain_double_loop(generations, references, double_loop):
    masking, table = double_loop
    found = dict(pair_similarities(generations, references, masking=masking))
    assert tuple(found) == generations.ids
    for generation, pairs in found.items():
        assert tuple(pair.reference_id for pair in pairs) == references.ids
        assert_values(pairs, generation, table)


def test_some_pairs_have_the_similarity_of_a_plain_double_loop(generations, references, double_loop):
    masking, table = double_loop
    wanted = [("g4", "r9"), ("g0", "r34"), ("g2", "r0"), ("g0", "r5"), ("g3", "r6"), ("g0", "r4")]
    found = dict(pair_similarities(generations, references, wanted, masking=masking))
    names = {generation: [pair.reference_id for pair in pairs] for generation, pairs in found.items()}
    expected = {"g0": ["r4", "r5", "r34"], "g1": [], "g2": ["r0"], "g3": ["r6"], "g4": ["r9"], "g5": []}
    assert names == expected
    assert list(names) == list(expected)
    for generation, pairs in found.items():
        assert_values(pairs, generation, table)


def assert_values(pairs, generation, table):
    for pair in pairs:
        for region in REGIONS:
            expected = table[generation, region][pair.reference_id]
            found = getattr(pair, region)
            assert found == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-5))
