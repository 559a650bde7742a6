"""Reference images: every status, and decoding of odd files."""

import hashlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.inputs.references import ReferenceImage, read_references


def picture(seed=0, size=(24, 16), mode="RGB"):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def manifest(folder, *rows, header="reference_id,path,caption,url"):
    (folder / "references.csv").write_text("\n".join([header, *rows]) + "\n")


def statuses(folder):
    return {reference.reference_id: (reference.status, reference.reason) for reference in read_references(folder)}


def test_images_without_a_manifest_are_found_by_suffix_and_named_by_their_path(tmp_path):
    (tmp_path / "below").mkdir()
    contents = {
        "b.png": encoded(picture(1)),
        "a.JPG": encoded(picture(2), "JPEG"),
        "below/c.webp": encoded(picture(3), "WEBP"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("no image")
    sha = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert list(read_references(tmp_path)) == [
        ReferenceImage("a", "a.JPG", "ok", sha["a.JPG"], 24, 16),
        ReferenceImage("b", "b.png", "ok", sha["b.png"], 24, 16),
        ReferenceImage("below/c", "below/c.webp", "ok", sha["below/c.webp"], 24, 16),
    ]


def test_files_that_differ_by_suffix_alone_keep_it_in_their_id(tmp_path):
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "a.jpg")
    picture(3).save(tmp_path / "b.png")
    assert [reference.reference_id for reference in read_references(tmp_path)] == ["a.jpg", "a.png", "b"]


def test_a_manifest_names_the_references_in_its_order(tmp_path):
    picture(1).save(tmp_path / "one.png")
    picture(2).save(tmp_path / "two.png")
    picture(3).save(tmp_path / "unnamed.png")
    manifest(tmp_path, 'z,one.png,"An owl, standing",https://a.example', "a,two.png,,")
    first, second, third = read_references(tmp_path)
    assert (first.reference_id, first.path, first.caption, first.url) == (
        "z", "one.png", "An owl, standing", "https://a.example",
    )  # fmt: skip
    assert (second.reference_id, second.path, second.caption, second.url) == ("a", "two.png", None, None)
    assert {first.status, second.status} == {"ok"}
    assert (third.status, third.reason) == ("unlisted", "references.csv does not name it")


def test_every_reference_that_cannot_be_used_says_why(tmp_path):
    folder = tmp_path / "references"
    folder.mkdir()
    whole = encoded(picture(1))
    (folder / "ok.png").write_bytes(whole)
    (folder / "copy.png").write_bytes(whole)
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_text("<html>404 Not Found</html>")
    (folder / "empty.png").write_bytes(b"")
    picture(2, (40, 7)).save(folder / "thin.png")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "flat.png")
    picture(3).save(tmp_path / "outside.png")
    names = ["ok", "copy", "cut", "page", "empty", "thin", "flat", "gone"]
    manifest(folder, *(f"{name},{name}.png,," for name in names), "out,../outside.png,,", "folder,.,,", "short")
    found = statuses(folder)
    assert {name: status for name, (status, _) in found.items()} == {
        "ok": "ok",
        "copy": "duplicate",
        "cut": "unreadable",
        "page": "unreadable",
        "empty": "unreadable",
        "thin": "placeholder",
        "flat": "placeholder",
        "gone": "missing",
        "out": "unreadable",
        "folder": "missing",
        "short": "missing",
    }
    assert found["ok"][1] is None
    assert found["copy"][1] == "the same file as ok"
    assert found["thin"][1] == "only 40x7 px"
    assert found["flat"][1] == "a single colour"
    assert found["gone"][1] == "no such file: gone.png"
    assert found["short"][1] == "no path"
    assert found["out"][1].startswith("its path leads out of the folder")
    assert "Expected a readable image" in found["cut"][1]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    folder = tmp_path / "references"
    folder.mkdir()
    picture(1).save(tmp_path / "outside.png")
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    [(status, reason)] = statuses(folder).values()
    assert status == "unreadable"
    assert reason.startswith("its path leads out of the folder")


def test_a_copy_of_an_unusable_reference_is_no_duplicate(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.png")
    assert {status for status, _ in statuses(tmp_path).values()} == {"placeholder"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,file\na,a.png\n", r"the columns reference_id and path, but got `id`, `file` in .*references\.csv\. Add"),
        ("", r"the columns reference_id and path, but got none"),
        ("reference_id,path\n", r"at least one reference, but got none in .*references\.csv\. Name the images"),
        ("reference_id,path\na,a.png\na,b.png\n", r"every reference_id once, but got `a` again .* Make the ids unique"),
        (
            "reference_id,path\ncaf\xe9,a.png\n".encode("latin-1"),
            r"bytes in line 2 that are no UTF-8 in .*references\.csv\. Save it anew as UTF-8",
        ),
    ],
)
def test_an_unusable_manifest_is_refused_with_the_cure(tmp_path, content, message):
    (tmp_path / "references.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        list(read_references(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"Expected images \(.*\.png, .*\), .*, but got none in .*\. Put them there"):
        list(read_references(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a folder of images, but got no such folder in .*nowhere"):
        list(read_references(tmp_path / "nowhere"))


def test_exif_orientation_turns_the_image_upright(tmp_path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = open_rgb(tmp_path / "a.png")
    assert upright.size == (8, 16)
    assert (upright.getpixel((4, 2)), upright.getpixel((4, 13))) == ((255, 0, 0), (255, 255, 255))
    [reference] = read_references(tmp_path)
    assert (reference.width, reference.height) == (8, 16)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / "a.png")
    opened = np.asarray(open_rgb(tmp_path / "a.png"))
    assert opened.shape == (16, 16, 3)
    np.testing.assert_allclose(opened[..., 0], shades / 257, atol=1)
    assert statuses(tmp_path) == {"a": ("ok", None)}


def test_float_grey_is_scaled_to_its_peak(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tiff")
    opened = np.asarray(open_rgb(tmp_path / "a.tiff"))
    assert (opened.min(), opened.max(), opened[0, 1, 1]) == (0, 255, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 8))
    image.convert(mode).save(tmp_path / "a.png")
    opened = open_rgb(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert (opened.getpixel((2, 4)), opened.getpixel((12, 4))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_every_opaque_mode_becomes_rgb(tmp_path, mode):
    kind, name = ("JPEG", "a.jpg") if mode == "CMYK" else ("PNG", "a.png")
    picture(1, mode=mode).save(tmp_path / name, format=kind)
    with Image.open(tmp_path / name) as image:
        expected = image.convert("RGB")
    assert open_rgb(tmp_path / name).tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the very damage that is done here
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_cut_off_anywhere_is_an_input_error_or_a_whole_image(tmp_path, kind):
    content = encoded(picture(1), kind)
    path = tmp_path / "a.png"
    refused = 0
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        try:
            assert open_rgb(path).size == (24, 16)
        except InputError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            refused += 1
    assert refused > 45


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    header = encoded(Image.new("L", (16, 16)))
    huge = header[:16] + (40_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big") + header[24:29]
    path = tmp_path / "a.png"
    path.write_bytes(huge + zlib.crc32(huge[12:29]).to_bytes(4, "big") + header[33:])
    with pytest.raises(InputError, match=r"a\.png\. Replace or remove the file\.") as caught:
        open_rgb(path)
    assert "DecompressionBomb" in str(caught.value) or "40000x40000" in str(caught.value)
