"""The DuckDB side of the store: SQL over the Parquet files, which are the truth, and a copy to be sent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from fbmem_core.errors import InputError
from fbmem_core.store.intervals import interval_rows
from fbmem_core.store.schemas import TABLES, Table
from fbmem_core.store.tables import TABLES_DIR, Store, is_foreign
from fbmem_core.store.views import INTERVALS, INTERVALS_COLUMNS, INTERVALS_GRAIN, VIEWS

DATABASE_NAME = "fbmem.duckdb"
_SQL_TYPES = {
    pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ", pa.list_(pa.string()): "VARCHAR[]",
    pa.list_(pa.float64()): "DOUBLE[]",
}  # fmt: skip
# types that polars reads; others are shown as text
_PLAIN_TYPES = frozenset({
    "boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "float",
    "double", "varchar", "date", "timestamp", "timestamp with time zone", "list", "decimal", "hugeint",
})  # fmt: skip
_NEED_INTERVALS = (INTERVALS, "prompt_findings")

_ATTEMPTS = 5
_VANISHED = "No files found that match"  # DuckDB's words for a file that is gone since its folder was listed


def build_warehouse(store: Store) -> Path:
    """(Re)build `fbmem.duckdb` beside the tables and swap it in by one rename; open readers are not disturbed.

    It holds the rows of all tables and the views over them, so that it answers wherever it is moved or sent. A table
    with a broken file answers with the name of that file; the others hold their rows.

    Returns:
        Its path.
    """
    store.local.mkdir(parents=True, exist_ok=True)
    partial = store.local / f".{DATABASE_NAME}.partial-{os.getpid()}"
    partial.unlink(missing_ok=True)
    try:
        with duckdb.connect(partial) as connection:
            _register(connection, store)
            kinds = {table.name: _copy(connection, table, store) for table in TABLES.values()}
            _create_views(connection, kinds, _image_counts(connection))
        if store.is_remote:
            return store.write_bytes(DATABASE_NAME, partial.read_bytes())
        partial.replace(store.root / DATABASE_NAME)
    finally:
        partial.unlink(missing_ok=True)
    return store.root / DATABASE_NAME


def query(store: Store, sql: str) -> pl.DataFrame | None:
    """Run SQL over the tables in a database in memory, so that no reader ever waits for a writer.

    Values of types that polars lacks (intervals, unions, structs) come as text. Where an audit replaced a file between
    the listing of a table and its reading, the question is asked again.

    Returns:
        The rows, or None for a statement that has none.

    Raises:
        InputError: There is no store, a file of a table that is asked is broken, or DuckDB refuses the statement; the
            message is DuckDB's own.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _query_once(store, sql)
        except InputError as error:
            if _VANISHED not in str(error):
                raise
            time.sleep(0.1)
    return _query_once(store, sql)


def _query_once(store: Store, sql: str) -> pl.DataFrame | None:
    with connect(store, sql) as connection:
        try:
            relation = connection.sql(sql)
            return None if relation is None else _readable(relation).pl()
        except duckdb.Error as error:
            raise _one_line(error) from None


def connect(store: Store, sql: str = "") -> duckdb.DuckDBPyConnection:
    """A database in memory with every table and view of the store; `sql` says what will be asked.

    Raises:
        InputError: There is no store with tables.
    """
    _check_there(store)
    connection = duckdb.connect()
    try:
        create_views(connection, store, with_intervals=any(name in sql.lower() for name in _NEED_INTERVALS))
    except duckdb.Error as error:
        raise _one_line(error) from None
    return connection


def create_views(connection: duckdb.DuckDBPyConnection, store: Store, *, with_intervals: bool = True) -> None:
    """One view per table and the views over these; a table without a file is an empty one with the right columns."""
    _register(connection, store)
    for table in TABLES.values():
        _view(connection, table, store)
    counts = _image_counts(connection) if with_intervals else []
    _create_views(connection, dict.fromkeys(TABLES, "VIEW"), counts)


def _check_there(store: Store) -> None:
    try:
        is_there = (store.root / TABLES_DIR).is_dir()
    except store.errors as error:
        cure = "Mend that: credentials, endpoint, network or permissions."
        raise InputError("a store that can be read", error, where=store.root, cure=cure) from None
    if not is_there:
        raise InputError("a store with tables", "none", where=store.root, cure="Run `fbmem audit` first.")


def _copy(connection: duckdb.DuckDBPyConnection, table: Table, store: Store) -> str:
    """Copy the rows of a table; of one with a broken file a view that names the file. Returns which of the two."""
    try:
        connection.execute(f'CREATE TABLE "{table.name}" AS {_select(table, store)}')
    except duckdb.Error as error:
        connection.execute(f'CREATE VIEW "{table.name}" AS {_failing(table, error)}')
        return "VIEW"
    return "TABLE"


