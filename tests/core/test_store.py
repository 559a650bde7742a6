"""The store: whole rows in and out, written completely or not at all."""

import hashlib
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.store.images import file_sha256, has_image, image_path, open_image, save_png
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store

KEY = "mine-0123456789ab"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def generation(prompt_id="p", seed=0, **changes):
    path = f"images/{prompt_id}-{seed}.png"
    row = {"method": "none", "prompt_id": prompt_id, "seed": seed, "path": path, "sha256": "0", "width": 8, "height": 9}
    return {**row, **changes}


def files(store):
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())


def test_rows_come_back_whole_in_the_order_of_their_keys(store):
    assert store.write("generations", KEY, [generation("q"), generation("p", 1), generation("p", 0)]) == 3
    assert store.read("generations", KEY).rows(named=True) == [
        {"checkpoint": KEY, **generation("p", 0)},
        {"checkpoint": KEY, **generation("p", 1)},
        {"checkpoint": KEY, **generation("q", 0)},
    ]
    assert files(store) == [f"tables/generations/partition={KEY}/all.parquet"]


def test_nulls_lists_and_times_come_back_as_they_were(store):
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    checkpoint = {
        "audit": "mine", "source": "here", "revision": None, "fingerprint": "f", "architecture": "A", "created_at": now,
    }  # fmt: skip
    many = {"method": "none", "prompt_id": "p", "num_generations": 2, "num_references": 2, "reference_ids": ["a", "b"]}
    store.write("checkpoints", KEY, [checkpoint])
    store.write("one_to_many", KEY, [many])
    assert store.read("checkpoints", KEY).rows(named=True) == [{"checkpoint": KEY, **checkpoint}]
    assert store.read("one_to_many", KEY).rows(named=True) == [{"checkpoint": KEY, **many}]


@pytest.mark.parametrize("table", TABLES)
def test_an_unwritten_and_an_emptied_table_are_empty_with_the_same_types(store, table):
    unwritten = store.read(table, KEY)
    assert store.write(table, KEY, []) == 0
    emptied = store.read(table, KEY)
    assert unwritten.is_empty()
    assert unwritten.schema == emptied.schema
    assert unwritten.columns == list(TABLES[table].columns)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_its_partition_first_and_its_key_among_its_columns(table):
    spec = TABLES[table]
    assert spec.key[0] == "checkpoint" == next(iter(spec.columns))
    assert set(spec.key) <= set(spec.columns)
    assert spec.grain.startswith("One row per ")


def test_a_shard_replaces_itself_and_leaves_the_others(store):
    store.write("generations", KEY, [generation("p")], shard="a")
    store.write("generations", KEY, [generation("q")], shard="b")
    store.write("generations", KEY, [generation("r")], shard="a")
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["q", "r"]
    assert store.read("generations", KEY, shard="a")["prompt_id"].to_list() == ["r"]


def test_partitions_know_nothing_of_each_other(store):
    store.write("generations", KEY, [generation("p")])
    store.write("generations", "other", [generation("q")])
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]
    store.forget(KEY)
    assert store.read("generations", KEY).is_empty()
    assert store.read("generations", "other")["prompt_id"].to_list() == ["q"]


def test_only_the_wanted_shards_are_kept(store):
    for shard in ("a", "b", "c"):
        store.write("generations", KEY, [generation(shard)], shard=shard)
    store.keep_shards("generations", KEY, ["a", "c", "never written"])
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["a", "c"]


def test_repeated_keys_are_refused_and_what_was_there_stays(store):
    store.write("generations", KEY, [generation("p")])
    with pytest.raises(
        InputError, match=r"unique keys in `generations`, but got .*'q', 3\) twice\. Write each row once"
    ):
        store.write("generations", KEY, [generation("q", 3), generation("q", 3, path="elsewhere")])
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]
    assert files(store) == [f"tables/generations/partition={KEY}/all.parquet"]


@pytest.mark.parametrize(("odd", "row"), [("hue", {"hue": 1}), ("width", {"width": "absent"})])
def test_a_row_with_other_columns_is_refused(store, odd, row):
    wrong = {key: value for key, value in generation(**row).items() if value != "absent"}
    with pytest.raises(InputError, match=rf"the columns of `generations`, but got a row that differs in \['{odd}'\]"):
        store.write("generations", KEY, [wrong])
    assert files(store) == []


def test_a_value_of_another_type_is_refused_and_what_was_there_stays(store):
    store.write("generations", KEY, [generation("p")])
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        store.write("generations", KEY, [generation("q", width="wide")])
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]
    assert files(store) == [f"tables/generations/partition={KEY}/all.parquet"]


def test_a_file_left_by_a_killed_writer_is_no_part_of_the_table(store):
    store.write("generations", KEY, [generation("p")])
    (store.table_dir("generations", KEY) / "all.partial-1").write_bytes(b"half a file")
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]


def test_the_data_version_ignores_order_shards_and_time_of_writing(store):
    rows = [generation("p", seed) for seed in range(4)]
    store.write("generations", KEY, rows)
    version = store.data_version("generations", KEY)
    store.forget(KEY)
    store.write("generations", KEY, rows[:1:-1], shard="a")
    store.write("generations", KEY, rows[1::-1], shard="b")
    assert store.data_version("generations", KEY) == version
    assert len(version) == 16

    checkpoint = dict.fromkeys(("audit", "source", "revision", "fingerprint", "architecture"), "x")
    versions = set()
    for year in (2025, 2026):
        store.write("checkpoints", KEY, [{**checkpoint, "created_at": datetime(year, 1, 1, tzinfo=UTC)}])
        versions.add(store.data_version("checkpoints", KEY))
    assert len(versions) == 1


