"""Nearest references: rank, completeness and order in single cases, and sets that are empty, small or refused."""

import dataclasses

import numpy as np
import pytest
import torch

from fbmem_core.errors import InputError
from fbmem_core.labels import TAU, label_generation
from fbmem_core.retrieval import bounds
from fbmem_core.retrieval import neighbors as neighbors_module
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.neighbors import nearest_pairs, nearest_references, pair_similarities
from fbmem_core.retrieval.planes import Planes
from fbmem_core.similarity import REGIONS, fused
from tests.core.test_image_sets import image_set
from tests.core.test_ms_ssim import SIDE, images, patch, variant
from tests.core.test_neighbors import BASES, FLOORS, MASKINGS, THING, generation_set, of, reference_set


@pytest.fixture(scope="module")
def references():
    """The first 12: near and far ones, two equal ones, an undecided one, one without each region."""
    return reference_set().select(range(12))


@pytest.fixture(scope="module")
def generations():
    return generation_set()


def assert_alike(found, expected):
    """The same neighbors but for rounding."""
    for one_of_these, other in zip(found, expected, strict=True):
        assert other.similarity == pytest.approx(one_of_these.similarity, abs=1e-6)
        assert dataclasses.replace(one_of_these, similarity=other.similarity) == other


@pytest.mark.parametrize("top_k", [5, 0])
def test_rule_release_labels_by_the_highest_average_whatever_top_k_is(top_k):
    x = BASES[:1]
    pasted = x * THING + (1 - x) * (1 - THING)
    references = image_set("r", torch.cat([pasted, variant(x, 7, 0.45)]), THING.expand(2, -1, -1, -1))
    generation = image_set("g", x, THING)
    [(_, pairs)] = pair_similarities(generation, references)
    assert pairs[0].foreground > TAU > pairs[1].average > pairs[0].average
    [(_, found)] = nearest_references(generation, references, floor=TAU, top_k=top_k)
    names = {n.reference_id for n in found}
    some = [pair for pair in pairs if pair.reference_id in names]
    labels = [label_generation(p, foreground_fraction=0.3, rule="released").label for p in (pairs, some)]
    assert labels == ["NM", "NM"]


def grainy_and_mixed(grain, amount):
    """A picture, and it with fine grain, which coarse scales do not see, and mixed with another, which they do."""
    x = BASES[:1]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    pictures = torch.cat([(x + grain * noise).clamp(0, 1), variant(x, 7, amount)])
    return image_set("g", x, THING), image_set("r", pictures, THING.expand(2, -1, -1, -1))


@pytest.mark.parametrize(("floor", "grain", "amount"), [(0.8, 0.3, 0.6), (0.6, 0.5, 0.6)])
def test_what_only_looks_nearest_is_not_called_complete(floor, grain, amount):
    generation, references = grainy_and_mixed(grain, amount)
    [(_, pairs)] = pair_similarities(generation, references)
    [(_, found)] = nearest_references(generation, references, floor=floor)
    assert floor > pairs[0].full > pairs[1].full + 0.01
    [looks_nearest] = of(found, "full")
    assert (looks_nearest.reference_id, looks_nearest.complete) == ("r1", False)
    assert looks_nearest.similarity == pytest.approx(pairs[1].full, abs=1e-5)


def test_a_nearest_reference_below_the_floor_is_complete_where_no_other_can_be_above_it():
    generation, references = grainy_and_mixed(0.3, 0.8)
    [(_, found)] = nearest_references(generation, references, floor=TAU)
    [nearest] = of(found, "full")
    assert (nearest.reference_id, nearest.complete) == ("r0", True)
    assert nearest.similarity < TAU


def test_no_pairs_have_no_similarities(generations, references):
    assert dict(pair_similarities(generations, references, [])) == {name: [] for name in generations.ids}


@pytest.mark.parametrize("floor", FLOORS)
def test_equally_similar_references_keep_the_order_of_the_set(generations, references, floor):
    [(_, found)] = nearest_references(generations.select([0]), references, top_k=12, floor=floor)
    for region in REGIONS:
        of_equal = [n for n in of(found, region) if n.reference_id in ("r3", "r7")]
        assert [n.reference_id for n in of_equal] == ["r3", "r7"]
        assert of_equal[0].similarity == pytest.approx(of_equal[1].similarity, abs=1e-6)
        assert of_equal[0].rank + 1 == of_equal[1].rank


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("side", [161, 200])
def test_many_equal_references_keep_the_order_of_the_set(masking, side):
    alpha = patch(40, 30, 80, 90, side)
    references = image_set("r", images(5, 1, side).expand(7, -1, -1, -1), alpha.expand(7, -1, -1, -1))
    generation = image_set("g", variant(images(5, 1, side), 9, 0.1), alpha)
    [(_, found)] = nearest_references(generation, references, masking=masking, floor=0.0, top_k=7)
    for region in REGIONS:
        assert [n.reference_id for n in of(found, region)] == list(references.ids), region


