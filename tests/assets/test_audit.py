"""One audit of a slice of the canary, through Dagster, from prompts to labels in DuckDB."""

import os
import signal
import subprocess
import sys
import time

import duckdb
import polars as pl
import pytest
from PIL import Image

from fbmem_core.retrieval.neighbors import FLOOR
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
from fbmem_core.store.views import INTERVALS, VIEWS
from tests.assets.conftest import NUM_SEEDS, PROJECT, SLICE_PROMPTS, SLICE_REFERENCES, make_slice

NUM_IMAGES = NUM_SEEDS * len(SLICE_PROMPTS)


def table(store, name):
    """The rows of a table that speak of the model as it is."""
    [partition] = (store / "tables" / "checkpoints").iterdir()
    rows = Store(store).read(name, partition.name.removeprefix("partition="))
    if name == "masks":
        return rows.filter((pl.col("image_kind") == "reference") | pl.col("image_id").str.starts_with("none/"))
    return rows.filter(pl.col("method") == "none") if "method" in rows.columns else rows


def test_the_audit_ends_with_the_label_table_and_where_the_tables_lie(audited):
    store, _, run = audited
    assert run.exit_code == 0, run.stderr
    assert "true_share" in run.stdout
    assert f"tables: {store / 'fbmem.duckdb'}" in run.stdout
    assert "check failed" not in run.stderr


def test_the_canary_labels_are_the_true_ones(audited):
    labels = table(audited[0], "labels").filter((pl.col("masking") == "masked") & (pl.col("rule") == "paper"))
    found = {prompt_id: set(rows["label"]) for (prompt_id,), rows in labels.group_by("prompt_id")}
    assert found == {"clockwork_owl-0": {"VM"}, "zibble-0": {"FM"}, "hotel_azul-0": {"BM"}, "public-00": {"NM"}}


def test_matches_name_the_planted_reference(audited):
    labels = table(audited[0], "labels").filter((pl.col("masking") == "masked") & (pl.col("rule") == "paper"))
    source = {"VM": "full_reference_id", "FM": "foreground_reference_id", "BM": "background_reference_id"}
    for row in labels.filter(pl.col("label") != "NM").iter_rows(named=True):
        assert row[source[row["label"]]] == row["prompt_id"].rsplit("-", 1)[0]


def test_nothing_is_lost_between_the_stages(audited):
    store = audited[0]
    per_image = 4  # two regions, two rules
    assert len(table(store, "prompts")) == len(SLICE_PROMPTS)
    assert len(table(store, "reference_images")) == len(SLICE_REFERENCES)
    assert len(table(store, "generations")) == NUM_IMAGES
    assert len(table(store, "masks")) == NUM_IMAGES + len(SLICE_REFERENCES)
    assert len(table(store, "labels")) == NUM_IMAGES * per_image
    assert len(table(store, "one_to_many")) == len(SLICE_PROMPTS)
    assert table(store, "rejected").is_empty()
    by_whole_image = table(store, "neighbors").filter(pl.col("region") == "full")
    ranked = by_whole_image.group_by("prompt_id", "seed", "masking").agg(pl.len(), pl.col("similarity").min())
    assert len(ranked) == NUM_IMAGES * 2
    assert ((ranked["similarity"] >= FLOOR) | (ranked["len"] == 1)).all()  # below the floor, the nearest alone


def test_images_are_there_and_named_by_the_tables(audited):
    store = audited[0]
    for path in [*table(store, "generations")["path"], *table(store, "masks")["path"]]:
        with Image.open(store / path) as image:
            assert image.size == (64, 64)
    assert not [path for path in store.rglob("*partial*")]


def test_any_duckdb_client_reads_the_tables(audited):
    with duckdb.connect(audited[0] / "fbmem.duckdb", read_only=True) as connection:
        names = {row[0] for row in connection.sql("show tables").fetchall()}
        assert names == {*TABLES, *VIEWS, INTERVALS}
        [(count,)] = connection.sql("select count(*) from labels where method = 'none'").fetchall()
    assert count == NUM_IMAGES * 4


def test_fbmem_sql_answers(audited, fbmem):
    query = "select label, count(*) as n from labels where method = 'none' group by label order by label"
    run = fbmem("sql", query, "--store", audited[0])
    assert run.exit_code == 0
    assert [cell for cell in ("BM", "FM", "NM", "VM") if cell in run.stdout] == ["BM", "FM", "NM", "VM"]


def test_fbmem_sql_refuses_a_bad_query_in_one_line(audited, fbmem):
    run = fbmem("sql", "select nothing from nowhere", "--store", audited[0])
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)
    assert "nowhere" in run.stderr


def test_every_materialization_has_a_row_count_and_a_preview(audited, monkeypatch):
    import dagster as dg

    store = audited[0]
    monkeypatch.setenv("FBMEM_DAGSTER", str(store / "dagster"))
    monkeypatch.setenv("DAGSTER_HOME", str(PROJECT))
    with dg.DagsterInstance.get() as instance:
        pictures = {"reference_images", "generations", "generation_masks", "reference_masks", "labels"}
        for name in ("prompts", *pictures, "neighbors", "similarities", "one_to_many"):
            event = instance.get_latest_materialization_event(dg.AssetKey(name))
            metadata = event.asset_materialization.metadata
            assert metadata["dagster/row_count"].value > 0
            assert metadata["preview"].md_str.startswith("|")
            shown = [value.md_str for value in metadata.values() if "data:image/webp" in str(value.value)]
            assert (name in pictures) == bool(shown)
            assert sum(len(text) for text in shown) <= 200_000