@pytest.mark.parametrize(
    "rows", [[], [generation("p")], [generation("p", width=7), generation("q")], [generation("p"), generation("r")]]
)
def test_the_data_version_changes_with_every_value_and_row(store, rows):
    store.write("generations", KEY, [generation("p"), generation("q")])
    version = store.data_version("generations", KEY)
    store.write("generations", KEY, rows)
    assert store.data_version("generations", KEY) != version


def test_other_readers_see_the_schema_that_the_table_promises(store):
    store.write("generations", KEY, [generation()])
    frame = pl.read_parquet(store.table_dir("generations", KEY) / "all.parquet", hive_partitioning=False)
    assert dict(frame.schema) == dict.fromkeys(TABLES["generations"].columns, pl.String) | dict.fromkeys(
        ("seed", "width", "height"), pl.Int64
    )


def test_images_are_png_with_notes_and_nothing_else_stays(store):
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    save_png(store, "images/a/b.png", image, notes={"fbmem_status": "ok"})
    save_png(store, "images/a/b.png", image, notes={"fbmem_status": "empty"})
    with Image.open(store.root / "images/a/b.png") as saved:
        assert (saved.format, saved.size, saved.getpixel((0, 0))) == ("PNG", (4, 3), (1, 2, 3))
        assert saved.info["fbmem_status"] == "empty"
    assert files(store) == ["images/a/b.png"]


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


BREAKS = [lambda c: c[: len(c) // 2], lambda c: c[:-200], lambda c: b"", lambda c: b"x" * len(c), _flipped]


@pytest.mark.parametrize("spoil", BREAKS[:4])
def test_a_broken_table_is_named_and_a_broken_shard_is_made_again(store, spoil):
    store.write("generations", KEY, [generation("p")], shard="a")
    store.write("generations", KEY, [generation("q")], shard="b")
    path = store.table_dir("generations", KEY) / "b.parquet"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"a readable Parquet file.* in .*b\.parquet\. Remove it") as caught:
        store.read("generations", KEY)
    assert "\n" not in str(caught.value)
    told = []
    assert store.shards("generations", KEY, report=told.append) == {"a"}
    assert len(told) == 1
    assert str(path) in told[0]
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_broken_image_is_named_and_counts_as_missing(store, spoil):
    save_png(store, "images/a.png", Image.effect_noise((40, 40), 60))
    assert has_image(store, "images/a.png")
    path = store.root / "images/a.png"
    path.write_bytes(spoil(path.read_bytes()))
    told = []
    assert not has_image(store, "images/a.png", report=told.append)
    assert len(told) == 1
    assert str(path) in told[0]
    with pytest.raises(InputError, match=r"a readable image.*a\.png\. Run the audit again"):
        open_image(store, "images/a.png")
    assert not has_image(store, "images/none.png", report=told.append)
    assert len(told) == 1


def test_a_store_that_must_not_be_written_is_one_line_and_keeps_what_was_there(store):
    store.write("generations", KEY, [generation("p")])
    blocked = store.root / "tables" / "labels"
    blocked.write_text("a file where a folder must be")
    with pytest.raises(InputError, match=r"a store that can be written, but got .* in .*all\.parquet\. Mend") as caught:
        store.write("labels", KEY, [])
    assert "\n" not in str(caught.value)
    assert store.read("generations", KEY)["prompt_id"].to_list() == ["p"]


def test_a_full_disk_is_one_line_and_leaves_no_half_file(store):
    import resource
    import signal

    store.write("generations", KEY, [generation("p")])
    before = files(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a store that can be written, but got File too large in .*a\.png"):
            save_png(store, "images/a.png", Image.effect_noise((99, 99), 90))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, held)
    assert files(store) == before


def test_bytes_are_hashed_as_they_lie_on_disk(store):
    path = store.write_bytes("notes/a.txt", b"content")
    assert file_sha256(path) == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("none-owl-3", "none-owl-3"),
        ("Château/../../Owl #1", "ch_teau_.._.._owl_1"),
        ("猫", "image"),
        ("..", "image"),
        ("x" * 300, "x" * 60),
    ],
)
def test_an_image_path_is_readable_and_stays_in_its_folder(store, name, readable):
    path = image_path("generations", KEY, name, "abc")
    assert path == f"images/generations/{KEY}/{readable}-abc.png"
    assert (store.root / path).resolve().parent == store.root / "images/generations" / KEY


def test_a_column_that_an_older_version_did_not_write_is_null(store):
    row = dict.fromkeys(TABLES["prompts"].columns) | {"audit": "a", "prompt_id": "owl", "prompt": "an owl", "kind": "k"}
    del row["checkpoint"]
    store.write("prompts", "t-0", [row])
    store.write("prompts", "t-0", [row | {"prompt_id": "fox"}], shard="older")
    path = store.table_dir("prompts", "t-0") / "older.parquet"
    pl.read_parquet(path).drop("kind").with_columns(gone=pl.lit(1)).write_parquet(path)
    read = store.read("prompts", "t-0")
    assert read.select("prompt_id", "kind").rows() == [("fox", None), ("owl", "k")]
    assert read.columns == list(TABLES["prompts"].columns)
