"""Copies that moved: the search finds what brute force over transforms finds; every value is a plain one."""

import itertools

import numpy as np
import pytest
import torch

from fbmem_core.labels import TAU, label_generation
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.neighbors import pair_similarities
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.search import search, searched
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.alignment import Transform, shifted
from fbmem_core.similarity.masked import Background, Object
from fbmem_core.similarity.ms_ssim import compare
from fbmem_core.similarity.objects import MIN_AREA, objects
from tests.core.test_image_sets import image_set
from tests.core.test_ms_ssim import SIDE, images, patch

PICTURES = images(11, 3, grain=24)
MATTES = torch.cat([torch.maximum(patch(30 + 9 * n, 25, 60, 50), patch(100, 95 + 9 * n, 50, 55)) for n in range(3)])
REFERENCES = image_set("r", PICTURES, MATTES)
PIXELS = 9  # of the grid of shifts
GRID = [n * PIXELS / SIDE for n in range(-1, 2)]
EVERYWHERE = torch.ones(1, 1, SIDE, SIDE)
MOVED = {
    "shifted": (0, shifted(PIXELS / SIDE, -PIXELS / SIDE)),
    "mirrored": (1, shifted(0.0, 0.0, mirrored=True)),
    "mirrored and shifted": (2, shifted(-PIXELS / SIDE, PIXELS / SIDE, mirrored=True)),
}


