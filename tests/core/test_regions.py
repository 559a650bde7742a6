"""Region similarity: what of two pictures is compared, by both definitions."""

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fbmem_core.errors import InputError
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.ms_ssim import Similarity, ms_ssim
from fbmem_core.similarity.regions import MEASURES, region_similarity
from tests.core.test_ms_ssim import SIDE, images, patch, variant

MASKINGS = ["masked", "composite"]
BLOB = patch(50, 60, 70, 60)
EVERY_MEASURE = [measure for masking in MASKINGS for measure in MEASURES[masking].values()]
NAMES = [f"{masking}-{region}" for masking in MASKINGS for region in MEASURES[masking]]


def compose(foreground, background, alpha):
    return foreground * alpha + background * (1 - alpha)


def bounds(measure, x, y, alpha_x, alpha_y):
    """What is known of each pair after none, one, two, ... and all scales."""
    planes = measure.scales(x, alpha_x), measure.scales(y, alpha_y)
    found = Similarity.begin((len(x),), x.device)
    yield found.value
    for scale in reversed(range(5)):
        maps = measure.maps(*(measure.statistics(side[scale]) for side in planes))
        found.multiply(scale, *maps.average(found.is_first()))
        yield found.value


def values(similarity):
    return {region: getattr(similarity, region).tolist() for region in REGIONS}


@pytest.mark.parametrize("masking", MASKINGS)
def test_equal_pictures_with_equal_mattes_are_similar_by_every_criterion(masking):
    x = images(1, 2)
    alpha = BLOB.expand(2, -1, -1, -1)
    for region, similar in values(region_similarity(x, x, alpha, alpha, masking=masking)).items():
        assert similar == pytest.approx([1, 1], abs=1e-5), region


@given(st.integers(0, 2**31 - 1), st.sampled_from(MASKINGS))
def test_it_is_symmetric(seed, masking):
    x, y = images(seed), images(seed + 1)
    alpha_x, alpha_y = images(seed + 2)[:, :1], patch(30, 40, 80, 90)
    there = region_similarity(x, y, alpha_x, alpha_y, masking=masking)
    back = region_similarity(y, x, alpha_y, alpha_x, masking=masking)
    for region in REGIONS:
        torch.testing.assert_close(getattr(there, region), getattr(back, region), atol=1e-6, rtol=0)


def test_masked_sees_a_copied_foreground_before_another_background():
    x = compose(images(1), images(2), BLOB)
    y = compose(images(1), images(3), BLOB)
    similarity = region_similarity(x, y, BLOB, BLOB)
    assert similarity.foreground.item() == pytest.approx(1, abs=1e-5)
    assert similarity.background.item() < 0.5
    assert similarity.average.item() == pytest.approx((1 + similarity.background.item()) / 2, abs=1e-5)


def test_masked_sees_a_copied_background_under_an_object_elsewhere():
    elsewhere = patch(20, 20, 60, 60)
    x = compose(images(1), images(2), BLOB)
    y = compose(images(3), images(2), elsewhere)
    masked = region_similarity(x, y, BLOB, elsewhere)
    composite = region_similarity(x, y, BLOB, elsewhere, masking="composite")
    assert masked.background.item() == pytest.approx(1, abs=1e-5)
    assert composite.background.item() < 0.9
    assert masked.foreground.item() < 0.5


def test_composites_of_unrelated_foregrounds_agree_where_both_are_black():
    small = patch(70, 70, 30, 30)
    x, y = compose(images(1), images(2), small), compose(images(3), images(4), small)
    assert region_similarity(x, y, small, small, masking="composite").foreground.item() > 0.75
    assert region_similarity(x, y, small, small, masking="masked").foreground.item() < 0.5


def test_composite_lays_foregrounds_on_black_and_backgrounds_on_white():
    x, y = images(1), images(2)
    alpha_x, alpha_y = images(3)[:, :1], BLOB
    similarity = region_similarity(x, y, alpha_x, alpha_y, masking="composite")
    white = torch.ones_like(x)
    expected = {
        "full": ms_ssim(x, y),
        "foreground": ms_ssim(compose(x, 0 * white, alpha_x), compose(y, 0 * white, alpha_y)),
        "background": ms_ssim(compose(white, x, alpha_x), compose(white, y, alpha_y)),
    }
    for region, value in expected.items():
        torch.testing.assert_close(getattr(similarity, region), value, atol=1e-5, rtol=0)


@given(st.integers(0, 2**31 - 1))
def test_masked_foregrounds_ignore_everything_outside_the_objects_of_both(seed):
    other = patch(40, 30, 50, 60)
    union = torch.maximum(BLOB, other)
    x, y = images(seed), images(seed + 1)
    changed = compose(x, images(seed + 2, grain=4), union), compose(y, images(seed + 3, grain=4), union)
    before = region_similarity(x, y, BLOB, other).foreground
    after = region_similarity(*changed, BLOB, other).foreground
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


def test_a_copied_object_is_not_lost_beside_another_or_where_one_matte_misses_it():
    second = patch(5, 100, 35, 60)
    both, nothing = torch.maximum(BLOB, second), torch.zeros_like(BLOB)
    x, y = compose(images(1), images(2), BLOB), compose(images(1), images(3), BLOB)
    for alpha_x, alpha_y in ((both, BLOB), (both, both), (second, BLOB), (BLOB, second), (BLOB, nothing)):
        for there, back in (((x, y), (alpha_x, alpha_y)), ((y, x), (alpha_y, alpha_x))):
            assert region_similarity(*there, *back).foreground.item() == pytest.approx(1, abs=1e-5)
    assert region_similarity(x, y, second, second).foreground.item() < 0.5


