"""MS-SSIM of whole images against two outside implementations, and its properties."""

import jaxtyping
import pytest
import pytorch_msssim
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from fbmem_core.errors import InputError
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Plain, compare, ms_ssim

SEEDS = st.integers(0, 2**31 - 1)
SIDE = 176


def images(seed, num=1, height=SIDE, width=None, *, grain=16):
    """Smooth random pictures [num, 3, height, width] in [0, 1] with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (height, width or height)
    coarse = torch.rand(num, 3, *(-(-side // grain) for side in shape), generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def variant(x, seed, amount):
    """A mixture of the pictures and others: `amount` 0 gives the same, 1 unrelated ones."""
    return (1 - amount) * x + amount * images(seed, len(x), *x.shape[-2:])


def patch(top, left, height, width, side=SIDE):
    weight = torch.zeros(1, 1, side, side)
    weight[..., top : top + height, left : left + width] = 1
    return weight


def by_torchmetrics(x, y):
    return torch.stack(
        [
            multiscale_structural_similarity_index_measure(
                a[None], b[None], data_range=1.0, betas=SCALE_WEIGHTS, normalize="relu"
            )
            for a, b in zip(x, y, strict=True)
        ]
    )


@pytest.mark.parametrize(("height", "width"), [(161, 161), (176, 176), (192, 256), (200, 175), (256, 256)])
@pytest.mark.parametrize("amount", [0.02, 0.3, 1.0])
def test_it_agrees_with_pytorch_msssim(height, width, amount):
    x = images(1, 3, height, width)
    y = variant(x, 2, amount)
    expected = pytorch_msssim.ms_ssim(x, y, data_range=1, size_average=False)
    torch.testing.assert_close(ms_ssim(x, y), expected, atol=1e-5, rtol=0)


def test_it_agrees_with_pytorch_msssim_on_pictures_of_opposite_structure():
    x = images(3, 2)
    expected = pytorch_msssim.ms_ssim(x, 1 - x, data_range=1, size_average=False)
    torch.testing.assert_close(ms_ssim(x, 1 - x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [176, 256])
@pytest.mark.parametrize("amount", [0.02, 0.1])
def test_it_agrees_with_torchmetrics_where_the_definitions_agree(side, amount):
    """Equal channels make the order of averages irrelevant, an equal coarsest scale the windows at its border."""
    x = images(4, 2, side)[:, :1]
    noise = amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    noise = noise - F.interpolate(F.avg_pool2d(noise, 16), scale_factor=16)
    x, y = 0.25 + 0.5 * x, 0.25 + 0.5 * x + noise
    x, y = x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)
    ours = ms_ssim(x, y)
    assert (ours < 0.999).all()
    torch.testing.assert_close(ours, by_torchmetrics(x, y), atol=1e-5, rtol=0)


@pytest.mark.parametrize("amount", [0.02, 0.05, 0.1])
def test_it_stays_close_to_torchmetrics_in_general(amount):
    x = images(6, 3, 256)
    y = variant(x, 7, amount)
    torch.testing.assert_close(ms_ssim(x, y), by_torchmetrics(x, y), atol=1e-3, rtol=0)


@given(SEEDS)
def test_a_picture_is_wholly_similar_to_itself(seed):
    x = images(seed, 2)
    assert ms_ssim(x, x).tolist() == [1.0, 1.0]


@given(SEEDS, SEEDS, st.floats(0, 1))
def test_it_is_symmetric(seed, other, amount):
    x = images(seed)
    y = variant(x, other, amount)
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(y, x), atol=1e-6, rtol=0)


@given(SEEDS, SEEDS, st.floats(0, 1))
def test_it_lies_between_0_and_1(seed, other, amount):
    x = images(seed, 2)
    values = ms_ssim(x, variant(x, other, amount))
    assert ((values >= 0) & (values <= 1)).all()


@given(st.floats(0, 1), st.floats(-1e-3, 1e-3), SEEDS)
def test_it_lies_between_0_and_1_for_almost_flat_pictures(level, step, seed):
    noise = 1e-4 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    x, y = (level + noise).clamp(0, 1), (level + step + noise.flip(0)).clamp(0, 1)
    values = ms_ssim(x, y)
    assert ((values >= 0) & (values <= 1)).all()


@given(SEEDS, SEEDS)
def test_the_other_pairs_of_a_batch_do_not_matter(seed, other):
    x, y = images(seed, 3), images(other, 3)
    alone = torch.cat([ms_ssim(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ms_ssim(x, y), alone, atol=1e-6, rtol=0)


@given(SEEDS, st.permutations(range(4)))
def test_the_order_of_a_batch_does_not_matter(seed, order):
    x, y = images(seed, 4), images(seed + 1, 4)
    torch.testing.assert_close(ms_ssim(x[order], y[order]), ms_ssim(x, y)[order], atol=1e-6, rtol=0)


def test_one_image_is_compared_with_every_one_of_a_batch():
    x, y = images(8, 1), images(9, 4)
    plain, any_matte = Plain(), torch.zeros(4, 1, SIDE, SIDE)
    one, many = plain.scales(x, any_matte[:1]), plain.scales(y, any_matte)
    assert [planes.shape[-1] for planes in one] == [176, 88, 44, 22, 11]
    expected = ms_ssim(x.expand_as(y), y)
    torch.testing.assert_close(compare(plain, one, many), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(compare(plain, many, one), expected, atol=1e-6, rtol=0)


def test_the_range_is_never_taken_from_the_data():
    x = 0.5 + 0.01 * images(10)
    y = 0.5 + 0.01 * images(11)
    stretched = ms_ssim((x - 0.5) * 100, (y - 0.5) * 100)
    assert ms_ssim(x, y) > 0.9 > stretched


def test_fewer_scales_fit_smaller_pictures():
    x = images(12, 1, 41)
    assert ms_ssim(x, x, scale_weights=(0.33, 0.33, 0.33)).tolist() == [1.0]


@pytest.mark.parametrize(("height", "width"), [(160, 176), (176, 160)])
def test_a_side_too_small_for_five_scales_is_refused_with_the_smallest_one(height, width):
    x = images(13, 1, height, width)
    with pytest.raises(InputError, match=r"sides of at least 161 px for 5 scales, but got \(\d+, \d+\)\. Score at"):
        ms_ssim(x, x)


def test_batches_of_different_shapes_are_refused():
    jaxtyping.config.update("jaxtyping_disable", True)  # or the checked signature would refuse them first
    try:
        with pytest.raises(InputError, match=r"two batches of one shape.*Resize first"):
            ms_ssim(images(14, 1, SIDE), images(14, 1, SIDE + 16))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
