"""Near-duplicates and controls, on crops of photographs."""

import numpy as np
import pytest
from skimage import data

from fbmem_core.retrieval.controls import picture_controls, reference_controls
from fbmem_core.retrieval.duplicates import near_duplicates
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.settings import SimilarityConfig

SIZE = 176
SETTINGS = SimilarityConfig(size=SIZE, alignment="none")


def image_set(names, images):
    alphas = np.zeros((len(images), SIZE, SIZE), np.uint8)
    alphas[:, 50:120, 50:120] = 255
    return ImageSet(tuple(names), np.stack(images), alphas, np.ones(len(images), bool))


@pytest.fixture(scope="module")
def pictures():
    """Four crops of two photographs, far from each other."""
    return [
        np.ascontiguousarray(photograph[top : top + SIZE, left : left + SIZE])
        for photograph in (data.astronaut(), data.coffee())
        for top, left in ((0, 0), (200, 220))
    ]


def noisy(image, scale):
    noise = np.random.default_rng(0).normal(scale=scale, size=image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_copies_by_the_measure_are_one_group_whatever_their_bytes(pictures):
    images = [pictures[0], noisy(pictures[0], 4), pictures[1], pictures[2]]
    planes = Planes(image_set(["b", "a", "c", "d"], images), "masked")
    assert near_duplicates(planes, SETTINGS, [["a", "b", "c"], ["d"]]) == {"a": "a", "b": "a", "c": "c", "d": "d"}
    # only what one prompt matched is compared
    assert near_duplicates(planes, SETTINGS, [["a"], ["b"]]) == {"a": "a", "b": "b"}


def test_a_reference_is_no_control_of_itself_nor_of_its_near_duplicates(pictures):
    images = [pictures[0], noisy(pictures[0], 4), pictures[1], pictures[2]]
    planes = Planes(image_set(["a", "b", "c", "d"], images), "masked")
    controls = {control.control_id: control for control in reference_controls(planes, SETTINGS, num_controls=4)}
    assert list(controls) == ["a", "b", "c", "d"]
    assert controls["a"].near_duplicates == {"b"}
    assert controls["b"].near_duplicates == {"a"}
    assert not controls["c"].near_duplicates
    assert all(name not in control.pairs for name, control in controls.items())
    assert [c.control_id for c in reference_controls(planes, SETTINGS, num_controls=2)] == ["a", "c"]


def test_a_picture_from_elsewhere_is_searched_against_all(pictures):
    planes = Planes(image_set(["a", "b"], pictures[:2]), "masked")
    copy, other = picture_controls(image_set(["x", "y"], [pictures[0], pictures[3]]), planes, SETTINGS)
    assert copy.pairs["a"][0].full == pytest.approx(1)
    assert max(pair.full for pairs in other.pairs.values() for pair in pairs) < 0.6