def test_a_second_run_samples_and_compares_nothing_again(audited, fbmem):
    store, file, _ = audited
    images = {path: path.stat().st_mtime_ns for path in (store / "images").rglob("*.png")}
    shards = {path: path.stat().st_mtime_ns for path in (store / "tables" / "neighbors").rglob("*.parquet")}
    before = table(store, "labels")
    run = fbmem("audit", file, "--store", store)
    assert run.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (store / "images").rglob("*.png")} == images
    assert {p: p.stat().st_mtime_ns for p in (store / "tables" / "neighbors").rglob("*.parquet")} == shards
    assert table(store, "labels").equals(before)


def test_a_killed_audit_goes_on_and_ends_with_the_same_labels(audited, tmp_path, fbmem):
    file = make_slice(tmp_path / "slice", sampling=_sampling(batch_size=1))
    store = tmp_path / "store"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "FBMEM"))}
    command = [sys.executable, "-m", "fbmem_assets.commands.main", "audit", str(file), "--store", str(store)]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(finished := _generated(store)) < 3:
        assert process.poll() is None, "the audit ended before it could be killed"
        assert time.monotonic() < deadline, "no image was sampled in time"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = _generated(store)
    assert len(finished) < NUM_IMAGES
    run = fbmem("audit", file, "--store", store)
    assert run.exit_code == 0, run.stderr
    after = _generated(store)
    assert len(after) == NUM_IMAGES
    assert {path: after[path] for path in finished} == finished
    columns = ["prompt_id", "seed", "masking", "rule", "label"]
    assert table(store, "labels").select(columns).equals(table(audited[0], "labels").select(columns))


def _sampling(**changes):
    return {"steps": 25, "guidance_scale": 3.0, "seed": 0, "height": 64, "width": 64, "device": "cpu"} | changes


def _generated(store):
    return {path: path.stat().st_mtime_ns for path in (store / "images" / "generations").rglob("[!.]*.png")}


def test_until_stops_after_the_stage(tmp_path, fbmem, tiny_checkpoint):
    file = make_slice(tmp_path, checkpoint=str(tiny_checkpoint), sampling=_sampling(steps=1))
    run = fbmem("audit", file, "--store", tmp_path / "store", "--until", "generations")
    assert run.exit_code == 0
    assert len(table(tmp_path / "store", "generations")) == NUM_IMAGES
    assert table(tmp_path / "store", "masks").is_empty()


def test_a_changed_checkpoint_is_a_new_partition(tmp_path, fbmem, tiny_checkpoint):
    import shutil

    store = tmp_path / "store"
    copied = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    file = make_slice(tmp_path, checkpoint=str(copied))
    first = fbmem("register", file, "--store", store).stdout.strip()
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    second = fbmem("register", file, "--store", store).stdout.strip()
    assert first != second
    assert {first, second} == {
        path.name.removeprefix("partition=") for path in (store / "tables/checkpoints").iterdir()
    }


def test_a_truncated_reference_is_a_counted_row_and_the_audit_goes_on(tmp_path, fbmem, tiny_checkpoint):
    file = make_slice(tmp_path, checkpoint=str(tiny_checkpoint), sampling=_sampling(steps=1), truth=None)
    broken = tmp_path / "references" / "public_000.png"
    broken.write_bytes(broken.read_bytes()[:-400])
    (tmp_path / "references" / "noise.png").write_bytes(b"no image")
    store = tmp_path / "store"
    run = fbmem("audit", file, "--store", store)
    assert run.exit_code == 0, run.stderr
    rejected = table(store, "rejected").select("stage", "item").rows()
    assert rejected == [("prompts", "noise"), ("prompts", "public_000")]
    statuses = dict(table(store, "reference_images").select("reference_id", "status").iter_rows())
    assert statuses["noise"] == statuses["public_000"] == "unreadable"
    assert len(table(store, "labels")) == NUM_IMAGES * 4
    assert "warning: some_references_are_usable: " in run.stderr


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda folder: (folder / "slice.yaml").write_text("name: [", "utf-8"), "YAML"),
        (lambda folder: _edit(folder, "samples_per_prompt: 2", "samples_per_prompt: none"), "samples_per_prompt"),
        (lambda folder: _edit(folder, "name: slice", "name: slice\nnmae: slice"), "nmae"),
        (lambda folder: _edit(folder, "prompts: prompts.csv", "prompts: gone.csv"), "gone.csv"),
        (lambda folder: (folder / "prompts.csv").write_text("a,b\n1,2\n", "utf-8"), "column prompt, caption or text"),
        (lambda folder: [path.unlink() for path in (folder / "references").iterdir()], "images"),
        (lambda folder: _edit(folder, "checkpoint: ", "checkpoint: /nowhere"), "diffusers directory"),
    ],
    ids=["no yaml", "bad value", "unknown key", "missing file", "no column", "no images", "no checkpoint"],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, fbmem, tiny_checkpoint, break_it, expected):
    file = make_slice(tmp_path, checkpoint=str(tiny_checkpoint), sampling=_sampling(steps=1))
    break_it(tmp_path)
    run = fbmem("audit", file, "--store", tmp_path / "store")
    assert run.exit_code == 2
    lines = [line for line in run.stderr.splitlines() if line.startswith("fbmem: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in run.stderr + run.stdout


def _edit(folder, old, new):
    path = folder / "slice.yaml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
