"""Pairs compared in one pass each: the same factors as the measures give plane by plane."""

import pytest
import torch

from fbmem_core.retrieval import bounds
from fbmem_core.retrieval.neighbors import nearest_references
from fbmem_core.retrieval.planes import OBJECT, Planes
from fbmem_core.similarity.fused import Batched, fused
from fbmem_core.similarity.regions import MEASURES
from tests.core.test_image_sets import image_set
from tests.core.test_ms_ssim import images, patch
from tests.core.test_neighbors import MASKINGS, generation_set, reference_set

NUM_SCALES = 5


@pytest.fixture(scope="module")
def generations():
    return generation_set()


@pytest.fixture(scope="module")
def references():
    """Near and far, with a whole, an empty and a far corner's foreground."""
    corner = image_set("c", images(900, 1), patch(170, 168, 5, 7))
    known = reference_set().select(range(8))
    pictures = torch.cat([known.tensors(torch.arange(8))[0], corner.tensors(torch.arange(1))[0]])
    alphas = torch.cat([known.tensors(torch.arange(8))[1], corner.tensors(torch.arange(1))[1]])
    return image_set("r", pictures, alphas)


def planes_of(images_of, masking, part, scale):
    planes = Planes(images_of, masking)
    rows = planes.image_of_object if part == OBJECT else images_of.ids
    return planes.side(part)(scale, torch.arange(len(rows)))


def assert_same_factors(measure, x, y, pairs, bright):
    both = []
    for by in (fused(measure), Batched(measure)):
        both.append(by.factors(by.statistics(x), by.statistics(y), pairs, bright))
    (factors, textures), (expected_factors, expected_textures) = both
    assert factors == pytest.approx(expected_factors.numpy(), abs=2e-5)
    assert textures == pytest.approx(expected_textures.numpy(), abs=2e-5)


@pytest.mark.parametrize("scale", range(NUM_SCALES))
@pytest.mark.parametrize(("masking", "part"), [(r, part) for r in MASKINGS for part in MEASURES[r]])
def test_factors_are_those_of_the_measure(generations, references, masking, part, scale):
    x, y = planes_of(generations, masking, part, scale), planes_of(references, masking, part, scale)
    pairs = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(y)))
    for bright in (pairs.sum(dim=1) % 2 == 0, torch.zeros(len(pairs), dtype=torch.bool)):
        assert_same_factors(MEASURES[masking][part], x, y, pairs, bright)


@pytest.mark.parametrize("part", ["full", "object", "background"])
def test_sides_may_differ_and_be_odd(part):
    measure = MEASURES["masked"][part]
    planes = [measure.planes(images(at, 1, 41, 67), patch(5, 3, 20, 33, 67)[..., :41, :]) for at in (1, 2)]
    pairs = torch.tensor([[0, 0], [0, 1], [1, 1]])
    assert_same_factors(measure, *(p.expand(2, -1, -1, -1) for p in planes), pairs, torch.tensor([False, True, False]))


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_search_finds_the_same_where_pairs_are_compared_plane_by_plane(
    generations, references, masking, monkeypatch
):
    expected = list(nearest_references(generations, references, masking=masking))
    monkeypatch.setattr(bounds, "comparison", lambda measure, device: Batched(measure))
    for (_, found), (_, neighbors) in zip(
        nearest_references(generations, references, masking=masking), expected, strict=True
    ):
        assert [(n.region, n.reference_id) for n in found] == [(n.region, n.reference_id) for n in neighbors]
        assert [n.similarity for n in found] == pytest.approx([n.similarity for n in neighbors], abs=1e-5)
