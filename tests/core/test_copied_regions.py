"""Copied regions: which pixels are copied, by region and object, in place and moved."""

import numpy as np
import pytest

from fbmem_core.labels import PairSimilarity
from fbmem_core.retrieval.copies import COLUMNS, MAX_PAIRS, Copies
from fbmem_core.retrieval.image_sets import CENTER_CROP, ImageSet
from fbmem_core.similarity.alignment import shifted
from fbmem_core.similarity.copied_regions import SIDE, copied_regions, copy_map, draw
from tests.core.test_ms_ssim import images

GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)
LEFT = np.arange(SIDE) < SIDE // 2


def picture(seed, *, grain=8):
    return (images(seed, 1, SIDE, grain=grain)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def matte(*boxes):
    """White where the boxes (top, left, side) are."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    for top, left, side in boxes:
        alpha[top : top + side, left : left + side] = 255
    return alpha


def regions(copies, alpha, reference_alpha=None):
    return {region.region: region for region in copied_regions(copies, alpha, reference_alpha)}


def test_of_the_same_picture_every_pixel_is_copied_and_of_another_hardly_any():
    same, other = copy_map(picture(1), picture(1)), copy_map(picture(1), picture(2))
    assert same.copied.all()
    assert other.decided.all()
    assert other.copied.mean() < 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_map_shows_which_half_is_copied(seed):
    x, y = picture(seed), picture(seed + 10)
    copies = copy_map(x, np.where(LEFT[:, None], x, y))
    assert copies.copied[:, LEFT][:, :-16].mean() > 0.98
    assert copies.copied[:, ~LEFT][:, 16:].mean() < 0.1


def test_of_what_has_no_texture_nothing_is_said():
    copies = copy_map(GREY, np.full_like(GREY, 90))
    assert not copies.decided.any()
    [whole] = copied_regions(copies, None)
    assert (whole.region, whole.area, whole.share_copied, whole.largest_area) == ("image", 1.0, None, 0.0)


def test_each_object_has_a_box_an_area_and_its_share():
    x = picture(1)
    alpha = matte((20, 30, 100), (160, 160, 60))
    reference = np.where((matte((20, 30, 100)) > 0)[..., None], x, picture(2))  # the larger one alone
    found = regions(copy_map(x, reference), alpha, matte((20, 30, 100)))
    assert list(found) == ["image", "foreground", "background", "object 1", "object 2", "reference object 1"]
    one, two = found["object 1"], found["object 2"]
    assert (one.left, one.top, one.right, one.bottom) == (30 / SIDE, 20 / SIDE, 130 / SIDE, 120 / SIDE)
    assert one.area == pytest.approx(100**2 / SIDE**2)
    assert one.share_copied > 0.85
    assert two.share_copied < 0.15
    assert found["background"].share_copied < 0.15
    assert found["reference object 1"] == one.__class__(**{**vars(one), "region": "reference object 1"})
    of_both = (one.share_copied * 100**2 + two.share_copied * 60**2) / (100**2 + 60**2)
    assert found["foreground"].share_copied == pytest.approx(of_both, abs=0.01)


def test_the_largest_connected_part_is_not_the_sum_of_parts():
    x = picture(1)
    kept = (matte((10, 10, 80), (150, 150, 90)) > 0)[..., None]
    [whole] = copied_regions(copy_map(x, np.where(kept, x, picture(2))), None)
    assert whole.largest_area == pytest.approx(90**2 / SIDE**2, rel=0.2)
    assert whole.share_copied > 1.5 * whole.largest_area


def test_an_undecided_matte_has_the_image_alone():
    assert list(regions(copy_map(picture(1), picture(1)), None, matte((10, 10, 90)))) == ["image"]


def test_the_picture_is_orange_where_pixels_are_copied_blue_where_not_and_grey_without_texture():
    x = picture(1)
    x[200:] = 128
    reference = np.where(LEFT[:, None], x, picture(2))
    reference[200:] = 60
    drawn = draw(x, copy_map(x, reference)).astype(int)
    red, blue = drawn[..., 0] - drawn[..., 2], drawn[..., 2] - drawn[..., 0]
    assert (red[20:180, 20:100] > 50).mean() > 0.98
    assert (blue[20:180, 160:240] > 50).mean() > 0.85
    assert (red[220:] == 0).all()


def picture_set(pictures, alphas, views=()):
    decided = np.ones(len(pictures), bool)
    return ImageSet(
        tuple(f"r{row}" for row in range(len(pictures))), np.stack(pictures), np.stack(alphas), decided, views=views
    )


def test_a_moved_pair_is_mapped_after_its_transform():
    reference, transform = picture(1), shifted(0.1, 0.05, mirrored=True)
    generation = transform.apply(reference)
    copies = Copies(picture_set([reference], [matte((80, 80, 90))]), floor=0.6)
    pair = PairSimilarity("r0", 1.0, None, None, transform=str(transform), transform_matrix=transform.numbers)
    in_place = PairSimilarity("r0", 1.0, None, None)
    shares = {}
    for name, compared in (("moved", pair), ("in place", in_place)):
        [found] = copies(picture_set([generation], [matte((80, 80, 90))]), 0, [compared])
        shares[name] = {row["region"]: row["share_copied"] for row in found.rows}
    assert shares["moved"]["image"] > 0.98
    assert "reference object 1" in shares["moved"]
    assert shares["in place"]["image"] < 0.2


def test_a_centre_crop_is_mapped_by_its_own_view():
    references = ImageSet(
        ("r", "r"), np.stack([picture(1), picture(2)]), np.stack([matte(), matte()]), np.ones(2, bool),
        views=("whole", CENTER_CROP),
    )  # fmt: skip
    pair = PairSimilarity("r", 1.0, None, 1.0, transform=CENTER_CROP)
    [found] = Copies(references, floor=0.6)(picture_set([picture(2)], [matte()]), 0, [pair])
    assert [row["region"] for row in found.rows] == ["image", "background"]
    assert found.rows[0]["share_copied"] > 0.98


def test_rows_hold_the_similarities_that_labels_are_given_by():
    pair = PairSimilarity(
        "r0", 0.5, 0.9, 0.2, object_areas=(0.15, 0.05), object_similarities=(0.9, None),
        reference_object_areas=(0.15,), reference_object_similarities=(0.7,),
    )  # fmt: skip
    alpha = matte((20, 30, 100), (160, 160, 60))
    copies = Copies(picture_set([picture(1)], [matte((20, 30, 100))]), floor=0.6)
    [found] = copies(picture_set([picture(1)], [alpha]), 0, [pair])
    assert all(tuple(row) == ("region", *COLUMNS[1:7], "largest_area", "similarity") for row in found.rows)
    assert {row["region"]: row["similarity"] for row in found.rows} == {
        "image": 0.5, "foreground": 0.9, "background": 0.2, "object 1": 0.9, "object 2": None,
        "reference object 1": 0.7,
    }  # fmt: skip


def test_only_pairs_above_the_floor_are_told_of_and_what_is_left_out_is_counted():
    many = [PairSimilarity("r0", 0.1, 0.1, value / 20, transform=f"shifted {value}") for value in range(20)]
    copies = Copies(picture_set([picture(1)], [matte()]), floor=0.25)
    found = list(copies(picture_set([picture(1)], [matte()]), 0, many))
    assert [one.pair.background for one in found] == [value / 20 for value in range(19, 19 - MAX_PAIRS, -1)]
    assert copies.num_left_out == 15 - MAX_PAIRS
