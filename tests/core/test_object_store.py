"""A store on a local S3 server holds what a folder would, and answers alike."""

import boto3
import duckdb
import numpy as np
import pytest
from PIL import Image
from polars.testing import assert_frame_equal
from s3fs import S3FileSystem

from fbmem_core.errors import InputError
from fbmem_core.retrieval.image_sets import load_image_set
from fbmem_core.store.images import file_sha256, has_image, open_image, save_png
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
from fbmem_core.store.warehouse import DATABASE_NAME, build_warehouse, query
from tests.core.test_store import KEY, generation

MANY = {"method": "none", "prompt_id": "p", "num_generations": 2, "num_references": 2, "reference_ids": ["a", "b"]}


@pytest.fixture
def remote(s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Store(f"s3://audits/{tmp_path.name}")


@pytest.fixture
def stores(remote, tmp_path):
    return Store(tmp_path / "store"), remote


def fill(store):
    store.write("generations", KEY, [generation("p", 0), generation("q", 2)], shard="a")
    store.write("generations", KEY, [generation("p", 1)], shard="b")
    store.write("generations", "other", [generation("r")])
    store.write("one_to_many", KEY, [MANY])
    store.write("labels", KEY, [])


def test_the_tables_are_those_of_a_folder(stores):
    for store in stores:
        fill(store)
    local, remote = stores
    for table in TABLES:
        for key in (KEY, "other", "never"):
            assert_frame_equal(local.read(table, key), remote.read(table, key))
            assert local.data_version(table, key) == remote.data_version(table, key)
        assert local.partitions(table) == remote.partitions(table)
    assert remote.partitions("generations") == [KEY, "other"]
    assert remote.shards("generations", KEY) == {"a", "b"}


def test_shards_are_replaced_kept_and_forgotten_alike(remote):
    fill(remote)
    remote.write("generations", KEY, [generation("s", 0)], shard="b")
    assert remote.read("generations", KEY)["prompt_id"].to_list() == ["p", "q", "s"]
    remote.keep_shards("generations", KEY, ["b"])
    assert remote.read("generations", KEY)["prompt_id"].to_list() == ["s"]
    remote.forget(KEY)
    assert remote.partitions("generations") == ["other"]


def test_what_another_process_wrote_is_seen_at_once(remote):
    fill(remote)
    assert remote.read("generations", KEY).height == 3
    bucket, name = "audits", f"{remote.root.path.split('/', 1)[1]}/tables/generations/partition={KEY}"
    client = boto3.client("s3")
    client.copy({"Bucket": bucket, "Key": f"{name}/a.parquet"}, bucket, f"{name}/c.parquet")
    assert remote.shards("generations", KEY) == {"a", "b", "c"}


def test_sql_answers_alike_without_an_extension_of_duckdb(stores):
    sql = (
        "SELECT checkpoint, count(*) AS n, min(seed) AS first FROM generations GROUP BY checkpoint ORDER BY checkpoint"
    )
    for store in stores:
        fill(store)
    local, remote = (query(store, sql) for store in stores)
    assert_frame_equal(local, remote)
    assert remote.rows() == [(KEY, 3, 0), ("other", 1, 0)]


def test_the_database_beside_the_tables_holds_the_rows(stores, tmp_path):
    found = []
    for number, store in enumerate(stores):
        fill(store)
        path = build_warehouse(store)
        assert path.name == DATABASE_NAME
        (tmp_path / f"{number}.duckdb").write_bytes(path.read_bytes())
        with duckdb.connect(tmp_path / f"{number}.duckdb", read_only=True) as connection:
            found.append({table: connection.sql(f"FROM {table} ORDER BY ALL").fetchall() for table in TABLES})
    assert found[0] == found[1]
    assert len(found[1]["generations"]) == 4
    assert not list(stores[1].local.glob("*partial*"))


def test_images_and_mattes_are_read_from_it(stores):
    image, matte = Image.effect_noise((40, 30), 50).convert("RGB"), Image.new("L", (40, 30), 255)
    sets = []
    for store in stores:
        save_png(store, "images/a.png", image, notes={"fbmem_status": "ok"})
        save_png(store, "images/m.png", matte)
        assert has_image(store, "images/a.png")
        assert not has_image(store, "images/none.png")
        opened = open_image(store, "images/a.png")
        assert (opened.tobytes(), opened.info["fbmem_status"]) == (image.tobytes(), "ok")
        items = [("a", store.root / "images/a.png", store.root / "images/m.png")]
        sets.append(load_image_set(items, size=176, folder=store.local / "cache" / "set"))
        assert file_sha256(store.root / "images/a.png") == file_sha256(stores[0].root / "images/a.png")
    assert np.array_equal(sets[0].images, sets[1].images)
    assert (sets[1].alphas == 255).all()


def test_a_bucket_that_is_not_there_is_one_line_with_the_cure(s3_server):
    store = Store("s3://nobody-has-it/audits")
    with pytest.raises(
        InputError, match=r"a store that can be written, but got .*bucket.* in s3://nobody-has-it"
    ) as caught:
        store.write("labels", KEY, [])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"Run `fbmem audit` first"):
        query(store, "SELECT 1")


@pytest.mark.parametrize("url", ["nothing://x/y", "gs://bucket/x"])
def test_a_url_that_cannot_be_opened_is_one_line_with_the_cure(url):
    with pytest.raises(InputError, match=r"a folder or a URL that fsspec can open.*pip install") as caught:
        Store(url)
    assert "\n" not in str(caught.value)


def test_a_bucket_without_credentials_is_one_line_whatever_is_asked(s3_server, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    S3FileSystem.clear_instance_cache()  # one that has credentials may be kept
    store = Store("s3://audits/locked")
    with pytest.raises(InputError, match=r"^Expected a store that can be read, but got Unable to locate credentials"):
        store.read("generations", KEY)
    with pytest.raises(InputError, match=r"^Expected a store that can be written, but got Unable to locate cred"):
        store.write("generations", KEY, [generation("a", 0)])
    S3FileSystem.clear_instance_cache()
