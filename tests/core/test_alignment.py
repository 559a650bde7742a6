"""Transforms: numbers, words and pixels say the same; copies that moved are aligned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbmem_core.similarity.alignment import Transform, agreeing, grey, keypoints, refine, shifted
from tests.core.test_copied_regions import picture

SHIFTS = st.floats(-0.12, 0.12)


def turned(degrees, *, scale=1.0, mirrored=False):
    """About the middle."""
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return Transform(np.hstack([matrix, (0.5 - matrix @ [0.5, 0.5])[:, None]]), mirrored)


@given(SHIFTS, SHIFTS, st.floats(0.5, 2), st.floats(-30, 30), st.booleans())
def test_six_numbers_are_a_transform(right, down, scale, degrees, mirrored):
    one = turned(degrees, scale=scale, mirrored=mirrored)
    one = Transform(one.matrix + np.array([[0, 0, right], [0, 0, down]]), mirrored)
    again = Transform.from_numbers(one.numbers)
    assert again.mirrored == mirrored
    np.testing.assert_allclose(again.matrix, one.matrix, atol=1e-12)
    assert one.scale == pytest.approx(scale)
    assert one.degrees == pytest.approx(degrees, abs=1e-6)


def test_numbers_map_pixels_of_the_generation_to_those_of_the_reference():
    reference = picture(1)
    transform = shifted(0.125, -0.0625, mirrored=True)
    moved, side = transform.apply(reference), len(reference)
    numbers = np.array(transform.numbers).reshape(2, 3)
    for row, column in ((100, 120), (30, 200), (180, 60)):
        x, y = numbers @ [(column + 0.5) / side, (row + 0.5) / side, 1]
        np.testing.assert_array_equal(moved[row, column], reference[round(y * side - 0.5), round(x * side - 0.5)])


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (shifted(0.0, 0.0), "whole"),
        (shifted(0.0, 0.0, mirrored=True), "mirrored"),
        (shifted(0.031, 0.0), "shifted +3.1% +0.0%"),
        (shifted(0.0, 0.0, scale=1.25), "scaled 1.25"),
        (turned(5), "turned +5.0 degrees"),
        (Transform(np.array([[1.008, 0, -0.004], [0, 0.992, 0.004]])), "distorted"),
    ],
)
def test_words_say_how_a_reference_was_moved(transform, words):
    assert str(transform) == words
    assert transform.is_identity == (words == "whole")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("moved", [(0.02, -0.03, 1.0, 0), (0, 0, 1.06, 0), (0.01, 0, 1.0, 4)])
def test_a_guess_is_refined_to_the_transform(moved, mirrored):
    right, down, scale, degrees = moved
    truth = turned(degrees, scale=scale, mirrored=mirrored)
    truth = Transform(truth.matrix - np.array([[0, 0, right], [0, 0, down]]), mirrored)
    reference = picture(3, grain=32)
    refined = refine(grey(truth.apply(reference)), grey(reference), shifted(0.0, 0.0, mirrored=mirrored))
    assert refined is not None
    np.testing.assert_allclose(refined.matrix, truth.matrix, atol=0.01)


def test_unrelated_pictures_have_no_transform():
    assert refine(grey(picture(1)), grey(picture(2)), shifted(0.0, 0.0)) is None
    assert agreeing(keypoints(picture(1)), keypoints(picture(2)), mirrored=False) == []


def test_keypoints_agree_on_each_of_two_objects_that_moved_apart():
    reference = picture(5, grain=6)
    half = np.arange(256) < 128
    moved = np.where(half[:, None], shifted(0.05, 0.02).apply(reference), shifted(-0.06, 0.0).apply(reference))
    transforms = agreeing(keypoints(moved), keypoints(reference), mirrored=False)
    shifts = sorted(round(float(t.shift[0]), 2) for t in transforms[:2])
    assert shifts == [-0.06, 0.05]


def test_a_picture_without_keypoints_agrees_with_none():
    nothing = keypoints(np.full((256, 256, 3), 128, np.uint8))
    assert nothing.places.shape == (0, 2)
    assert agreeing(nothing, keypoints(picture(1)), mirrored=False) == []
