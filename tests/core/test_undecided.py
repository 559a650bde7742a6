"""Regions that show nothing by which anything could be recognised: told by kind, whatever the references are."""

import pytest
import torch

from fbmem_core.labels import label_generation
from fbmem_core.retrieval.neighbors import nearest_pairs
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.undecided import undecided_regions
from tests.core.test_image_sets import image_set
from tests.core.test_masked import smooth
from tests.core.test_ms_ssim import SIDE, images, patch

PLAIN, PHOTO = torch.full((1, 3, SIDE, SIDE), 0.9), images(1, grain=8)
THING, NOTHING, EVERYTHING = patch(40, 30, 80, 90), patch(0, 0, 0, 0), patch(0, 0, SIDE, SIDE)
UNDECIDED = torch.full((1, 1, SIDE, SIDE), torch.nan)


def regions(picture, alpha, masking="masked"):
    [found] = undecided_regions(Planes(image_set("g", picture, alpha), masking))
    return found


@pytest.mark.parametrize("plain", [PLAIN, smooth(0.7), 0 * PLAIN], ids=["grey", "gradient", "black"])
@pytest.mark.parametrize(
    ("in_front", "behind", "expected"),
    [
        ("photo", "plain", ("background",)),  # a product on a page
        ("plain", "photo", ("foreground",)),  # a silhouette
        ("plain", "plain", ("foreground", "background")),
        ("photo", "photo", ()),
    ],
)
def test_a_region_without_texture_is_undecided(plain, in_front, behind, expected):
    of = {"photo": PHOTO, "plain": plain}
    assert regions(torch.where(THING > 0, of[in_front], of[behind]), THING) == expected


def test_a_region_that_is_not_there_is_none():
    assert regions(PLAIN, NOTHING) == ("background",)
    assert regions(PLAIN, EVERYTHING) == ("foreground",)
    assert regions(PLAIN, UNDECIDED) == ()
    assert regions(PLAIN, THING, masking="composite") == ()


def test_one_object_with_texture_is_enough():
    two = torch.maximum(patch(10, 10, 60, 60), patch(100, 100, 60, 60))
    picture = torch.where(patch(10, 10, 60, 60) > 0, PHOTO, PLAIN)
    assert regions(picture, two) == ("background",)


def test_many_pictures_are_told_apart_as_each_alone():
    pictures = torch.cat([torch.where(THING > 0, images(n, grain=8), PLAIN) if n % 2 else PLAIN for n in range(20)])
    alphas = THING.expand(20, -1, -1, -1)
    found = undecided_regions(Planes(image_set("g", pictures, alphas), "masked"))
    assert found == [("background",) if n % 2 else ("foreground", "background") for n in range(20)]
    assert undecided_regions(Planes(image_set("g", pictures[:0], alphas[:0]), "masked")) == []


@pytest.mark.parametrize("grey", [0.6, 0.9])
def test_plain_pictures_are_neither_copies_nor_innocent(grey):
    """Two products on plain pages have nothing in common by their pages."""
    pages = torch.cat([PLAIN, torch.where(THING > 0, images(3, grain=8), grey * torch.ones_like(PLAIN))])
    references = image_set("r", torch.cat([PHOTO, *pages[1:, None]]), torch.cat([THING, THING]))
    generations = image_set(
        "g", torch.cat([PLAIN, torch.where(THING > 0, images(5, grain=8), PLAIN)]), torch.cat([NOTHING, THING])
    )
    labels = {}
    for (name, _, pairs), fraction in zip(nearest_pairs(generations, references), (0.0, 0.23), strict=True):
        labels[name] = label_generation(pairs, foreground_fraction=fraction)
    assert [(label.label, label.background_copied, label.undecided) for label in labels.values()] == [
        (None, None, "background"), ("NM", None, "background"),
    ]  # fmt: skip
