"""Objects of a matte: its connected parts, the largest first, and what is left together."""

import numpy as np
import pytest

from fbmem_core.similarity.objects import MAX_OBJECTS, MIN_AREA, objects

SIDE = 200


def matte(*squares, value=255):
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    for top, left, side in squares:
        alpha[top : top + side, left : left + side] = value
    return alpha


def areas(numbers):
    return [int((numbers == number).sum()) for number in range(1, int(numbers.max()) + 1)]


def test_parts_are_numbered_from_the_largest_on():
    numbers = objects(matte((10, 10, 30), (100, 100, 60)))
    assert areas(numbers) == [3600, 900]
    assert (numbers[120, 120], numbers[20, 20], numbers[0, 0]) == (1, 2, 0)


def test_parts_that_touch_by_a_corner_are_one_object():
    assert areas(objects(matte((10, 10, 40), (50, 50, 40)))) == [3200]


@pytest.mark.parametrize(("value", "count"), [(127, 0), (128, 1)])
def test_what_is_covered_by_half_belongs_to_an_object(value, count):
    assert len(areas(objects(matte((10, 10, 50), value=value)))) == count


def test_small_parts_are_one_object_if_they_are_large_together():
    letters = [(10 * row, 10 * column, 6) for row in range(8) for column in range(8)]
    assert areas(objects(matte(*letters))) == [64 * 36]
    assert areas(objects(matte(*letters[:5]))) == []
    assert areas(objects(matte(*letters[:30], (120, 120, 50)))) == [2500, 30 * 36]


def test_more_parts_than_are_numbered_are_taken_together():
    parts = [(25 * row, 25 * column, 21) for row in range(4) for column in range(4)]
    assert MIN_AREA * SIDE**2 <= 21**2
    assert areas(objects(matte(*parts))) == [441] * MAX_OBJECTS + [441 * (16 - MAX_OBJECTS)]


@pytest.mark.parametrize("alpha", [matte(), np.full((SIDE, SIDE), 255, np.uint8)])
def test_nothing_and_everything(alpha):
    assert areas(objects(alpha)) == ([] if alpha.max() == 0 else [SIDE**2])
