"""The DuckDB file: views over the tables, for any DuckDB client."""

import shutil
import subprocess
import sys
import threading

import duckdb
import pytest

from fbmem_core.errors import InputError
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
from fbmem_core.store.views import INTERVALS, INTERVALS_COLUMNS, INTERVALS_GRAIN, VIEWS
from fbmem_core.store.warehouse import DATABASE_NAME, build_warehouse, query
from tests.core.test_store import KEY, generation


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / 'auditor\'s "store" [a-z]*; DROP TABLE labels --')


def seeds(connection):
    return connection.sql("SELECT checkpoint, prompt_id, seed FROM generations ORDER BY ALL").fetchall()


@pytest.mark.parametrize("where", ["file", "memory"])
def test_tables_and_columns_say_what_they_hold(store, where):
    store.write("labels", KEY, [])
    asked = (
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal UNION ALL "
        "SELECT table_name, comment FROM duckdb_tables() WHERE NOT internal",
        "SELECT table_name || '.' || column_name, comment FROM duckdb_columns() WHERE NOT internal",
    )
    if where == "memory":
        tables, columns = (dict(query(store, sql).iter_rows()) for sql in asked)
    else:
        with duckdb.connect(build_warehouse(store), read_only=True) as connection:
            tables, columns = (dict(connection.sql(sql).fetchall()) for sql in asked)
    of_views = {name: view.grain for name, view in VIEWS.items()} | {INTERVALS: INTERVALS_GRAIN}
    assert tables == {name: table.grain for name, table in TABLES.items()} | of_views
    described = {f"{name}.{column}": text for name in TABLES for column, text in TABLES[name].descriptions.items()}
    described |= {f"{name}.{column}": text for name, view in VIEWS.items() for column, text in view.columns.items()}
    assert columns == described | {f"{INTERVALS}.{name}": text for name, (_, text) in INTERVALS_COLUMNS.items()}


def test_tables_without_a_row_are_empty_and_typed_like_the_written_ones(store):
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        before = {table: connection.sql(f"DESCRIBE {table}").fetchall() for table in TABLES}
        assert [connection.sql(f"FROM {table}").fetchall() for table in TABLES] == [[]] * len(TABLES)
    for table in TABLES:
        store.write(table, KEY, [])
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        after = {table: connection.sql(f"DESCRIBE {table}").fetchall() for table in TABLES}
    assert after == before
    assert {table: [column[0] for column in columns] for table, columns in before.items()} == {
        table: list(spec.columns) for table, spec in TABLES.items()
    }


def test_the_file_shows_every_partition_as_it_was_built_and_a_query_sees_what_came_later(store):
    store.write("generations", KEY, [generation("p", 0)], shard="a")
    store.write("generations", "other", [generation("p", 0)])
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        assert seeds(connection) == [(KEY, "p", 0), ("other", "p", 0)]
        store.write("generations", KEY, [generation("p", 1)], shard="b")
        assert seeds(connection) == [(KEY, "p", 0), ("other", "p", 0)]
    assert query(store, "SELECT count(*) FROM generations").rows() == [(3,)]


def test_the_file_answers_after_the_store_is_gone_in_another_process_and_folder(store, tmp_path):
    store.write("generations", KEY, [generation("p", 7)])
    moved = tmp_path / "colleague" / "sent.duckdb"
    moved.parent.mkdir()
    moved.write_bytes(build_warehouse(store).read_bytes())
    shutil.rmtree(store.root)
    question = ".sql('SELECT seed FROM generations').fetchall()"
    code = f"import duckdb; print(duckdb.connect('sent.duckdb', read_only=True){question})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=moved.parent)
    assert done.stdout.strip() == "[(7,)]"


@pytest.mark.parametrize("content", [b"", b"PAR1 cut off"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_broken_file_is_named_and_other_tables_answer(store, content, where):
    store.write("generations", KEY, [generation("p", 0)], shard="m")
    store.write("prompts", KEY, [])
    broken = store.table_dir("generations", KEY) / ("a.parquet" if where == "first" else "z.parquet")
    broken.write_bytes(content)
    assert query(store, "SELECT count(*) FROM prompts").rows() == [(0,)]
    for sql in ("SELECT count(*) FROM generations", "SELECT seed FROM generations WHERE seed = 3"):
        with pytest.raises(InputError, match=rf"{broken.name}.* Remove that file and run the audit again") as caught:
            query(store, sql)
        assert "\n" not in str(caught.value)
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM prompts").fetchall() == [(0,)]
        with pytest.raises(duckdb.Error, match=broken.name):
            connection.sql("SELECT count(*) FROM generations").fetchall()


def test_what_a_foreign_system_leaves_beside_a_table_is_passed_over(store):
    store.write("generations", KEY, [generation("p", 0)])
    (store.table_dir("generations", KEY) / "._all.parquet").write_bytes(b"\0\5\26\7")
    assert query(store, "SELECT count(*) FROM generations").rows() == [(1,)]
    assert store.read("generations", KEY).height == 1
    assert store.shards("generations", KEY) == {"all"}


def test_values_that_polars_has_no_type_for_come_as_text(store):
    store.write("generations", KEY, [])
    rows = query(store, "SELECT interval '3 days' AS span, union_value(a := 1) AS u, {'a': 1} AS s, 5 AS n, [1] AS l")
    assert rows.rows() == [("3 days", "1", "{'a': 1}", 5, [1])]


def test_a_misspelt_table_is_answered_with_duckdb_s_own_suggestion(store):
    store.write("generations", KEY, [])
    with pytest.raises(InputError, match=r'Did you mean "generations"'):
        query(store, "FROM generation")


def test_a_partial_file_of_a_writer_at_work_is_not_seen(store):
    store.write("generations", KEY, [generation("p", 0)])
    (store.table_dir("generations", KEY) / "all.partial-1").write_bytes(b"half a file")
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        assert seeds(connection) == [(KEY, "p", 0)]


def test_a_plain_duckdb_client_in_another_process_reads_it(store):
    store.write("generations", KEY, [generation("p", 7)])
    path = build_warehouse(store)
    code = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).sql('FROM generations').fetchall())"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([(KEY, "none", "p", 7, "images/p-7.png", "0", 8, 9)])