@given(st.integers(0, 2**31 - 1))
def test_masked_backgrounds_ignore_everything_inside_either_foreground(seed):
    other = patch(40, 30, 50, 60)
    union = torch.maximum(BLOB, other)
    x, y = images(seed), images(seed + 1)
    changed = compose(images(seed + 2, grain=4), x, union), compose(images(seed + 3, grain=4), y, union)
    before = region_similarity(x, y, BLOB, other).background
    after = region_similarity(*changed, BLOB, other).background
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


def test_half_covered_pixels_belong_to_neither_region():
    x, y = images(1), images(2)
    half = 0.5 * patch(50, 60, 80, 70)
    alpha = torch.maximum(half, patch(55, 65, 70, 60))
    border = (alpha == 0.5).expand_as(x)
    changed = torch.where(border, images(3), x)
    before, after = region_similarity(x, y, alpha, alpha), region_similarity(changed, y, alpha, alpha)
    assert (after.foreground.item(), after.background.item()) == pytest.approx(
        (before.foreground.item(), before.background.item()), abs=1e-6
    )
    assert abs(after.full.item() - before.full.item()) > 1e-4


def test_masked_similarity_is_undefined_for_an_absent_region_alone():
    x, y = images(1), images(2)
    none, all_of_it = torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)
    empty = region_similarity(x, y, none, none)
    assert empty.foreground.isnan().all()
    assert not empty.background.isnan().any()
    full = region_similarity(x, y, all_of_it, none)
    assert full.background.isnan().all()
    assert not full.foreground.isnan().any()
    assert empty.average.isnan().all()


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("side", ["x", "y"])
def test_an_undecided_matte_leaves_only_the_whole_image_and_the_other_pairs(masking, side):
    x, y = images(1, 2), images(2, 2)
    decided = BLOB.expand(2, -1, -1, -1)
    undecided = decided.clone()
    undecided[0] = torch.nan
    mattes = (undecided, decided) if side == "x" else (decided, undecided)
    similarity = region_similarity(x, y, *mattes, masking=masking)
    expected = region_similarity(x, y, decided, decided, masking=masking)
    torch.testing.assert_close(similarity.full, expected.full)
    for region in ("foreground", "background", "average"):
        found = getattr(similarity, region)
        assert found[0].isnan()
        torch.testing.assert_close(found[1], getattr(expected, region)[1])


@pytest.mark.parametrize("measure", EVERY_MEASURE, ids=NAMES)
@given(
    seed=st.integers(0, 2**31 - 1),
    amount=st.floats(0, 1),
    box=st.tuples(*[st.integers(0, SIDE - 1)] * 2, *[st.integers(1, SIDE)] * 2),
)
def test_a_similarity_never_rises_from_scale_to_scale(measure, seed, amount, box):
    x = images(seed, 4)
    y = variant(x, seed + 1, amount)
    alpha = images(seed + 2, 2)[:, :1]
    alpha_x = torch.cat([alpha[:1], patch(*box), BLOB, 1 - patch(*box)])
    alpha_y = torch.cat([alpha[1:], patch(*box), patch(*box), 1 - BLOB])
    coarser = torch.ones(4)
    for finer in bounds(measure, x, y, alpha_x, alpha_y):
        # an empty region is known at the finest scale alone: its bound was 1 until then
        assert (finer.nan_to_num(0) <= coarser).all()
        coarser = finer.nan_to_num(0)


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_finest_scale_makes_the_bound_the_similarity(masking):
    x, y = images(1), variant(images(1), 2, 0.3)
    alpha_x, alpha_y = patch(40, 30, 50, 60), BLOB
    expected = region_similarity(x, y, alpha_x, alpha_y, masking=masking)
    for region in set(MEASURES[masking]) - {"object"}:
        *coarser, value = bounds(MEASURES[masking][region], x, y, alpha_x, alpha_y)
        assert value.item() == getattr(expected, region).item()
        assert coarser[1] < 1


def refused(*args, **kwargs):
    """The message of the refusal."""
    jaxtyping.config.update("jaxtyping_disable", True)  # or the checked signature would refuse them first
    try:
        with pytest.raises(InputError) as caught:
            region_similarity(*args, **kwargs)
        return str(caught.value)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_an_unknown_masking_is_refused_with_the_known_ones():
    x = images(1)
    text = refused(x, x, BLOB, BLOB, masking="mask")
    assert text == "Expected one of masked, composite, but got `mask` in masking. Choose one."


def test_mattes_and_images_of_different_shapes_are_refused():
    x, larger = images(1), images(1, 1, SIDE + 16)
    assert "two batches of one shape" in refused(x, larger, BLOB, BLOB)
    assert "two batches of one shape" in refused(x, x, BLOB, larger[:, :1])


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_side_too_small_for_five_scales_is_refused(masking):
    x = images(1, 1, 160)
    assert "sides of at least 161 px" in refused(x, x, x[:, :1], x[:, :1], masking=masking)
