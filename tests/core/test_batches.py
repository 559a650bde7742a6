"""Tables made piece by piece that lie in few files."""

import polars as pl
import pytest

from fbmem_core.store import batches as module
from fbmem_core.store.batches import Batches
from fbmem_core.store.tables import Store

TABLES = ("similarities", "neighbors")
KEY = "a-0123456789ab"


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store(tmp_path)
    request.getfixturevalue("s3_server")
    return Store(f"s3://audits/{tmp_path.name}")


def empty_row(table):
    from fbmem_core.store.schemas import TABLES as SPECS

    defaults = {"string": "x", "int64": 0, "double": 0.5, "bool": True}
    return {
        name: defaults.get(str(kind), [] if str(kind).startswith("list") else None)
        for name, kind in SPECS[table].columns.items()
        if name != "checkpoint"
    }


def rows_of(prompts):
    return {
        table: [
            empty_row(table) | {"method": "none", "prompt_id": prompt, "seed": seed}
            for prompt in prompts
            for seed in (0, 1)
        ]
        for table in TABLES
    }


def batches(store):
    return Batches(store, KEY, TABLES, prefix="none")


def prompts_in(store, table):
    return sorted(store.read(table, KEY)["prompt_id"].to_list())


def wanted(*prompts, version=1):
    return {f"none-{prompt}{version}": ("none", prompt) for prompt in prompts}


def test_pieces_are_there_when_every_table_has_them(store):
    both = batches(store)
    assert both.state()[0] == set()
    both.write(rows_of(["p", "q"]), ["none-p1", "none-q1"])
    both.write(rows_of(["r"]), ["none-r1"])
    assert both.state()[0] == {"none-p1", "none-q1", "none-r1"}
    assert prompts_in(store, "neighbors") == ["p", "p", "q", "q", "r", "r"]
    store.keep_shards("similarities", KEY, ())
    assert both.state()[0] == set()


def test_rows_of_pieces_that_are_no_longer_wanted_go_and_the_others_of_their_file_stay(store):
    both = batches(store)
    both.write(rows_of(["p", "q"]), ["none-p1", "none-q1"])
    both.write(rows_of(["r"]), ["none-r1"])
    both.keep(wanted("p") | wanted("q", version=2))
    for table in TABLES:
        assert prompts_in(store, table) == ["p", "p"]
    assert both.state()[0] == {"none-p1"}
    both.write(rows_of(["q"]), ["none-q2"])
    assert both.state()[0] == {"none-p1", "none-q2"}
    assert prompts_in(store, "neighbors") == ["p", "p", "q", "q"]


def test_small_files_are_merged_and_say_what_they_hold(store, monkeypatch):
    monkeypatch.setattr(module, "_MERGED", 4)
    both = batches(store)
    prompts = [f"p{number:02}" for number in range(10)]
    for prompt in prompts:
        both.write(rows_of([prompt]), [f"none-{prompt}1"])
    before = [store.read(table, KEY) for table in TABLES]
    assert len(store.shards("neighbors", KEY)) == 10
    both.merge()
    assert len(store.shards("neighbors", KEY)) == len(store.shards("similarities", KEY)) == 3
    assert both.state()[0] == set(wanted(*prompts))
    for table, rows in zip(TABLES, before, strict=True):
        assert store.read(table, KEY).equals(rows)
    both.merge()
    assert len(store.shards("neighbors", KEY)) == 3
    both.keep(wanted(*prompts[:-1]))
    assert both.state()[0] == set(wanted(*prompts[:-1]))


def test_a_merge_that_was_killed_leaves_no_row_twice(store, monkeypatch):
    both = batches(store)
    for prompt in ("p", "q"):
        both.write(rows_of([prompt]), [f"none-{prompt}1"])

    def killed(self, table, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            both.merge()
    assert len(prompts_in(store, "similarities")) == 8
    both.keep(wanted("p", "q"))
    both.merge()
    for table in TABLES:
        assert prompts_in(store, table) == ["p", "p", "q", "q"]


def test_a_file_of_an_earlier_version_holds_the_piece_whose_name_it_has(store):
    both = batches(store)
    for table, rows in rows_of(["p"]).items():
        store.write(table, KEY, rows, shard="none-p1")
    assert both.state()[0] == {"none-p1"}
    assert isinstance(store.read("neighbors", KEY), pl.DataFrame)
