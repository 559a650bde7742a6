"""The DuckDB file: views over the tables, for any DuckDB client."""

import subprocess
import sys

import duckdb
import pytest

from fbmem_core.errors import InputError
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
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
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal",
        "SELECT table_name || '.' || column_name, comment FROM duckdb_columns() WHERE NOT internal",
    )
    if where == "memory":
        tables, columns = (dict(query(store, sql).iter_rows()) for sql in asked)
    else:
        with duckdb.connect(build_warehouse(store), read_only=True) as connection:
            tables, columns = (dict(connection.sql(sql).fetchall()) for sql in asked)
    assert tables == {name: table.grain for name, table in TABLES.items()}
    assert columns == {
        f"{name}.{column}": TABLES[name].descriptions[column] for name in TABLES for column in TABLES[name].columns
    }


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


def test_views_show_every_partition_and_see_shards_written_later(store):
    store.write("generations", KEY, [generation("p", 0)], shard="a")
    store.write("generations", "other", [generation("p", 0)])
    with duckdb.connect(build_warehouse(store), read_only=True) as connection:
        assert seeds(connection) == [(KEY, "p", 0), ("other", "p", 0)]
        store.write("generations", KEY, [generation("p", 1)], shard="b")
        store.write("generations", "third", [generation("p", 2)])
        assert seeds(connection) == [(KEY, "p", 0), (KEY, "p", 1), ("other", "p", 0), ("third", "p", 2)]


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
def test_a_query_that_duckdb_refuses_is_one_line_that_names_the_tables(store, sql):
    store.write("generations", KEY, [generation()])
    with pytest.raises(
        InputError, match=r"^Expected a valid query, but got .*Error.*\. Tables: checkpoints, "
    ) as caught:
        query(store, sql)
    assert "\n" not in str(caught.value)
