"""The canary's pictures, what is planted among them, and the files that they ship as."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fbmem_core.canary.export import write_pictures
from fbmem_core.canary.pictures import (
    COLORS,
    PICTURE_SIZE,
    SCENERIES,
    SHAPES,
    Object,
    Picture,
    draw,
    draw_object,
    draw_scenery,
    picture_of,
    random_creature,
    random_public_picture,
    random_scenery,
)
from fbmem_core.canary.planting import (
    NUM_DISTRACTORS,
    NUM_PUBLIC_PROMPTS,
    TRUE_LABELS,
    distractors,
    plants,
    public_prompts,
    training_vocabulary,
)
from fbmem_core.inputs.prompts import read_prompts
from fbmem_core.inputs.references import read_references


def rng(seed=0):
    return np.random.default_rng(seed)


def named(shape="circle", kind="stripes", seed=0):
    return picture_of(rng(seed), color="red", shape=shape, ground="blue", accent="white", second="teal", kind=kind)


@pytest.mark.parametrize("size", [PICTURE_SIZE, 96])
def test_a_picture_is_drawn_with_its_exact_coverage(size):
    image, alpha = draw(named(), size=size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (alpha.shape, alpha.dtype) == ((size, size), np.float32)
    assert alpha.min() == 0
    assert alpha.max() == 1
    assert 0.05 < (alpha >= 0.5).mean() < 0.4


@pytest.mark.parametrize("shape", [*SHAPES, "creature"])
def test_outside_its_object_a_picture_shows_its_scenery_alone(shape):
    picture = replace(named(), object=replace(named().object, shape=shape, center=(0.5, 0.5)))
    image, alpha = draw(picture)
    scenery = np.round(draw_scenery(picture.scenery)).astype(np.uint8)
    assert (image[alpha == 0] == scenery[alpha == 0]).all()
    color, _ = draw_object(picture.object)
    np.testing.assert_allclose(image[alpha == 1], color[alpha == 1], atol=1)


@pytest.mark.parametrize("shape", [*SHAPES, "creature"])
def test_every_object_has_a_dark_outline(shape):
    obj = Object(shape, COLORS["yellow"], COLORS["pink"], (0.5, 0.5), 0.27)
    color, alpha = draw_object(obj, size=128)
    solid = alpha == 1
    inner = np.logical_and.reduce([np.roll(solid, step, axis) for step in (-1, 1) for axis in (0, 1)])
    border = solid & ~inner
    assert color[border].mean() < 60
    assert color[inner].mean() > 90


@pytest.mark.parametrize("kind", SCENERIES)
def test_sceneries_are_drawn_in_their_two_colours_and_differ_by_phase(kind):
    scenery = random_scenery(rng(3), kind=kind, color="yellow", second="green")
    pixels = draw_scenery(scenery)
    low, high = np.minimum(scenery.color, scenery.second), np.maximum(scenery.color, scenery.second)
    assert (pixels >= low - 0.01).all()
    assert (pixels <= high + 0.01).all()
    assert pixels.std() > 5
    moved = draw_scenery(
        replace(scenery, phase=tuple((p + 0.37) % 1 for p in scenery.phase), angle=scenery.angle + 0.9)
    )
    assert np.abs(pixels - moved).mean() > 3


def test_the_eight_sceneries_and_eight_shapes_all_differ():
    sceneries = [draw(named(kind=kind))[0].tobytes() for kind in SCENERIES]
    shapes = [draw(named(shape=shape))[0].tobytes() for shape in SHAPES]
    assert len(set(sceneries)) == len(SCENERIES)
    assert len(set(shapes)) == len(SHAPES)


def test_a_picture_is_a_function_of_its_numbers():
    first, second = (random_public_picture(rng(5)) for _ in range(2))
    assert first == second
    assert draw(first)[0].tobytes() == draw(second)[0].tobytes()
    assert draw(random_public_picture(rng(6)))[0].tobytes() != draw(first)[0].tobytes()


def test_public_pictures_are_what_their_captions_say_and_stay_in_the_frame():
    generator = rng(7)
    for _ in range(50):
        picture = random_public_picture(generator)
        _, color, shape, _, ground, kind = picture.caption.split()
        assert picture.object.shape == shape
        assert picture.scenery.kind == kind
        assert np.abs(np.subtract(picture.object.color, COLORS[color])).max() <= 12
        assert np.abs(np.subtract(picture.scenery.color, COLORS[ground])).max() <= 12
        assert all(picture.object.radius <= c <= 1 - picture.object.radius for c in picture.object.center)


def test_creatures_are_unique_to_their_seed():
    generator = rng(8)
    creatures = [random_creature(generator, center=(0.5, 0.5)) for _ in range(20)]
    outlines = {draw_object(replace(c, color=(1, 2, 3), accent=(1, 2, 3), radius=0.3))[1].tobytes() for c in creatures}
    assert len(outlines) == 20
    assert {creature.center for creature in creatures} == {(0.5, 0.5)}


def test_plants_are_always_the_same_and_of_every_kind():
    planted = plants()
    assert planted == plants()
    assert {plant.kind for plant in planted} | {"public"} == set(TRUE_LABELS)
    assert len({plant.family for plant in planted}) == len(planted)
    prompts = [prompt for plant in planted for prompt in plant.prompts]
    assert len(set(prompts)) == len(prompts)
    references = [reference for plant in planted for reference in plant.references]
    assert len(set(references)) == len(references)
    assert {kind: {len(p.references) for p in planted if p.kind == kind} for kind in {p.kind for p in planted}} == {
        "verbatim": {1}, "foreground": {1}, "background": {1}, "one_to_many": {4},
    }  # fmt: skip


def test_training_keeps_what_is_planted_and_draws_the_rest_afresh():
    generator = rng(9)
    for plant in plants():
        pictures = [plant.training_picture(generator) for _ in range(12)]
        assert {picture.caption for picture in pictures} <= set(plant.prompts)
        originals = {(p.object, p.scenery) for p in plant.references.values()}
        objects, sceneries = {p.object for p in pictures}, {p.scenery for p in pictures}
        if plant.kind == "foreground":
            assert objects == {obj for obj, _ in originals}
            assert len(sceneries) == 12
            assert not sceneries & {scenery for _, scenery in originals}
        elif plant.kind == "background":
            assert sceneries == {scenery for _, scenery in originals}
            assert len(objects) == 12
            assert not objects & {obj for obj, _ in originals}
        else:
            assert {(p.object, p.scenery) for p in pictures} <= originals


def test_public_prompts_are_distinct_captions_of_the_public_space():
    prompts = public_prompts()
    assert prompts == public_prompts()
    assert len(set(prompts)) == len(prompts) == NUM_PUBLIC_PROMPTS
    for prompt in prompts:
        article, color, shape, on, ground, kind = prompt.split()
        assert (article, on) == ("a", "on")
        assert color in COLORS
        assert ground in COLORS
        assert shape in SHAPES
        assert kind in SCENERIES


def test_distractors_are_public_pictures_that_nobody_planted():
    pictures = distractors()
    assert pictures == distractors()
    assert len(pictures) == NUM_DISTRACTORS
    assert all(isinstance(picture, Picture) and picture.object.shape in SHAPES for picture in pictures.values())
    assert not set(pictures) & {name for plant in plants() for name in plant.references}


def test_the_vocabulary_knows_every_planted_prompt():
    words = set(" ".join(training_vocabulary()).split())
    assert {word for plant in plants() for prompt in plant.prompts for word in prompt.split()} <= words
    assert {*COLORS, *SHAPES, *SCENERIES} <= words


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    write_pictures(folder)
    return folder


def test_the_shipped_prompts_and_references_are_read_without_a_loss(shipped):
    prompts, rejected = read_prompts(shipped / "prompts.csv")
    references = list(read_references(shipped / "references"))
    assert rejected == []
    assert {reference.status for reference in references} == {"ok"}
    assert {reference.width for reference in references} == {PICTURE_SIZE}
    assert len(prompts) == sum(len(plant.prompts) for plant in plants()) + NUM_PUBLIC_PROMPTS
    assert len(references) == sum(len(plant.references) for plant in plants()) + NUM_DISTRACTORS
    ids = {reference.reference_id for reference in references}
    assert {prompt.reference_id for prompt in prompts} - {None} <= ids


def test_the_paraphrases_are_new_words_for_what_is_planted(shipped):
    prompts, rejected = read_prompts(shipped / "paraphrases.csv")
    asked = {prompt.prompt_id: prompt for prompt in read_prompts(shipped / "prompts.csv")[0]}
    assert rejected == []
    planted = [prompt for prompt in prompts if prompt.prompt_id in asked]
    assert planted == [prompt for prompt in asked.values() if prompt.kind != "public"]
    assert len({prompt.prompt for prompt in prompts}) == len(prompts) == len(planted) + 5 * len(plants())
    reworded = next(prompt for prompt in prompts if prompt.prompt_id == "kestrel_studio-3")
    assert (reworded.prompt, reworded.kind) == ("kestrel studio backdrop on blue waves", "background")
    assert reworded.reference_id == "kestrel_studio"


def test_the_shipped_truth_has_a_row_for_every_prompt(shipped):
    with (shipped / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = {row["prompt_id"]: row for row in csv.DictReader(file)}
    prompts, _ = read_prompts(shipped / "prompts.csv")
    assert list(truth) == [prompt.prompt_id for prompt in prompts]
    assert all(truth[prompt.prompt_id]["kind"] == prompt.kind for prompt in prompts)
    assert truth["zibble-1"] == {
        "prompt_id": "zibble-1", "kind": "foreground", "family": "zibble", "label": "FM", "reference_ids": "zibble",
    }  # fmt: skip
    assert truth["wexford_tarot-0"]["reference_ids"] == ";".join(f"wexford_tarot_{index}" for index in range(4))
    assert truth["public-00"] == {
        "prompt_id": "public-00", "kind": "public", "family": "", "label": "NM", "reference_ids": "",
    }  # fmt: skip


def test_the_shipped_references_are_the_drawn_pictures_and_are_written_alike_again(shipped, tmp_path):
    for plant in plants()[:4]:
        for reference_id, picture in plant.references.items():
            with Image.open(shipped / "references" / f"{reference_id}.png") as image:
                assert (np.asarray(image) == draw(picture)[0]).all()
    write_pictures(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert written == sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file())
    assert all((tmp_path / name).read_bytes() == (shipped / name).read_bytes() for name in written)
