"""Disturbances do what they say, and flips are counted."""

import numpy as np
import pytest

from fbmem_core.evaluation.robustness import BETAS, DISTURBANCES, disturbed, flip_rate
from fbmem_core.labels import BETA
from fbmem_core.similarity.objects import objects

SIDE = 256
IMAGE = np.random.default_rng(0).integers(0, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
ALPHA = np.zeros((SIDE, SIDE), np.uint8)
ALPHA[80:180, 60:160] = 255
ALPHA[20:50, 200:240] = 255
BY_NAME = {disturbance.name: disturbance for disturbance in DISTURBANCES}


@pytest.mark.parametrize("name", BY_NAME)
def test_each_changes_what_it_says_and_nothing_else(name):
    [(image, alpha)] = disturbed(IMAGE[None], ALPHA[None], BY_NAME[name])
    assert (image.shape, image.dtype, alpha.shape, alpha.dtype) == (IMAGE.shape, np.uint8, ALPHA.shape, np.uint8)
    changes_image = BY_NAME[name].changes == "image"
    assert np.array_equal(image, IMAGE) != changes_image
    assert np.array_equal(alpha, ALPHA) == (changes_image and name != "crop")


def test_masks_grow_shrink_soften_and_lose_or_gain_objects():
    area = {name: (BY_NAME[name].apply(IMAGE, ALPHA)[1] >= 128).mean() for name in BY_NAME}
    before = (ALPHA >= 128).mean()
    assert (
        area["mask_eroded"] < area["mask_eroded_little"] < before < area["mask_dilated_little"] < area["mask_dilated"]
    )
    assert area["no_object"] == 0
    assert area["mask_missed"] == pytest.approx(30 * 40 / SIDE**2)
    assert objects(BY_NAME["many_objects"].apply(IMAGE, ALPHA)[1]).max() >= 4
    soft = BY_NAME["mask_soft"].apply(IMAGE, ALPHA)[1]
    assert ((soft > 20) & (soft < 235)).mean() > 0.05


def test_small_changes_of_masks_are_those_that_make_a_label_fragile():
    small = {disturbance.name for disturbance in DISTURBANCES if disturbance.is_small}
    assert small == {"mask_dilated_little", "mask_eroded_little", "mask_soft_little"}
    assert BETA in BETAS


def test_flips_are_counted_with_their_exact_interval():
    flips = flip_rate(["VM", "NM", None, "FM"], ["VM", "BM", "NM", "FM"])
    assert (flips.num_images, flips.num_flips, flips.rate) == (4, 2, 0.5)
    assert flips.interval.low == pytest.approx(0.0676, abs=1e-3)
    assert flip_rate([], []).rate == 0
