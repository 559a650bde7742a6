"""The DuckDB side of the store: views over the Parquet files, which are the truth."""

from __future__ import annotations

import os
import re
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from fbmem_core.errors import InputError
from fbmem_core.store.schemas import TABLES, Table
from fbmem_core.store.tables import TABLES_DIR, Store

DATABASE_NAME = "fbmem.duckdb"
_SQL_TYPES = {
    pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ", pa.list_(pa.string()): "VARCHAR[]",
}  # fmt: skip


def build_warehouse(store: Store) -> Path:
    """(Re)build `fbmem.duckdb` beside the tables and swap it in by one rename; open readers are not disturbed.

    It holds views over the Parquet files; in an object store, which DuckDB alone cannot read, the rows themselves.
    """
    store.local.mkdir(parents=True, exist_ok=True)
    partial = store.local / f".{DATABASE_NAME}.partial-{os.getpid()}"
    partial.unlink(missing_ok=True)
    try:
        with duckdb.connect(partial) as connection:
            if not store.is_remote:
                create_views(connection, store)
            else:
                _register(connection, store)
                for table in TABLES.values():
                    connection.execute(f'CREATE TABLE "{table.name}" AS {_select(table, store)}')
                _comment(connection, "TABLE")
        if store.is_remote:
            return store.write_bytes(DATABASE_NAME, partial.read_bytes())
        partial.replace(store.root / DATABASE_NAME)
    finally:
        partial.unlink(missing_ok=True)
    return store.root / DATABASE_NAME


def query(store: Store, sql: str) -> pl.DataFrame | None:
    """Run SQL over the tables in a database in memory, so that no reader ever waits for a writer.

    Returns:
        The rows, or None for a statement that has none.

    Raises:
        InputError: There is no store, or DuckDB refuses the statement; the message is DuckDB's own first line.
    """
    if not (store.root / TABLES_DIR).is_dir():
        raise InputError("a store with tables", "none", where=store.root, cure="Run `fbmem audit` first.")
    connection = duckdb.connect()
    create_views(connection, store)
    try:
        relation = connection.sql(sql)
        return None if relation is None else relation.pl()
    except duckdb.Error as error:
        first = str(error).splitlines()[0]
        raise InputError("a valid query", first, cure=f"Tables: {', '.join(TABLES)}.") from None


def create_views(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """One view per table; a table without a file yet is an empty one with the right columns."""
    _register(connection, store)
    for table in TABLES.values():
        connection.execute(f'CREATE OR REPLACE VIEW "{table.name}" AS {_select(table, store)}')
    _comment(connection, "VIEW")


def _comment(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Say in the database what tables and columns hold: `duckdb_columns()` and most tools show it."""
    for table in TABLES.values():
        connection.execute(f"COMMENT ON {kind} \"{table.name}\" IS '{_quoted(table.grain)}'")
        for column in table.columns:
            comment = _quoted(table.descriptions[column])
            connection.execute(f'COMMENT ON COLUMN "{table.name}"."{column}" IS \'{comment}\'')


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _register(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Let the connection read an object store through fsspec: DuckDB's own extension for it would be fetched."""
    if store.is_remote:
        connection.register_filesystem(store.root.fs)  # type: ignore[attr-defined]


def _select(table: Table, store: Store) -> str:
    folder = store.root / TABLES_DIR / table.name
    if not any(folder.glob("partition=*/*.parquet")):
        typed = ", ".join(f'NULL::{_SQL_TYPES[kind]} AS "{name}"' for name, kind in table.columns.items())
        return f"SELECT {typed} WHERE false"
    names = ", ".join(f'"{name}"' for name in table.columns)
    # in DuckDB's patterns a bracket of one character is that character
    pattern = re.sub(r"([\[*?])", r"[\1]", _quoted(str(folder))) + "/partition=*/*.parquet"
    return f"SELECT {names} FROM read_parquet('{pattern}', hive_partitioning = false)"
