"""MS-SSIM of a region alone: sound moments, nothing outside has an effect, and every mask has an answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fbmem_core.similarity.masked import Background, Object
from fbmem_core.similarity.ms_ssim import compare, ms_ssim
from tests.core.test_ms_ssim import SEEDS, SIDE, images, patch, variant

OBJECT, BACKGROUND = Object(0.0), Background(0.0)
CORNERS = st.tuples(st.floats(0, 1), st.floats(0, 1))
NOTHING, EVERYTHING = torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)
MATTES = ["soft", "thin", "low", "holes", "patch"]


def similar(measure, x, y, alpha_x, alpha_y=None):
    alpha_y = alpha_x if alpha_y is None else alpha_y
    return compare(measure, measure.scales(x, alpha_x), measure.scales(y, alpha_y))


def of_region(measure, x, y, shown):
    """The similarity over a region [n, 1, h, w] of zeros and ones, which both images have."""
    return similar(measure, x, y, shown if measure is OBJECT else 1 - shown)


def rectangle(corner, extent, side=SIDE):
    """A patch somewhere, from one pixel to all of them."""
    top, left = (round(part * (side - 1)) for part in corner)
    return patch(top, left, 1 + round(extent[0] * side), 1 + round(extent[1] * side), side)


def matte(kind, seed):
    """A matte as networks give them: smooth, a few px thin, of low alpha, full of holes, or a plain rectangle."""
    noise = images(seed, 1)[:, :1]
    if kind == "soft":
        return (2 * noise - 0.5).clamp(0, 1)
    if kind == "thin":
        return ((noise - 0.5).abs() < 0.04).float()
    if kind == "low":
        return 0.6 * (noise > 0.45).float()
    if kind == "holes":
        return (noise > 0.4).float() * (images(seed + 1, 1, grain=6)[:, :1] > 0.3)
    return rectangle((0.2, 0.1), (0.5, 0.6))


def region_statistics(measure, x, y, alpha_x, alpha_y):
    """The maps of every scale."""
    scales = zip(measure.scales(x, alpha_x), measure.scales(y, alpha_y), strict=True)
    return [measure.maps(measure.statistics(p), measure.statistics(q)) for p, q in scales]


def assert_same(after, before):
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@pytest.mark.parametrize("kind", MATTES)
@given(seed=SEEDS, amount=st.floats(0, 1))
def test_contrast_and_structure_never_leave_minus_one_to_one(measure, kind, seed, amount):
    x = images(seed)
    for maps in region_statistics(measure, x, variant(x, seed + 1, amount), matte(kind, seed), matte(kind, seed + 7)):
        values = maps.cs[(maps.weight > 0).expand_as(maps.cs)]
        assert (values.abs() <= 1 + 1e-4).all()


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@pytest.mark.parametrize("kind", MATTES)
@given(seed=SEEDS)
def test_a_picture_is_wholly_similar_to_itself_whatever_the_two_mattes_are(measure, kind, seed):
    x = images(seed, grain=8)
    value = similar(measure, x, x, matte(kind, seed), matte("soft", seed + 3))
    assert value.isnan().all() or value.item() == pytest.approx(1, abs=1e-5)


def test_a_matte_of_a_little_more_than_half_is_as_good_as_one_of_all():
    x, disc = images(1, grain=8), patch(40, 40, 90, 90)
    assert similar(OBJECT, x, x, 0.55 * disc, disc).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", MATTES)
@given(seed=SEEDS)
def test_nothing_outside_the_place_of_an_object_has_an_effect(kind, seed):
    x, y, elsewhere = images(seed), images(seed + 1), images(seed + 2, grain=4)
    alpha = matte(kind, seed + 3)
    changed = torch.where(alpha >= 0.5, x, elsewhere), torch.where(alpha >= 0.5, y, 1 - elsewhere)
    assert_same(similar(OBJECT, *changed, alpha, EVERYTHING), similar(OBJECT, x, y, alpha, EVERYTHING))


@given(SEEDS, CORNERS, CORNERS, CORNERS)
def test_nothing_but_the_background_of_both_has_an_effect_on_the_background(seed, corner, other, extent):
    x, y, elsewhere = images(seed), images(seed + 1), images(seed + 2, grain=4)
    alpha_x = rectangle(corner, extent) * matte("soft", seed + 3)
    alpha_y = rectangle(other, extent[::-1]) * matte("soft", seed + 4)
    common = torch.maximum(alpha_x, alpha_y) < 0.25
    changed = torch.where(common, x, elsewhere), torch.where(common, y, 1 - elsewhere)
    assert_same(similar(BACKGROUND, *changed, alpha_x, alpha_y), similar(BACKGROUND, x, y, alpha_x, alpha_y))


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
def test_what_is_inside_the_region_has_an_effect(measure):
    """Or the two tests above could not fail."""
    shown = patch(30, 40, 90, 100)
    x, y = images(1), images(2)
    changed = torch.where(patch(60, 70, 12, 12) > 0, 1 - x, x)
    assert abs(of_region(measure, changed, x, shown) - of_region(measure, x, x, shown)) > 1e-2
    assert of_region(measure, x, y, shown) < 0.5


@pytest.mark.parametrize("side", [161, 175, 176])
@given(seed=SEEDS, corner=CORNERS, extent=CORNERS)
def test_identical_regions_are_wholly_similar_wherever_they_lie(side, seed, corner, extent):
    shown = rectangle(corner, extent, side)
    x = images(seed, 1, side)
    y = torch.where(shown > 0, x, images(seed + 1, 1, side))
    for measure in (OBJECT, BACKGROUND):
        value = of_region(measure, x, y, shown)
        assert value.isnan().all() or value.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@pytest.mark.parametrize("kind", MATTES)
@given(seed=SEEDS, amount=st.floats(0, 1))
def test_it_is_symmetric_and_lies_between_0_and_1(measure, kind, seed, amount):
    x, alpha_x, alpha_y = images(seed), matte(kind, seed + 2), matte(kind, seed + 3)
    y = variant(x, seed + 1, amount)
    value = similar(measure, x, y, alpha_x, alpha_y)
    assert_same(value, similar(measure, y, x, alpha_y, alpha_x))
    assert value.isnan().all() or 0 <= value.item() <= 1


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@given(seed=SEEDS, corners=st.tuples(CORNERS, CORNERS, CORNERS), extent=CORNERS)
def test_the_other_pairs_of_a_batch_do_not_matter(measure, seed, corners, extent):
    x, y = images(seed, 3), images(seed + 1, 3)
    alpha_x = torch.cat([rectangle(corner, extent) for corner in corners])
    alpha_y = torch.cat([alpha_x[1:2], matte("soft", seed), NOTHING])
    alone = [
        similar(measure, x[i : i + 1], y[i : i + 1], alpha_x[i : i + 1], alpha_y[i : i + 1]) for i in range(len(x))
    ]
    assert_same(similar(measure, x, y, alpha_x, alpha_y), torch.cat(alone))


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
def test_one_image_is_compared_with_every_one_of_a_batch(measure):
    x, y = images(1), images(2, 3)
    alpha_x, alpha_y = patch(30, 40, 90, 80), torch.cat([patch(60, 70, 30, 90), matte("soft", 3), NOTHING])
    one, many = measure.scales(x, alpha_x), measure.scales(y, alpha_y)
    expected = similar(measure, x.expand_as(y), y, alpha_x.expand_as(alpha_y), alpha_y)
    assert_same(compare(measure, one, many), expected)
    assert_same(compare(measure, many, one), expected)


def smooth(angle):
    """A picture without texture: a soft gradient, as a clear sky shows it."""
    line = torch.linspace(0, 1, SIDE)
    ramp = torch.cos(torch.tensor(angle)) * line + torch.sin(torch.tensor(angle)) * line[:, None]
    return (0.6 + 0.1 * ramp).expand(1, 3, SIDE, SIDE)


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@pytest.mark.parametrize("grey", [0.6, 0.9])
def test_two_plain_greys_are_undecided_even_the_same(measure, grey):
    x, y = torch.full((1, 3, SIDE, SIDE), 0.9), torch.full((1, 3, SIDE, SIDE), grey)
    assert of_region(measure, x, y, patch(20, 30, 120, 110)).isnan().all()


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
def test_two_smooth_gradients_are_undecided(measure):
    assert of_region(measure, smooth(0.7), smooth(0.9), EVERYTHING).isnan().all()


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
def test_plain_grey_against_a_picture_is_no_copy(measure):
    assert of_region(measure, torch.full((1, 3, SIDE, SIDE), 0.5), images(3, grain=8), EVERYTHING) < 0.3


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
def test_a_copied_corner_in_a_plain_field_decides_only_if_there_is_enough_of_it(measure):
    """As a caption on a white page."""
    white, thing = torch.full((1, 3, SIDE, SIDE), 1.0), images(4, grain=6)
    for extent, decided in ((12, False), (90, True)):
        spot = patch(30, 30, extent, extent)
        x = torch.where(spot > 0, thing, white)
        assert of_region(measure, x, x, EVERYTHING).isnan().item() is not decided


def test_a_region_smaller_than_asked_for_is_undecided():
    x, shown = images(5, grain=8), patch(20, 20, 40, 40)
    assert of_region(OBJECT, x, x, shown).item() == pytest.approx(1, abs=1e-5)
    assert similar(Object(0.2), x, x, shown).isnan().all()


def test_the_background_is_undefined_where_no_pixel_shows_it_in_both():
    x, y = images(7, 2), images(8, 2)
    left = patch(0, 0, SIDE, 88)
    values = similar(BACKGROUND, x, y, torch.cat([EVERYTHING, left]), torch.cat([NOTHING, 1 - left]))
    assert values.isnan().tolist() == [True, True]


@pytest.mark.parametrize("measure", [OBJECT, BACKGROUND])
@pytest.mark.parametrize("amount", [0.02, 0.1, 0.3])
def test_a_region_of_every_pixel_comes_close_to_the_plain_measure(measure, amount):
    x = images(18, 3, 256, grain=8)
    y = variant(x, 19, amount)
    everything = torch.ones(3, 1, 256, 256)
    torch.testing.assert_close(of_region(measure, x, y, everything), ms_ssim(x, y), atol=0.03, rtol=0)


@pytest.mark.parametrize("radius", [12, 25, 50])
def test_an_object_with_a_soft_border_is_copied_before_any_scenery(radius):
    line = (torch.arange(8 * SIDE) + 0.5) / 8
    inside = (line[:, None] - 80.3) ** 2 + (line - 90.7) ** 2 <= radius**2
    alpha = F.avg_pool2d(inside[None, None].float(), 8)
    thing = images(20, 4, grain=6)
    scenery = torch.cat([images(21), images(22), NOTHING.expand(1, 3, -1, -1), EVERYTHING.expand(1, 3, -1, -1)])
    x = thing[:1] * alpha + scenery * (1 - alpha)
    alphas = alpha.expand(4, -1, -1, -1)
    assert (similar(OBJECT, x, x.roll(1, dims=0), alphas) >= 0.93).all()
    others = thing * alpha + scenery * (1 - alpha)
    assert (similar(OBJECT, others, others.roll(1, dims=0), alphas) < 0.6).all()
