"""Nearest references: the same as a plain double loop over region_similarity."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fbmem_core.audit import CRITERIA
from fbmem_core.errors import InputError
from fbmem_core.neighbors import ImageSet, load_image_set, nearest_references, pair_similarities
from fbmem_core.similarity.regions import region_similarity
from tests.core.test_ms_ssim import SIDE, images, patch, variant

REGIONS = ["masked", "composite"]


def image_set(prefix, pictures, alphas):
    pixels = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return ImageSet(tuple(f"{prefix}{row}" for row in range(len(pixels))), pixels, alphas[:, 0].numpy())


@pytest.fixture(scope="module")
def references():
    """35 references (more than one chunk): one undecided, one without foreground, two equal ones."""
    pictures = images(1, 35)
    pictures[7] = pictures[3]
    alphas = torch.cat([patch(10 + row, 20, 60 + row, 90) for row in range(35)])
    alphas[7] = alphas[3]
    alphas[4] = torch.nan
    alphas[5] = 0
    return image_set("r", pictures, alphas)


@pytest.fixture(scope="module")
def generations(references):
    """Four generations: a near copy, a distant variant, one undecided, one of foreground alone."""
    known, _ = references.tensors(slice(0, 35))
    pictures = torch.cat([variant(known[i : i + 1], 50 + i, a) for i, a in ((3, 0.1), (6, 0.5), (8, 0.2), (9, 0.2))])
    alphas = torch.cat([patch(13, 20, 63, 90), patch(20, 30, 60, 60), patch(0, 0, 0, 0), patch(0, 0, SIDE, SIDE)])
    alphas[2] = torch.nan
    return image_set("g", pictures, alphas)


@pytest.fixture(scope="module", params=REGIONS)
def double_loop(request, generations, references):
    """The region definition and, by it, the similarity of every (generation, criterion, reference)."""
    region, table = request.param, {}
    for row, generation in enumerate(generations.ids):
        x, alpha_x = generations.tensors(slice(row, row + 1))
        for column, reference in enumerate(references.ids):
            y, alpha_y = references.tensors(slice(column, column + 1))
            similarity = region_similarity(x, y, alpha_x, alpha_y, region=region)
            for criterion in CRITERIA:
                table[generation, criterion, reference] = getattr(similarity, criterion).item()
    return region, table


def test_the_nearest_references_are_those_of_a_plain_double_loop(generations, references, double_loop):
    region, table = double_loop
    top_k, floor = 3, 0.45
    found = dict(nearest_references(generations, references, region=region, top_k=top_k, floor=floor))
    assert tuple(found) == generations.ids
    for generation, neighbors in found.items():
        for criterion in CRITERIA:
            defined = {r: value for r in references.ids if not math.isnan(value := table[generation, criterion, r])}
            ranked = sorted(defined.values(), reverse=True)
            count = max(min(top_k, len(ranked)), sum(value >= floor for value in ranked))
            mine = [n for n in neighbors if n.criterion == criterion]
            assert [n.rank for n in mine] == list(range(1, count + 1))
            assert all(n.complete for n in mine)
            assert [n.similarity for n in mine] == pytest.approx(ranked[:count], abs=1e-5)
            assert [n.similarity for n in mine] == pytest.approx([defined[n.reference_id] for n in mine], abs=1e-5)
            assert len({n.reference_id for n in mine}) == count


def test_every_pair_has_the_similarity_of_a_plain_double_loop(generations, references, double_loop):
    region, table = double_loop
    for generation, similarities in pair_similarities(generations, references, region=region):
        for criterion in CRITERIA:
            expected = [table[generation, criterion, reference] for reference in references.ids]
            assert getattr(similarities, criterion).tolist() == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_equally_similar_references_keep_the_order_of_the_set(generations, references):
    [(_, neighbors)] = nearest_references(generations.select([0]), references, top_k=2, floor=1.0)
    full = [n for n in neighbors if n.criterion == "full"]
    assert [(n.rank, n.reference_id) for n in full] == [(1, "r3"), (2, "r7")]
    assert full[0].similarity == full[1].similarity


def test_an_undecided_generation_has_neighbors_by_its_whole_image_alone(generations, references):
    [(name, neighbors)] = nearest_references(generations.select([2]), references, top_k=2, floor=1.0)
    assert name == "g2"
    assert [(n.criterion, n.rank) for n in neighbors] == [("full", 1), ("full", 2)]


def test_every_reference_over_the_floor_is_a_neighbor_whatever_top_k_says(generations, references):
    [(_, neighbors)] = nearest_references(generations.select([0]), references, top_k=1, floor=0.0)
    by_criterion = {c: sum(n.criterion == c for n in neighbors) for c in CRITERIA}
    assert by_criterion == {"full": 35, "foreground": 34, "background": 34, "average": 34}


def test_a_reference_set_smaller_than_top_k_is_returned_whole(generations, references):
    few = references.select([3, 0])
    [(_, neighbors)] = nearest_references(generations.select([0]), few, top_k=5)
    assert [(n.rank, n.reference_id) for n in neighbors if n.criterion == "full"] == [(1, "r3"), (2, "r0")]


def test_a_generation_has_the_same_neighbors_alone_and_among_others(generations, references):
    few = references.select(range(8))
    together = dict(nearest_references(generations, few))
    for row, name in enumerate(generations.ids):
        [(_, alone)] = nearest_references(generations.select([row]), few)
        assert alone == together[name]


def test_without_references_there_are_no_neighbors(generations, references):
    assert dict(nearest_references(generations, references.select([]))) == {name: [] for name in generations.ids}


def test_sets_of_different_sizes_are_refused(generations):
    larger = ImageSet(("a",), np.zeros((1, 192, 192, 3), np.uint8), np.zeros((1, 192, 192), np.float32))
    with pytest.raises(InputError, match=r"one size, but got \(176, 176\) and \(192, 192\)\. Load both"):
        list(nearest_references(generations, larger))


def test_images_and_mattes_are_read_at_one_size(tmp_path):
    Image.new("RGB", (40, 20), (255, 128, 0)).save(tmp_path / "a.png")
    matte = Image.new("L", (40, 20), 0)
    matte.paste(255, (20, 0, 40, 20))
    matte.save(tmp_path / "matte.png")
    items = [("a", tmp_path / "a.png", tmp_path / "matte.png"), ("b", tmp_path / "a.png", None)]
    loaded = load_image_set(items, size=16)
    assert loaded.ids == ("a", "b")
    assert loaded.images.shape == (2, 16, 16, 3)
    assert (loaded.images == (255, 128, 0)).all()
    assert loaded.alphas.shape == (2, 16, 16)
    assert loaded.alphas[0, :, :6].max() == 0
    assert loaded.alphas[0, :, 10:].min() == 1
    assert np.isnan(loaded.alphas[1]).all()
    x, alpha = loaded.tensors(slice(0, 2))
    assert (x.shape, alpha.shape) == ((2, 3, 16, 16), (2, 1, 16, 16))
    assert x[0, :, 3, 5].tolist() == pytest.approx([1.0, 128 / 255, 0.0])


def test_the_images_that_follow_a_selection_are_in_its_order(references):
    chosen = references.select([5, 2])
    assert chosen.ids == ("r5", "r2")
    assert (chosen.images == references.images[[5, 2]]).all()
    assert len(chosen) == 2
