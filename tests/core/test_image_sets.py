"""Image sets: reading, resizing and keeping images and mattes, and their planes at every scale."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.retrieval import planes as planes_module
from fbmem_core.retrieval.image_sets import ImageSet, load_image_set
from fbmem_core.retrieval.planes import OBJECT, Planes
from fbmem_core.similarity.objects import objects
from fbmem_core.similarity.regions import MEASURES
from tests.core.test_ms_ssim import images, patch

MASKINGS = ["masked", "composite"]
ORANGE = (255, 128, 0)


def image_set(prefix, pictures, alphas):
    """A set of pictures and mattes in [0, 1]; a matte of NaN is undecided."""
    pixels = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    decided = ~alphas.isnan().any(dim=(1, 2, 3))
    mattes = (alphas.nan_to_num() * 255).round().byte()[:, 0].numpy()
    return ImageSet(tuple(f"{prefix}{row}" for row in range(len(pixels))), pixels, mattes, decided.numpy())


@pytest.fixture
def items(tmp_path):
    """Three pictures of different aspects: a half covered, an undecided and a clear one."""
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (40, 20), ORANGE).save(source / "a.png")
    matte = Image.new("L", (40, 20), 0)
    matte.paste(255, (20, 0, 40, 20))
    matte.save(source / "a-matte.png")
    Image.new("RGB", (30, 50), (0, 0, 255)).save(source / "b.png")
    Image.new("RGB", (16, 16), (9, 8, 7)).save(source / "c.png")
    Image.new("L", (16, 16), 0).save(source / "c-matte.png")
    return [
        ("a", source / "a.png", source / "a-matte.png"),
        ("b", source / "b.png", None),
        ("c", source / "c.png", source / "c-matte.png"),
    ]


@pytest.fixture
def large_items(tmp_path):
    """Five pictures that five scales fit in, the third undecided."""
    source = tmp_path / "large"
    source.mkdir()
    drawn = image_set("p", images(1, 5), torch.cat([patch(10 + 20 * row, 20, 60, 90) for row in range(5)]))
    for name, pixels, alpha in zip(drawn.ids, drawn.images, drawn.alphas, strict=True):
        Image.fromarray(pixels).save(source / f"{name}.png")
        Image.fromarray(alpha).save(source / f"{name}-matte.png")
    mattes = [source / f"{name}-matte.png" if name != "p2" else None for name in drawn.ids]
    return [(name, source / f"{name}.png", matte) for name, matte in zip(drawn.ids, mattes, strict=True)]


def remove_sources(items):
    for _, image, matte in items:
        image.unlink()
        if matte is not None:
            matte.unlink()


def assert_equal(found, expected):
    assert found.ids == expected.ids
    for name in ("images", "alphas", "decided"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert (getattr(found, name) == getattr(expected, name)).all()


def test_images_and_mattes_are_read_at_one_size(items):
    loaded = load_image_set(items, size=16)
    assert (loaded.ids, len(loaded), loaded.size, loaded.folder) == (("a", "b", "c"), 3, 16, None)
    assert (loaded.images.shape, loaded.images.dtype) == ((3, 16, 16, 3), np.uint8)
    assert (loaded.images[0] == ORANGE).all()
    assert (loaded.alphas.shape, loaded.alphas.dtype) == ((3, 16, 16), np.uint8)
    assert loaded.alphas[0, :, :6].max() == 0
    assert loaded.alphas[0, :, 10:].min() == 255
    assert loaded.alphas[2].max() == 0


def test_only_a_missing_matte_is_undecided(items):
    assert load_image_set(items, size=16).decided.tolist() == [True, False, True]


def test_tensors_are_between_0_and_1_and_in_the_order_that_is_asked_for(items):
    x, alpha = load_image_set(items, size=16).tensors(torch.tensor([1, 0]))
    assert (x.shape, alpha.shape) == ((2, 3, 16, 16), (2, 1, 16, 16))
    assert x[:, :, 3, 5].flatten().tolist() == pytest.approx([0, 0, 1, 1, 128 / 255, 0])
    assert alpha[:, 0, 3, -1].tolist() == [0, 1]


def test_a_selection_has_its_order_and_its_mattes(items):
    loaded = load_image_set(items, size=16)
    chosen = loaded.select([2, 0])
    assert (chosen.ids, len(chosen)) == (("c", "a"), 2)
    assert (chosen.images == loaded.images[[2, 0]]).all()
    assert (chosen.alphas == loaded.alphas[[2, 0]]).all()
    assert loaded.select([1, 2]).decided.tolist() == [False, True]
    assert len(loaded.select([])) == 0


def test_progress_is_the_number_of_images_read(items):
    done = []
    load_image_set(items, size=16, report=done.append)
    assert done == [1, 2, 3]


@pytest.mark.parametrize("folder", [None, "kept"])
def test_no_images_are_an_empty_set(tmp_path, folder):
    loaded = load_image_set([], size=176, folder=folder and tmp_path / folder)
    assert (len(loaded), loaded.images.shape, loaded.decided.shape) == (0, (0, 176, 176, 3), (0,))


@pytest.mark.parametrize(
    ("spoil", "fragments"),
    [
        (
            lambda path: Image.new("L", (20, 40)).save(path),
            ["a mask of 40x20 px, as its image", "but got 20x40", "Make it as large as its image."],
        ),
        (
            lambda path: path.write_bytes(b"no picture"),
            ["a readable mask", "UnidentifiedImageError", "Save it as an 8-bit grey PNG"],
        ),
        (lambda path: path.unlink(), ["a readable mask", "FileNotFoundError"]),
    ],
)
def test_an_unusable_matte_is_one_line_that_names_it(items, spoil, fragments):
    matte = items[0][2]
    spoil(matte)
    with pytest.raises(InputError) as caught:
        load_image_set(items, size=16)
    text = str(caught.value)
    assert "\n" not in text
    for fragment in [*fragments, f"in {matte}. "]:
        assert fragment in text


def test_an_image_that_does_not_decode_is_named(items):
    items[1][1].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a readable image.*b\.png\. Replace"):
        load_image_set(items, size=16)


def test_a_folder_keeps_what_was_read(items, tmp_path):
    expected = load_image_set(items, size=16)
    folder = tmp_path / "cache" / "kept"
    first = load_image_set(items, size=16, folder=folder)
    remove_sources(items)
    again = load_image_set(items, size=16, folder=folder)
    for loaded in (first, again):
        assert_equal(loaded, expected)
        assert loaded.folder == folder
        assert isinstance(loaded.images, np.memmap)
        assert isinstance(loaded.alphas, np.memmap)
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_a_stopped_load_is_not_taken_for_a_whole_one(items, tmp_path):
    folder = tmp_path / "kept"

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_image_set(items, size=16, folder=folder, report=stop)
    assert not folder.exists()
    assert_equal(load_image_set(items, size=16, folder=folder), load_image_set(items, size=16))


def test_a_folder_of_another_number_of_images_is_refused(items, tmp_path):
    load_image_set(items, size=16, folder=tmp_path / "kept")
    with pytest.raises(InputError, match=r"Expected 2 images, but got 3 in .*kept\. Remove the folder\."):
        load_image_set(items[:2], size=16, folder=tmp_path / "kept")


def assert_fresh(planes, of):
    """The planes of some rows are those that the measures make of their images."""
    rows = torch.tensor([4, 0, 3])
    for region in set(planes.measures) - {OBJECT}:
        for scale, expected in enumerate(planes.measures[region].scales(*of.tensors(rows))):
            torch.testing.assert_close(planes(region, scale, rows), expected, atol=1e-6, rtol=0)
    if OBJECT in planes.measures:
        assert_objects(planes, of)


def assert_objects(planes, of):
    """The planes of objects show them alone, in the colours of their images."""
    chosen = torch.arange(len(planes.image_of_object)).flip(0)
    x, _ = of.tensors(planes.image_of_object[chosen])
    numbers = torch.stack([torch.from_numpy(objects(of.alphas[row])) for row in planes.image_of_object[chosen]])
    places = (numbers == planes.number_of_object[chosen][:, None, None])[:, None].float()
    assert places.flatten(1).any(dim=1).all()
    for scale, expected in enumerate(planes.measures[OBJECT].scales(x, places)):
        torch.testing.assert_close(planes.side(OBJECT)(scale, chosen), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_planes_are_those_of_the_measures(large_items, tmp_path, monkeypatch, masking, keep, where):
    monkeypatch.setattr(planes_module, "_BATCH_PIXELS", 2 * 161**2)
    if not keep:
        monkeypatch.setattr(planes_module, "_RAM_BYTES", 0)
        monkeypatch.setattr(planes_module, "_DISK_BYTES", 0)
    loaded = load_image_set(large_items, size=161, folder=None if where == "memory" else tmp_path / "kept")
    planes = Planes(loaded, masking)
    assert planes.measures is MEASURES[masking]
    assert_fresh(planes, loaded)
    assert any(tmp_path.glob("kept/masked-*.npy" if masking == "masked" else "kept/composite-*.npy")) == (
        keep and where == "disk"
    )


@pytest.mark.parametrize("masking", MASKINGS)
def test_planes_on_disk_are_not_made_again(large_items, tmp_path, masking):
    loaded = load_image_set(large_items, size=161, folder=tmp_path / "kept")
    Planes(loaded, masking)
    black = dataclasses.replace(loaded, images=np.zeros_like(loaded.images))
    again = Planes(black, masking)
    rows = torch.arange(5)
    for region in set(again.measures) - {OBJECT}:
        fresh = again.measures[region].scales(*loaded.tensors(rows))
        for scale in (3, 4):
            torch.testing.assert_close(again(region, scale, rows), fresh[scale], atol=1e-6, rtol=0)
    assert (again("full", 0, rows) == 0).all()


def test_stopped_planes_are_not_taken_for_whole_ones(large_items, tmp_path, monkeypatch):
    monkeypatch.setattr(planes_module, "_BATCH_PIXELS", 2 * 161**2)
    loaded = load_image_set(large_items, size=161, folder=tmp_path / "kept")

    class Stopping(ImageSet):
        def tensors(self, rows, device="cpu"):
            if 4 in rows:
                raise KeyboardInterrupt
            return super().tensors(rows, device)

    with pytest.raises(KeyboardInterrupt):
        Planes(Stopping(loaded.ids, loaded.images, loaded.alphas, loaded.decided, loaded.folder), "masked")
    assert_fresh(Planes(loaded, "masked"), loaded)


@pytest.mark.parametrize("masking", MASKINGS)
def test_an_empty_set_has_empty_planes(masking):
    planes = Planes(load_image_set([], size=176), masking)
    for region in planes.measures:
        assert len(planes(region, 4, torch.arange(0))) == 0


def test_planes_of_images_too_small_for_five_scales_are_refused(items):
    with pytest.raises(InputError, match=r"sides of at least 161 px for 5 scales, but got \(160, 160\)"):
        Planes(load_image_set(items, size=160), "masked")