def test_it_is_rebuilt_under_an_open_reader_and_nothing_else_stays(store):
    store.write("generations", KEY, [generation("p", 0)])
    path = build_warehouse(store)
    with duckdb.connect(path, read_only=True) as reader:
        store.write("labels", KEY, [])
        assert build_warehouse(store) == path
        assert seeds(reader) == [(KEY, "p", 0)]
    with duckdb.connect(path, read_only=True) as reader:
        assert seeds(reader) == [(KEY, "p", 0)]
    assert sorted(item.name for item in store.root.iterdir()) == [DATABASE_NAME, "tables"]


def test_it_can_be_deleted_and_built_again(store):
    store.write("generations", KEY, [generation("p", 0)])
    build_warehouse(store).unlink()
    with duckdb.connect(build_warehouse(store), read_only=True) as reader:
        assert seeds(reader) == [(KEY, "p", 0)]


def test_text_that_looks_like_sql_is_text(store):
    prompt = '\'; DROP TABLE labels; -- "x" $(id) <b>|`[a](b)'
    store.write("generations", KEY, [generation(prompt)])
    assert query(store, "SELECT prompt_id FROM generations").rows() == [(prompt,)]
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        assert seeds(connection) == [(KEY, prompt, 0)]


def test_a_query_needs_no_database_file(store):
    store.write("generations", KEY, [generation("p", seed) for seed in range(3)])
    rows = query(store, "SELECT method, count(*) AS images FROM generations GROUP BY method")
    assert (rows.columns, rows.rows()) == (["method", "images"], [("none", 3)])
    assert not (store.root / DATABASE_NAME).exists()


def test_a_query_without_a_store_is_one_line_with_the_cure(store):
    with pytest.raises(
        InputError, match=r"^Expected a store with tables, but got none in .*\. Run `fbmem audit` first\.$"
    ):
        query(store, "SELECT 1")


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT hue FROM generations", "FROM nowhere", "SELECT 'x'::INT"])
def test_a_query_that_duckdb_refuses_is_one_line_with_the_cure(store, sql):
    store.write("generations", KEY, [generation()])
    with pytest.raises(InputError, match=r"^Expected a valid query, but got .*Error.*\. `show tables` lists") as caught:
        query(store, sql)
    assert "\n" not in str(caught.value)


def test_a_column_that_an_older_version_did_not_write_is_null(store):
    import polars as pl

    store.write("generations", KEY, [generation("p", 0)])
    path = store.table_dir("generations", KEY) / "all.parquet"
    pl.read_parquet(path, glob=False).drop("sha256").write_parquet(path)
    assert query(store, "SELECT seed, sha256 FROM generations").rows() == [(0, None)]
    with duckdb.connect(build_warehouse(store), read_only=True) as reader:
        assert reader.sql("SELECT seed, sha256 FROM generations").fetchall() == [(0, None)]


def test_a_store_that_two_versions_wrote_into_answers(store):
    import pyarrow.parquet as pq

    store.write("generations", KEY, [generation()], shard="a-newer")
    store.write("generations", KEY, [generation(prompt_id="fox")], shard="b-older")
    older = store.table_dir("generations", KEY) / "b-older.parquet"
    pq.write_table(pq.read_table(older, partitioning=None).drop_columns(["width"]), older)
    rows = query(store, "SELECT prompt_id, width FROM generations ORDER BY 1").rows()
    assert rows[0] == ("fox", None)
    assert rows[1][1] is not None


def test_a_query_asks_again_when_a_file_is_replaced_while_it_reads(tmp_path):
    store = Store(tmp_path)
    store.write("generations", KEY, [generation()], shard="kept")

    def replace():  # fewer times than a query asks
        for _ in range(4):
            store.write("generations", KEY, [generation(seed=1)], shard="replaced")
            store.keep_shards("generations", KEY, ["kept"])

    for _ in range(5):
        writer = threading.Thread(target=replace)
        writer.start()
        count = query(store, "select count(*) as n from generations")["n"][0]
        writer.join()
        assert count in (1, 2)
