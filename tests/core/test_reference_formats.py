"""One reference set as a folder, as img2dataset's tars, as Parquet and as a Hugging Face dataset: the same pictures."""

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.inputs.references import read_references

NUM = 12


def png(seed, size=(24, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CONTENTS = {f"{number:05}": png(number) for number in range(NUM)}


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_folder(folder):
    folder.mkdir()
    for key, content in CONTENTS.items():
        (folder / f"{key}.png").write_bytes(content)


def write_tars(folder):
    folder.mkdir()
    keys = sorted(CONTENTS)
    for shard, part in enumerate((keys[: NUM // 2], keys[NUM // 2 :])):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for key in part:
                add(tar, f"{key}.png", CONTENTS[key])
                add(tar, f"{key}.txt", b"a caption")
                add(tar, f"{key}.json", json.dumps({"url": f"https://a.example/{key}", "key": key}).encode())
        pl.DataFrame({
            "key": [*part, f"gone{shard}"], "url": [None] * (len(part) + 1),
            "status": ["success"] * len(part) + ["failed_to_download"],
            "error_message": [None] * len(part) + ["HTTP Error 404"],
        }).write_parquet(folder / f"{shard:05}.parquet")  # fmt: skip
        (folder / f"{shard:05}_stats.json").write_text("{}")


def write_parquet(folder):
    folder.mkdir()
    frame = pl.DataFrame({"key": list(CONTENTS), "jpg": list(CONTENTS.values()), "caption": ["a caption"] * NUM})
    frame.write_parquet(folder / "data.parquet", row_group_size=5)


def hub_table():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": content, "path": f"{key}.png"} for key, content in CONTENTS.items()]
    return pa.table({"image": pa.array(rows, kind), "text": pa.array(["a caption"] * NUM)})


def write_hub_parquet(folder):
    (folder / "data").mkdir(parents=True)
    pq.write_table(hub_table(), folder / "data" / "train-00000-of-00001.parquet", row_group_size=5)


def write_saved_dataset(folder):
    folder.mkdir()
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", hub_table().schema) as writer:
        writer.write_table(hub_table(), max_chunksize=5)
    (folder / "dataset_info.json").write_text("{}")


WRITERS = [write_folder, write_tars, write_parquet, write_hub_parquet, write_saved_dataset]


@pytest.mark.parametrize("write", WRITERS)
def test_each_form_of_a_set_gives_the_same_references_and_nothing_is_unpacked(write, tmp_path):
    folder = tmp_path / "set"
    write(folder)
    before = sorted(folder.rglob("*"))
    found = list(read_references(folder))
    used = {reference.reference_id: reference for reference in found if reference.status == "ok"}
    assert {name: reference.sha256 for name, reference in used.items()} == {
        key: hashlib.sha256(content).hexdigest() for key, content in CONTENTS.items()
    }
    for key, reference in used.items():
        assert open_rgb(reference.address).tobytes() == Image.open(io.BytesIO(CONTENTS[key])).tobytes()
    assert sorted(folder.rglob("*")) == before
    if write is not write_folder:
        assert {reference.caption for reference in used.values()} == {"a caption"}


def test_what_img2dataset_could_not_fetch_is_missing_with_its_reason(tmp_path):
    write_tars(tmp_path / "set")
    gone = {r.reference_id: (r.status, r.reason) for r in read_references(tmp_path / "set") if r.status != "ok"}
    reason = "failed_to_download: HTTP Error 404"
    assert gone == {"gone0": ("missing", reason), "gone1": ("missing", reason)}
    tar = next(r for r in read_references(tmp_path / "set") if r.status == "ok")
    assert tar.url == "https://a.example/00000"


def test_one_file_is_a_set_and_so_is_the_url_of_a_folder(tmp_path):
    for write in (write_tars, write_parquet):
        folder = tmp_path / write.__name__
        write(folder)
        local = [(r.reference_id, r.sha256) for r in read_references(folder) if r.status == "ok"]
        remote = [(r.reference_id, r.sha256) for r in read_references(f"file://{folder}") if r.status == "ok"]
        assert remote == local
        assert len(local) == NUM
    one = list(read_references(tmp_path / "write_parquet" / "data.parquet"))
    assert [r.reference_id for r in one] == sorted(CONTENTS)


def test_a_url_that_cannot_be_listed_is_one_line(tmp_path):
    for url in ("nosuch://bucket/x", f"file://{tmp_path}/nowhere"):
        with pytest.raises(InputError) as caught:
            list(read_references(url))
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)


def test_rows_without_bytes_and_members_that_are_no_pictures_are_named(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(1), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None, {"bytes": b"x", "path": None}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        add(tar, "c.heic", b"no picture")
        add(tar, "d", png(2))
    (tmp_path / "broken.tar").write_bytes(b"\x01" * 2000)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    found = {reference.reference_id: reference for reference in read_references(tmp_path)}
    assert {name: reference.status for name, reference in found.items()} == {
        "a": "ok", "b": "unreadable", "t-2": "unreadable", "t-3": "unreadable", "c": "unreadable", "d": "ok",
        "broken.tar": "unreadable", "broken.parquet": "unreadable", "packed.tar": "unreadable",
    }  # fmt: skip
    assert "holds no bytes" in found["b"].reason
    assert "suffix `.heic`" in found["c"].reason


def test_every_file_that_is_not_looked_at_is_named(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(png(5))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "phone.heic").write_bytes(b"no picture here")
    (folder / "without_suffix").write_bytes(png(1))
    (folder / "wrong.dat").write_bytes(png(2))
    (folder / "notes.txt").write_text("a caption")
    (folder / "linked").symlink_to(outside)
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "out.png").symlink_to(outside / "x.png")
    (folder / "in.png").symlink_to(folder / "without_suffix")
    found = {reference.reference_id: (reference.status, reference.reason) for reference in read_references(folder)}
    assert {name: status for name, (status, _) in found.items()} == {
        "phone": "unreadable", "without_suffix": "duplicate", "wrong": "ok", "linked": "unreadable",
        "dead": "missing", "out": "unreadable", "in": "ok",
    }  # fmt: skip
    assert "a link to" in found["dead"][1]
    assert "a link to a folder" in found["linked"][1]


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    (snapshot / "train").mkdir(parents=True)
    (blobs / "1234").write_bytes(png(1))
    (snapshot / "train" / "0.png").symlink_to("../../../blobs/1234")
    assert [(r.reference_id, r.status) for r in read_references(snapshot)] == [("train/0", "ok")]


def test_names_of_any_bytes_are_kept_readable_and_tell_pictures_apart(tmp_path):
    for number, name in enumerate([b"caf\xe9.png", "café.png".encode(), b"x.jpg", b"x.png", b"x.png.png", b"a\nb.png"]):
        (tmp_path / os.fsdecode(name)).write_bytes(png(number))
    found = list(read_references(tmp_path))
    assert {reference.status for reference in found} == {"ok"}
    assert {r.reference_id for r in found} == {"caf\\xe9", "café", "x.jpg", "x.png", "x.png.png", "a\nb"}
    for reference in found:
        reference.address.encode()
        assert open_rgb(reference.address).size == (24, 16)


@pytest.mark.parametrize(("top", "kind"), [(255, "uint16"), (4095, "uint16"), (65535, "uint16"), (4095, "int32"), (1.0, "float32"), (255.0, "float32")])  # fmt: skip  # noqa: E501
def test_numbers_that_do_not_fill_their_type_keep_their_shades(tmp_path, top, kind):
    shades = np.linspace(0, top, 256).reshape(16, 16).astype(kind)
    Image.fromarray(shades).save(tmp_path / "a.tiff")
    opened = np.asarray(open_rgb(tmp_path / "a.tiff"))[..., 0]
    np.testing.assert_allclose(opened, np.linspace(0, 255, 256).reshape(16, 16), atol=1)


@pytest.mark.parametrize("bad", [np.nan, -5.0, 1e9])
def test_numbers_that_are_no_shades_are_refused_with_what_they_are(tmp_path, bad):
    shades = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    shades[3, 3] = bad
    Image.fromarray(shades).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"grey numbers from 0 to 65535, but got numbers from"):
        open_rgb(tmp_path / "a.tiff")


def test_a_picture_is_looked_at_again_only_when_it_changed(tmp_path, monkeypatch):
    from fbmem_core.inputs import references

    folder, kept = tmp_path / "set", tmp_path / "kept.sqlite"
    write_folder(folder)
    first = list(read_references(folder, cache=kept))
    looked = []
    real = references.decode_rgb
    monkeypatch.setattr(
        references, "decode_rgb", lambda content, where: looked.append(where) or real(content, where=where)
    )
    assert list(read_references(folder, cache=kept)) == first
    assert looked == []
    (folder / "00003.png").write_bytes(png(99, size=(30, 30)))
    again = list(read_references(folder, cache=kept))
    assert looked == ["00003.png"]
    assert (again[3].width, again[2]) == (30, first[2])
    kept.write_bytes(b"no database")
    assert list(read_references(folder, cache=kept)) == again