def tensors(image, mask):
    """[1, 3, h, w] and [1, 1, h, w] of uint8 and bool arrays."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255, torch.from_numpy(mask.astype(np.float32))[None, None]


def moved_set():
    """Each kind of moved copy, with its matte moved too, and an unrelated picture."""
    pictures, alphas = [], []
    for row, transform in MOVED.values():
        pictures.append(transform.apply(REFERENCES.images[row]))
        alphas.append(transform.apply(REFERENCES.alphas[row]))
        pictures[-1][~transform.covered(SIDE)] = 90
    shown = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    mattes = torch.from_numpy(np.stack(alphas))[:, None] / 255
    return image_set("g", torch.cat([shown, images(99, 1, grain=24)]), torch.cat([mattes, MATTES[:1]]))


@pytest.fixture(scope="module")
def generations():
    return moved_set()


@pytest.fixture(scope="module")
def fast(generations):
    return list(MovedCopies(REFERENCES, "fast")(generations, [False] * len(generations)))


def brute_force(generation):
    """(similarity, reference, transform) of the best of every reference, mirrored or not, at every shift of a grid."""
    x, _ = tensors(generation, np.ones((SIDE, SIDE)))
    measure, best = Object(0.1), (-1.0, "", "")
    for row, mirrored in itertools.product(range(len(REFERENCES)), (False, True)):
        transforms = [shifted(right, down, mirrored=mirrored) for right, down in itertools.product(GRID, GRID)]
        moved = [tensors(t.apply(REFERENCES.images[row]), t.covered(SIDE)) for t in transforms]
        pictures, masks = (torch.cat(parts) for parts in zip(*moved, strict=True))
        values = compare(measure, measure.scales(x, EVERYWHERE), measure.scales(pictures, masks)).nan_to_num(-1.0)
        at = int(values.argmax())
        best = max(best, (float(values[at]), REFERENCES.ids[row], str(transforms[at])))
    return best


def test_the_search_finds_what_brute_force_over_mirror_and_shifts_finds(generations, fast):
    for row, pairs in enumerate(fast):
        value, reference, _ = brute_force(generations.images[row])
        best = max(pairs, key=lambda pair: pair.full, default=None)
        if value < TAU:
            assert row == len(MOVED)  # the unrelated one
            assert best is None or best.full < TAU
            continue
        assert best.reference_id == reference == f"r{list(MOVED.values())[row][0]}"
        assert best.full >= value - 0.01


def plain(measure, pair, mask_x, mask_y):
    """The similarity by the plain measure, of uint8 pictures and bool masks."""
    (x, shown_x), (y, shown_y) = (tensors(image, mask) for image, mask in zip(pair, (mask_x, mask_y), strict=True))
    if isinstance(measure, Background):
        shown_x, shown_y = 1 - shown_x, 1 - shown_y
    value = compare(measure, measure.scales(x, shown_x), measure.scales(y, shown_y)).item()
    return None if np.isnan(value) else pytest.approx(value, abs=1e-5)


def places(alpha):
    numbers = objects(alpha)
    return [numbers == number for number in range(1, int(numbers.max()) + 1)]


def test_every_value_of_a_moved_pair_is_that_of_the_plain_measure_after_its_transform(generations, fast):
    everywhere = np.ones((SIDE, SIDE), bool)
    for row, pairs in enumerate(fast[: len(MOVED)]):
        assert pairs
        for pair in pairs:
            transform = Transform.from_numbers(pair.transform_matrix)
            column, covered = REFERENCES.ids.index(pair.reference_id), transform.covered(SIDE)
            both = generations.images[row], transform.apply(REFERENCES.images[column])
            theirs = np.where(covered, transform.apply(REFERENCES.alphas[column]), 0).astype(np.uint8)
            assert pair.full == plain(Object(0.1), both, everywhere, covered)
            clear = generations.alphas[row] < 64, (theirs < 64) & covered
            assert pair.background == plain(Background(0.05), both, *clear)
            for alpha, values in (
                (generations.alphas[row], pair.object_similarities),
                (theirs, pair.reference_object_similarities),
            ):
                for place, value in zip(places(alpha), values, strict=True):
                    if covered[place].mean() >= 0.9:
                        assert value == plain(Object(MIN_AREA / 2), both, place & covered, everywhere)
                    else:
                        assert value == 0.0


def test_every_object_in_place_has_the_value_of_the_plain_measure():
    """And so the foreground, which is the best of them."""
    generations = image_set("g", torch.where(MATTES[1:2] > 0, PICTURES[1:2], images(5)), MATTES[:1])
    [(_, pairs)] = pair_similarities(generations, REFERENCES)
    everywhere = np.ones((SIDE, SIDE), bool)
    for pair, image, alpha in zip(pairs, REFERENCES.images, REFERENCES.alphas, strict=True):
        both = generations.images[0], image
        own = [plain(Object(MIN_AREA / 2), both, place, everywhere) for place in places(generations.alphas[0])]
        theirs = [plain(Object(MIN_AREA / 2), both[::-1], place, everywhere) for place in places(alpha)]
        assert list(pair.object_similarities) == own
        assert list(pair.reference_object_similarities) == theirs
        assert pair.foreground == max(*pair.object_similarities, *pair.reference_object_similarities)
        assert pair.object_areas == tuple(float(place.mean()) for place in places(generations.alphas[0]))


@pytest.fixture(scope="module")
def found(generations):
    planes, settings = Planes(REFERENCES, "masked"), SimilarityConfig(size=SIDE)
    return list(search(generations, planes, settings, moved=MovedCopies(REFERENCES, "fast")))


def test_moved_copies_are_labelled_and_named_with_their_transform(found):
    for (_, _, pairs), (row, transform) in zip(found, MOVED.values(), strict=False):
        label = label_generation(pairs, foreground_fraction=0.3)
        assert (label.label, label.full_reference_id) == ("VM", f"r{row}")
        assert label.transform.startswith(str(transform).split(" ", maxsplit=1)[0])
    _, _, pairs = found[-1]
    assert label_generation(pairs, foreground_fraction=0.3).label == "NM"


def test_labels_and_neighbors_name_one_nearest_reference(found):
    for name, neighbors, pairs in found:
        label = label_generation(pairs, foreground_fraction=0.3)
        first = {n.region: n for n in neighbors if n.rank == 1}
        for region in REGIONS[:3]:
            value, reference = (getattr(label, f"{region}_{what}") for what in ("similarity", "reference_id"))
            assert (first[region].reference_id, first[region].similarity) == (reference, value), (name, region)


def test_without_alignment_no_moved_copy_is_looked_for_and_a_finished_one_is_not_looked_for_elsewhere(generations):
    assert list(MovedCopies(REFERENCES, "none")(generations, [False] * 4)) == [[]] * 4
    assert list(MovedCopies(REFERENCES, "fast")(generations, [True] * 4)) == [[]] * 4


def test_no_two_pairs_of_a_generation_have_one_name(fast):
    for pairs in fast:
        names = [(pair.reference_id, pair.transform) for pair in pairs]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("settings", "masking", "words"),
    [
        ({"alignment": "none"}, "masked", "in place"),
        ({}, "composite", "in place"),
        ({}, "masked", "in place, mirrored, shifted by up to 12 % of the side"),
        ({"prefilter": "open_clip", "num_candidates": 50}, "composite", "in place, among 50 references"),
    ],
)
def test_what_was_searched_is_said(settings, masking, words):
    assert searched(SimilarityConfig(**settings), masking).startswith(words)
