"""The measure on photographs: no false accusation, every copy.

Pictures are scikit-image's, edited here; mattes are drawn as networks give them: soft, thin, low, with several objects,
larger or smaller than the object is.
"""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from fbmem_core.labels import label_generation
from fbmem_core.retrieval.image_sets import ImageSet, load_image_set
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.search import search
from fbmem_core.retrieval.settings import SimilarityConfig
from tests.core.test_alignment import turned

SIDE = 192
NAMES = ("astronaut", "chelsea", "coffee", "camera", "rocket", "coins", "brick", "gravel")
LEFT, RIGHT = (0.27, 0.5), (0.74, 0.55)  # places of objects, in sides
NOTHING = np.zeros((SIDE, SIDE), np.uint8)


def photograph(name):
    pixels = getattr(data, name)()
    rgb = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
    return cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


PHOTOGRAPHS = {name: photograph(name) for name in NAMES}


def blob(place, radius=0.2):
    """bool [side, side]: a round object."""
    down, right = np.mgrid[:SIDE, :SIDE] / SIDE
    return (right - place[0]) ** 2 + (down - place[1]) ** 2 <= radius**2


def soft(mask, *, grow=0, top=255):
    """The matte of a mask as a network gives it: a border of some px, grown or shrunk, at most so white."""
    kernel = np.ones((2 * abs(grow) + 1,) * 2, np.uint8)
    changed = (cv2.dilate if grow > 0 else cv2.erode)(mask.astype(np.uint8) * 255, kernel)
    return np.minimum(cv2.GaussianBlur(changed, (0, 0), 1.5), top)


def picture_set(pictures, alphas, names=None):
    ids = tuple(names or (f"g{row}" for row in range(len(pictures))))
    return ImageSet(ids, np.stack(pictures), np.stack(alphas), np.ones(len(pictures), bool))


REFERENCES = picture_set(list(PHOTOGRAPHS.values()), [soft(blob(LEFT) | blob(RIGHT, 0.12))] * len(NAMES), NAMES)
PLANES = Planes(REFERENCES, "masked")
MOVED = {alignment: MovedCopies(REFERENCES, alignment) for alignment in ("none", "fast", "thorough")}


def labelled(pictures, alphas, *, alignment="none", rule="per_region", references=REFERENCES, planes=PLANES):
    settings, generations = SimilarityConfig(size=SIDE, alignment=alignment), picture_set(pictures, alphas)
    moved = MOVED[alignment] if references is REFERENCES else MovedCopies(references, alignment)
    found = search(generations, planes, settings, moved=moved)
    fractions = [float((alpha >= 128).mean()) for alpha in alphas]
    return [
        label_generation(pairs, foreground_fraction=fraction, rule=rule)
        for fraction, (_, _, pairs) in zip(fractions, found, strict=True)
    ]


