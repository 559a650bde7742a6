"""MS-SSIM of the foreground or the background alone: nothing else has an effect, and every mask has an answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fbmem_core.similarity.masked import Background, Foreground
from fbmem_core.similarity.ms_ssim import compare, ms_ssim
from tests.core.test_ms_ssim import SEEDS, SIDE, images, patch, variant

FOREGROUND, BACKGROUND = Foreground(), Background()
CORNERS = st.tuples(st.floats(0, 1), st.floats(0, 1))
NOTHING, EVERYTHING = torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)


def similar(measure, x, y, alpha_x, alpha_y=None):
    alpha_y = alpha_x if alpha_y is None else alpha_y
    return compare(measure, measure.scales(x, alpha_x), measure.scales(y, alpha_y))


def of_region(measure, x, y, masking):
    """The similarity over a region [n, 1, h, w] of zeros and ones, which both images have."""
    return similar(measure, x, y, masking if measure is FOREGROUND else 1 - masking)


def rectangle(corner, extent, side=SIDE):
    """A patch somewhere, from one pixel to all of them."""
    top, left = (round(part * (side - 1)) for part in corner)
    return patch(top, left, 1 + round(extent[0] * side), 1 + round(extent[1] * side), side)


def soft_mattes(seed, num=1):
    """Smooth mattes of every coverage, with places of none and of all."""
    return (2 * images(seed, num)[:, :1] - 0.5).clamp(0, 1)


def disc(top, left, radius, side=SIDE):
    """The matte of a disc with an antialiased border: the mean of 64 samples per pixel."""
    line = (torch.arange(8 * side) + 0.5) / 8
    inside = (line[:, None] - top) ** 2 + (line - left) ** 2 <= radius**2
    return F.avg_pool2d(inside[None, None].float(), 8)


def assert_same(after, before):
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0, equal_nan=True)


@given(SEEDS, CORNERS, CORNERS, CORNERS)
def test_nothing_outside_its_own_foreground_has_an_effect_on_the_foreground(seed, corner, other, extent):
    x, y, elsewhere = images(seed), images(seed + 1), images(seed + 2, grain=4)
    alpha_x = rectangle(corner, extent) * soft_mattes(seed + 3)
    alpha_y = rectangle(other, extent[::-1]) * soft_mattes(seed + 4)
    changed = torch.where(alpha_x > 0.5, x, elsewhere), torch.where(alpha_y > 0.5, y, 1 - elsewhere)
    assert_same(similar(FOREGROUND, *changed, alpha_x, alpha_y), similar(FOREGROUND, x, y, alpha_x, alpha_y))


@given(SEEDS, CORNERS, CORNERS, CORNERS)
def test_nothing_but_the_background_of_both_has_an_effect_on_the_background(seed, corner, other, extent):
    x, y, elsewhere = images(seed), images(seed + 1), images(seed + 2, grain=4)
    alpha_x = rectangle(corner, extent) * soft_mattes(seed + 3)
    alpha_y = rectangle(other, extent[::-1]) * soft_mattes(seed + 4)
    common = torch.maximum(alpha_x, alpha_y) < 0.25
    changed = torch.where(common, x, elsewhere), torch.where(common, y, 1 - elsewhere)
    assert_same(similar(BACKGROUND, *changed, alpha_x, alpha_y), similar(BACKGROUND, x, y, alpha_x, alpha_y))


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
def test_what_is_inside_the_region_has_an_effect(measure):
    """Or the two tests above could not fail."""
    masking = patch(30, 40, 90, 100)
    x, y = images(1), images(2)
    changed = torch.where(patch(60, 70, 12, 12) > 0, 1 - x, x)
    assert abs(of_region(measure, changed, y, masking) - of_region(measure, x, y, masking)) > 1e-3


@pytest.mark.parametrize("side", [161, 175, 176])
@given(seed=SEEDS, corner=CORNERS, extent=CORNERS)
def test_identical_regions_are_wholly_similar_wherever_they_lie(side, seed, corner, extent):
    masking = rectangle(corner, extent, side)
    x = images(seed, 1, side)
    y = torch.where(masking > 0, x, images(seed + 1, 1, side))
    for measure in (FOREGROUND, BACKGROUND):
        assert of_region(measure, x, y, masking).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@pytest.mark.parametrize("side", [161, 167, 175])
def test_a_region_in_the_last_row_and_column_of_an_odd_picture_counts(measure, side):
    masking = patch(side - 1, side - 1, 1, 1, side)
    x = torch.zeros(1, 3, side, side)
    assert of_region(measure, x, x, masking).item() == pytest.approx(1, abs=1e-5)
    assert of_region(measure, x, 1 - x, masking).item() < 0.5


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@given(seed=SEEDS, amount=st.floats(0, 1))
def test_it_is_symmetric(measure, seed, amount):
    x, alpha_x, alpha_y = images(seed), soft_mattes(seed + 2), soft_mattes(seed + 3)
    y = variant(x, seed + 1, amount)
    assert_same(similar(measure, x, y, alpha_x, alpha_y), similar(measure, y, x, alpha_y, alpha_x))


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@given(seed=SEEDS, amount=st.floats(0, 1))
def test_it_lies_between_0_and_1(measure, seed, amount):
    x, alpha_x, alpha_y = images(seed, 2), soft_mattes(seed + 2, 2), soft_mattes(seed + 3, 2)
    values = similar(measure, x, variant(x, seed + 1, amount), alpha_x, alpha_y)
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@given(seed=SEEDS, corners=st.tuples(CORNERS, CORNERS, CORNERS), extent=CORNERS)
def test_the_other_pairs_of_a_batch_do_not_matter(measure, seed, corners, extent):
    x, y = images(seed, 3), images(seed + 1, 3)
    alpha_x = torch.cat([rectangle(corner, extent) for corner in corners])
    alpha_y = torch.cat([alpha_x[1:2], soft_mattes(seed, 1), NOTHING])
    alone = [
        similar(measure, x[i : i + 1], y[i : i + 1], alpha_x[i : i + 1], alpha_y[i : i + 1]) for i in range(len(x))
    ]
    assert_same(similar(measure, x, y, alpha_x, alpha_y), torch.cat(alone))


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
def test_one_image_is_compared_with_every_one_of_a_batch(measure):
    x, y = images(1), images(2, 3)
    alpha_x, alpha_y = patch(30, 40, 90, 80), torch.cat([patch(60, 70, 30, 90), soft_mattes(3), NOTHING])
    one, many = measure.scales(x, alpha_x), measure.scales(y, alpha_y)
    expected = similar(measure, x.expand_as(y), y, alpha_x.expand_as(alpha_y), alpha_y)
    assert_same(compare(measure, one, many), expected)
    assert_same(compare(measure, many, one), expected)


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@pytest.mark.parametrize(
    "masking", [patch(0, 0, 1, 1), patch(90, 91, 1, 1), patch(87, 88, 3, 3), patch(0, 0, SIDE, SIDE)]
)
def test_tiny_and_full_regions_tell_copies_from_other_pictures(measure, masking):
    x, y = torch.full((1, 3, SIDE, SIDE), 0.9), torch.full((1, 3, SIDE, SIDE), 0.1)
    assert of_region(measure, x, x, masking).item() == pytest.approx(1, abs=1e-5)
    assert of_region(measure, x, y, masking).item() < 0.85  # luminance counts at one scale alone


def test_the_foreground_is_undefined_only_where_neither_picture_has_one():
    x, y = images(3, 4), images(4, 4)
    pixel = patch(70, 80, 1, 1)
    alpha_x, alpha_y = torch.cat([NOTHING, pixel, NOTHING, 0.5 * pixel]), torch.cat([NOTHING, NOTHING, pixel, NOTHING])
    values = similar(FOREGROUND, x, y, alpha_x, alpha_y)
    assert values.isnan().tolist() == [True, False, False, True]


def test_a_foreground_against_none_is_a_foreground_against_grey():
    x, alpha = images(5), patch(40, 40, 90, 80)
    value = similar(FOREGROUND, x, images(6), alpha, NOTHING)
    assert value < 0.5
    assert_same(value, similar(FOREGROUND, x, torch.full_like(x, 0.5), alpha, alpha))


def test_the_background_is_undefined_where_no_pixel_shows_it_in_both():
    x, y = images(7, 3), images(8, 3)
    left = patch(0, 0, SIDE, 88)
    alpha_x = torch.cat([EVERYTHING, left, left])
    alpha_y = torch.cat([NOTHING, 1 - left, 1 - left - patch(3, 100, 1, 1)])
    assert similar(BACKGROUND, x, y, alpha_x, alpha_y).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("thickness", [1, 2, 3, 5, 9])
def test_a_background_too_thin_for_the_coarse_scales_tells_copies_from_other_pictures(thickness):
    inner = SIDE - 2 * thickness
    alpha = patch(thickness, thickness, inner, inner)
    assert (BACKGROUND.scales(images(9), alpha)[-1][:, 3] == 0).all()
    copied = similar(BACKGROUND, images(9), torch.where(alpha > 0, images(10), images(9)), alpha)
    assert copied.item() == pytest.approx(1, abs=1e-5)
    assert similar(BACKGROUND, images(9), images(10), alpha) < 0.5


@pytest.mark.parametrize("measure", [FOREGROUND, BACKGROUND])
@pytest.mark.parametrize("amount", [0.02, 0.1, 0.3])
def test_a_region_of_every_pixel_comes_close_to_the_plain_measure(measure, amount):
    x = images(18, 3, 256)
    y = variant(x, 19, amount)
    everything = torch.ones(3, 1, 256, 256)
    torch.testing.assert_close(of_region(measure, x, y, everything), ms_ssim(x, y), atol=0.01, rtol=0)


@pytest.mark.parametrize("radius", [12, 25, 50])
def test_a_foreground_with_a_soft_border_is_copied_before_any_scenery(radius):
    alpha = disc(80.3, 90.7, radius)
    assert ((alpha > 0) & (alpha < 1)).sum() > 4 * radius
    thing, scenery = images(20, 4), torch.cat([images(21), images(22), NOTHING.expand(2, 3, -1, -1)])
    scenery[3] = 1
    x = thing[:1] * alpha + scenery * (1 - alpha)
    y = x.roll(1, dims=0)
    alphas = alpha.expand(4, -1, -1, -1)
    assert (similar(FOREGROUND, x, y, alphas) >= 0.97).all()
    others = thing * alpha + scenery * (1 - alpha)
    assert (similar(FOREGROUND, others, others.roll(1, dims=0), alphas) < 0.8).all()


def test_another_outline_counts_against_the_same_foreground():
    x, small, large = images(23), patch(60, 60, 40, 40), patch(40, 40, 80, 80)
    assert similar(FOREGROUND, x, x, small, large) < 0.7