def _view(connection: duckdb.DuckDBPyConnection, table: Table, store: Store) -> None:
    try:
        connection.execute(f'CREATE OR REPLACE VIEW "{table.name}" AS {_select(table, store)}')
    except duckdb.Error as error:  # its first file is read when the view is made
        connection.execute(f'CREATE OR REPLACE VIEW "{table.name}" AS {_failing(table, error)}')


def _create_views(connection: duckdb.DuckDBPyConnection, kinds: dict[str, str], counts: Sequence[int]) -> None:
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, _) in INTERVALS_COLUMNS.items())
    connection.execute(f"CREATE TABLE {INTERVALS} ({columns})")
    rows = pl.DataFrame(interval_rows(counts), schema=list(INTERVALS_COLUMNS), orient="row")
    if len(rows):
        connection.register("interval_rows", rows.to_arrow())
        connection.execute(f"INSERT INTO {INTERVALS} SELECT * FROM interval_rows")
        connection.unregister("interval_rows")
    for view in VIEWS.values():
        connection.execute(f'CREATE OR REPLACE VIEW "{view.name}" AS {view.sql}')
    _comment(connection, kinds)


def _image_counts(connection: duckdb.DuckDBPyConnection) -> list[int]:
    """Numbers of images that the prompts have, for the intervals of k of n; none where `labels` cannot be read."""
    sql = "SELECT DISTINCT count(label) FROM labels GROUP BY checkpoint, method, prompt_id, masking, rule"
    try:
        return [n for (n,) in connection.execute(sql).fetchall()]
    except duckdb.Error:
        return []


def _comment(connection: duckdb.DuckDBPyConnection, kinds: dict[str, str]) -> None:
    """Say in the database what tables and columns hold: `duckdb_columns()` and most tools show it."""
    facts = [(kinds[table.name], table.name, table.grain, table.descriptions) for table in TABLES.values()]
    facts += [("VIEW", view.name, view.grain, view.columns) for view in VIEWS.values()]
    facts.append(("TABLE", INTERVALS, INTERVALS_GRAIN, {name: text for name, (_, text) in INTERVALS_COLUMNS.items()}))
    for kind, name, grain, columns in facts:
        connection.execute(f"COMMENT ON {kind} \"{name}\" IS '{_quoted(grain)}'")
        for column, text in columns.items():
            connection.execute(f'COMMENT ON COLUMN "{name}"."{column}" IS \'{_quoted(text)}\'')


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _register(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Let the connection read an object store through fsspec: DuckDB's own extension for it would be fetched."""
    if store.is_remote:
        connection.register_filesystem(store.root.fs)  # type: ignore[attr-defined]


def _select(table: Table, store: Store) -> str:
    folder = store.root / TABLES_DIR / table.name
    files = [str(path) for path in sorted(folder.glob("partition=*/*.parquet")) if not is_foreign(path)]
    typed = ", ".join(f'NULL::{_SQL_TYPES[kind]} AS "{name}"' for name, kind in table.columns.items())
    empty = f"SELECT {typed} WHERE false"
    if not files:
        return empty
    names = ", ".join(f'"{name}"' for name in table.columns)
    listed = ", ".join(f"'{_quoted(_literal(path))}'" for path in files)
    # a column that an older version did not write is null
    rows = f"SELECT * FROM read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"
    return f"SELECT {names} FROM ({empty} UNION ALL BY NAME {rows})"


def _literal(path: str) -> str:
    """A path as a pattern that fits it alone: in DuckDB's patterns a bracket of one character is that character."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in path)


def _failing(table: Table, error: duckdb.Error) -> str:
    """A select with the table's columns that ends in this error, whatever is asked of it."""
    message = f"error('{_quoted(str(error).splitlines()[0])}')"
    typed = ", ".join(f'{message}::{_SQL_TYPES[kind]} AS "{name}"' for name, kind in table.columns.items())
    return f"SELECT {typed} WHERE {message} IS NULL"


def _readable(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The relation with every column whose type polars lacks as text."""
    plain = [kind.id in _PLAIN_TYPES for kind in relation.types]
    if all(plain):
        return relation
    names = ['"' + name.replace('"', '""') + '"' for name in relation.columns]
    parts = [name if ok else f"{name}::VARCHAR AS {name}" for name, ok in zip(names, plain, strict=True)]
    return relation.project(", ".join(parts))


def _one_line(error: duckdb.Error) -> InputError:
    text = str(error).split("\nLINE ")[0]  # what follows shows the query and a caret
    reason = " ".join(text.split())
    if ".parquet" in reason:
        cure = "Remove that file and run the audit again: it is made again."
        return InputError("readable tables", reason, cure=cure)
    return InputError("a valid query", reason, cure="`show tables` lists the tables, `describe findings` its columns.")