def page(seed, size):
    """Lines of letters, and a matte of the letters alone."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("L", (SIDE, SIDE), 255)
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for top in range(6, SIDE - size, int(1.4 * size)):
        brush.text((6, top), "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz   "), 60)), fill=30, font=font)
    ink = np.asarray(sheet)
    return np.stack([ink] * 3, axis=2), ink < 140


@pytest.mark.parametrize("top", [255, 150])
def test_a_page_of_text_copies_no_photograph(top):
    """Letters have thin mattes, whose windows hold little of either picture."""
    pages = [page(seed, size) for seed, size in enumerate((10, 14, 20, 28))]
    mattes = [np.minimum(ink.astype(np.uint8) * 255, top) for _, ink in pages] + [soft(ink, grow=1) for _, ink in pages]
    labels = labelled([sheet for sheet, _ in pages] * 2, mattes, alignment="fast")
    assert [label.label for label in labels] == ["NM"] * 8


def test_photographs_copy_no_other_photograph():
    others = ("page", "text", "cell", "hubble_deep_field", "immunohistochemistry", "moon", "retina", "grass")
    mattes = [soft(blob(LEFT)), soft(blob(RIGHT) | blob(LEFT, 0.1)), soft(blob((0.5, 0.5), 0.33), top=140), NOTHING] * 2
    found = labelled([photograph(name) for name in others], mattes, alignment="fast")
    assert [label.label for label in found] == ["NM"] * len(others)


def pasted(source, scenery, place=LEFT, radius=0.2):
    """The object of one photograph before another, with a soft border."""
    weight = soft(blob(place, radius))[..., None] / 255
    return (PHOTOGRAPHS[source] * weight + PHOTOGRAPHS[scenery] * (1 - weight)).round().astype(np.uint8)


PASTED = [
    ("astronaut", "coffee"),
    ("chelsea", "brick"),
    ("coffee", "astronaut"),
    ("coins", "chelsea"),
    ("rocket", "gravel"),
]
MATTES = {
    "exact": soft(blob(LEFT)),
    "beside an object of the scenery": soft(blob(LEFT) | blob(RIGHT, 0.12)),
    "too large": soft(blob(LEFT), grow=4),
    "too small": soft(blob(LEFT), grow=-4),
    "low": soft(blob(LEFT), top=150),
}


@pytest.mark.parametrize("matte", MATTES)
def test_an_object_of_one_reference_before_the_background_of_another_names_both(matte):
    labels = labelled([pasted(*pair) for pair in PASTED], [MATTES[matte]] * len(PASTED))
    named = [(label.label, label.foreground_reference_id, label.background_reference_id) for label in labels]
    assert named == [("FM", source, scenery) for source, scenery in PASTED]
    assert all(label.foreground_copied and label.background_copied for label in labels)


def test_an_object_copied_before_a_new_scenery_is_found_whatever_else_is_in_front():
    """The union of foregrounds differs from any reference's."""
    new = cv2.resize(data.immunohistochemistry(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    weight = soft(blob(LEFT))[..., None] / 255
    pictures = [(pixels * weight + new * (1 - weight)).round().astype(np.uint8) for pixels in PHOTOGRAPHS.values()]
    labels = labelled(pictures, [soft(blob(LEFT) | blob(RIGHT, 0.16))] * len(NAMES))
    assert [(label.label, label.foreground_reference_id) for label in labels] == [("FM", name) for name in NAMES]


@pytest.mark.parametrize("radius", [0.12, 0.15, 0.2])
def test_a_copied_background_behind_a_small_new_object_is_bm(radius):
    new = cv2.resize(data.immunohistochemistry(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    weight = soft(blob((0.5, 0.5), radius))[..., None] / 255
    pictures = [(new * weight + pixels * (1 - weight)).round().astype(np.uint8) for pixels in PHOTOGRAPHS.values()]
    labels = labelled(pictures, [soft(blob((0.5, 0.5), radius))] * len(NAMES))
    assert [(label.label, label.background_reference_id) for label in labels] == [("BM", name) for name in NAMES]


@pytest.mark.parametrize("rule", ["per_region", "paper", "released"])
def test_an_identical_picture_without_an_object_is_vm(rule):
    references = picture_set(list(PHOTOGRAPHS.values()), [NOTHING] * len(NAMES), NAMES)
    planes = Planes(references, "masked")
    labels = labelled(references.images, [NOTHING] * len(NAMES), rule=rule, references=references, planes=planes)
    assert [(label.label, label.background_reference_id) for label in labels] == [("VM", name) for name in NAMES]


def cropped(pixels, share):
    edge = round((1 - share) / 2 * SIDE)
    return cv2.resize(pixels[edge : SIDE - edge, edge : SIDE - edge], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def shift(pixels, share):
    """By a share of the side; what comes in from the right is the scenery's edge."""
    by = round(share * SIDE)
    return np.concatenate([np.repeat(pixels[:, :1], by, axis=1), pixels[:, : SIDE - by]], axis=1)


EDITS = {
    "mirrored": lambda pixels: pixels[:, ::-1],
    "shifted 1 %": lambda pixels: shift(pixels, 6 / 512),
    "shifted 3 %": lambda pixels: shift(pixels, 16 / 512),
    "cropped to 95 %": lambda pixels: cropped(pixels, 0.95),
    "cropped to 80 %": lambda pixels: cropped(pixels, 0.8),
    "turned by 5 degrees": lambda pixels: turned(5).apply(pixels),
}
ORIGINALS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.mark.parametrize(
    ("alignment", "edits"), [("fast", list(EDITS)[:3]), ("thorough", list(EDITS)[3:])], ids=["fast", "thorough"]
)
def test_whole_copies_that_moved_are_found(alignment, edits):
    cases = [(edit, name) for edit in edits for name in ORIGINALS]
    pictures = [np.ascontiguousarray(EDITS[edit](PHOTOGRAPHS[name])) for edit, name in cases]
    alphas = [np.ascontiguousarray(EDITS[edit](REFERENCES.alphas[0])) for edit, _ in cases]
    found = labelled(pictures, alphas, alignment=alignment)
    wrong = [
        (*case, label.label, label.full_reference_id, label.full_similarity)
        for case, label in zip(cases, found, strict=True)
        if (label.label, label.full_reference_id) != ("VM", case[1])
    ]
    assert wrong == []


def test_the_square_in_the_middle_of_a_wide_or_tall_reference_is_a_copy_of_it(tmp_path):
    items, pictures = [], []
    for name, (width, height) in {"astronaut": (300, 200), "coffee": (200, 300), "chelsea": (400, 200)}.items():
        wide = Image.fromarray(getattr(data, name)()).resize((width, height))
        wide.save(tmp_path / f"{name}.png")
        Image.new("L", wide.size).save(tmp_path / f"{name}-matte.png")
        items.append((name, tmp_path / f"{name}.png", tmp_path / f"{name}-matte.png"))
        left, top = (width - 200) / 2, (height - 200) / 2
        pictures += [wide.resize((SIDE, SIDE), box=(left, top, left + 200, top + 200)), wide.resize((SIDE, SIDE))]
    references = load_image_set(items, size=SIDE, crops=True)
    labels = labelled(
        [np.asarray(p) for p in pictures], [NOTHING] * 6, references=references, planes=Planes(references, "masked")
    )
    found = [(label.label, label.full_reference_id, label.transform) for label in labels]
    assert found == [("VM", name, view) for name, *_ in items for view in ("center crop", "whole")]