@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_an_undecided_generation_has_neighbors_by_its_whole_image_alone(generations, references, floor):
    [(name, found)] = nearest_references(generations.select([2]), references, floor=floor)
    assert name == "g2"
    assert {n.region for n in found} == {"full"}


def test_an_undecided_reference_is_a_neighbor_by_its_whole_image_alone(generations, references):
    [(_, found)] = nearest_references(generations.select([1]), references.select([4]), floor=0.0)
    assert [(n.region, n.reference_id) for n in found] == [("full", "r4")]


def test_a_reference_set_smaller_than_top_k_is_returned_whole(generations, references):
    [(_, found)] = nearest_references(generations.select([0]), references.select([9, 3]), top_k=5, floor=0.0)
    assert [(n.rank, n.reference_id) for n in of(found, "full")] == [(1, "r3"), (2, "r9")]


@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_a_generation_has_the_same_neighbors_alone_and_among_others(generations, references, floor):
    together = dict(nearest_references(generations, references, floor=floor))
    for row, name in enumerate(generations.ids):
        [(_, alone)] = nearest_references(generations.select([row]), references, floor=floor)
        assert_alike(alone, together[name])


@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_how_much_is_compared_at_once_does_not_matter(generations, references, monkeypatch, floor):
    expected = list(nearest_references(generations, references, floor=floor))
    monkeypatch.setattr(neighbors_module, "_BLOCK", 4)
    monkeypatch.setattr(fused._Fused, "chunk_floats", 3 * 3 * SIDE * SIDE)
    monkeypatch.setattr(bounds, "_STATISTICS_BYTES", 2 * 16 * 3 * SIDE * SIDE)
    for (name, found), (expected_name, neighbors) in zip(
        nearest_references(generations, references, floor=floor), expected, strict=True
    ):
        assert name == expected_name
        assert_alike(found, neighbors)


@pytest.mark.parametrize("masking", MASKINGS)
def test_planes_may_be_given_for_the_references_and_used_again(generations, references, masking):
    planes = Planes(references, masking)
    expected = list(nearest_references(generations, references, masking=masking))
    assert list(nearest_references(generations, planes, masking=masking)) == expected
    assert list(nearest_references(generations, planes, masking=masking)) == expected
    wanted = [("g0", "r3")]
    assert list(pair_similarities(generations, planes, wanted, masking=masking)) == list(
        pair_similarities(generations, references, wanted, masking=masking)
    )


@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_without_references_there_are_no_neighbors(generations, references, floor):
    nobody = {name: [] for name in generations.ids}
    assert dict(nearest_references(generations, references.select([]), floor=floor)) == nobody
    assert dict(pair_similarities(generations, references.select([]))) == nobody


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("floor", [0.0, 0.6])
def test_one_pass_gives_the_neighbors_and_every_value_of_their_pairs(generations, references, masking, floor):
    expected = dict(nearest_references(generations, references, masking=masking, floor=floor))
    found = list(nearest_pairs(generations, references, masking=masking, floor=floor))
    for name, listed, pairs in found:
        assert_alike(
            [n for n in listed if n.similarity >= max(floor, 0.01)],
            [n for n in expected[name] if n.similarity >= max(floor, 0.01)],
        )
        assert {n.reference_id for n in listed} <= {pair.reference_id for pair in pairs}
        for n in listed:  # what labels name as the nearest is what stands first here
            if n.rank == 1:
                assert n.similarity == pytest.approx(max(getattr(p, n.region) or 0.0 for p in pairs), abs=1e-6)
        wanted = [(name, pair.reference_id) for pair in pairs]
        again = dict(pair_similarities(generations, references, wanted, masking=masking))[name]
        assert [pair.reference_id for pair in pairs] == [pair.reference_id for pair in again]
        for pair, other in zip(pairs, again, strict=True):
            for region in REGIONS:
                assert getattr(pair, region) == pytest.approx(getattr(other, region), abs=1e-6)
            assert pair.object_similarities == pytest.approx(other.object_similarities, abs=1e-6)


def test_without_generations_nothing_is_found(generations, references):
    assert list(nearest_references(generations.select([]), references.select([0]))) == []


@pytest.mark.parametrize(("floor", "tau"), [(0.81, 0.8), (0.6, 0.5), (-0.1, 0.8)])
def test_a_floor_above_tau_or_below_0_is_refused(generations, references, floor, tau):
    with pytest.raises(InputError, match=rf"a floor from 0 to tau \({tau}\), but got {floor} in floor"):
        list(nearest_references(generations, references, floor=floor, tau=tau))


@pytest.mark.parametrize("search", [nearest_references, pair_similarities])
def test_sets_of_different_sizes_are_refused(generations, search):
    larger = ImageSet(("a",), np.zeros((1, 192, 192, 3), np.uint8), np.zeros((1, 192, 192), np.uint8), np.ones(1, bool))
    with pytest.raises(InputError, match=r"one size, but got 176 px and 192 px\. Load both"):
        list(search(generations, larger))
