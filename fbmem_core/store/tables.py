"""Tables as Parquet: one file per (table, partition, shard), written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.errors import InputError
from fbmem_core.store.schemas import TABLES

TABLES_DIR = "tables"


def digest(*parts: Any) -> str:
    """16 hex digits that change with any of some JSON values: a shard's name, from what its rows depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """A folder that holds everything an audit produces: `tables/`, `images/`, `audits/` and `fbmem.duckdb`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def write(self, table: str, checkpoint: str, rows: Iterable[Mapping[str, Any]], *, shard: str = "all") -> int:
        """Replace one shard of a table's partition. Rows lack the column `checkpoint`, which is filled in.

        Returns:
            The number of rows.

        Raises:
            InputError: Two rows have one key, or a row lacks a column or has one too many.
        """
        spec = TABLES[table]
        filled = [{"checkpoint": checkpoint, **row} for row in rows]
        for row in filled:
            if row.keys() != spec.columns.keys():
                odd = sorted(row.keys() ^ spec.columns.keys())
                raise InputError(f"the columns of `{table}`", f"a row that differs in {odd}", cure="Mend the row.")
        keys = [tuple(row[column] for column in spec.key) for row in filled]
        if len(set(keys)) < len(keys):
            again = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"unique keys in `{table}`", f"{again} twice", cure="Write each row once.")
        content = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(filled, schema=spec.schema), content)
        path = self.table_dir(table, checkpoint) / f"{shard}.parquet"
        self.write_bytes(str(path.relative_to(self.root)), content.getvalue().to_pybytes())
        return len(filled)

    def keep_shards(self, table: str, checkpoint: str, shards: Iterable[str], *, among: str = "*") -> None:
        """Of the shards whose names fit `among`, remove those that an earlier, other audit left there."""
        wanted = set(shards)
        for path in self.table_dir(table, checkpoint).glob(f"{among}.parquet"):
            if path.stem not in wanted:
                path.unlink()

    def read(self, table: str, checkpoint: str, *, shard: str = "*") -> pl.DataFrame:
        """The rows of one partition, sorted by key; an empty frame with the right columns where nothing was written."""
        spec = TABLES[table]
        files = sorted(self.table_dir(table, checkpoint).glob(f"{shard}.parquet"))
        empty = pl.DataFrame(pl.from_arrow(spec.schema.empty_table()))
        return pl.concat([empty, *(pl.read_parquet(file, hive_partitioning=False) for file in files)]).sort(spec.key)

    def partitions(self, table: str) -> list[str]:
        """The partitions of which a table holds anything, sorted."""
        folders = (self.root / TABLES_DIR / table).glob("partition=*")
        return sorted(folder.name.removeprefix("partition=") for folder in folders)

    def data_version(self, table: str, checkpoint: str) -> str:
        """A hash of a partition's rows: the same rows give the same version, whenever and in how many files written."""
        frame = self.read(table, checkpoint)
        content = frame.select(column for column in frame.columns if column != "created_at").write_ndjson()
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def table_dir(self, table: str, checkpoint: str) -> Path:
        """Where the Parquet files of one partition lie."""
        return self.root / TABLES_DIR / table / f"partition={checkpoint}"

    def write_bytes(self, relative: str, content: bytes) -> Path:
        """Write a file below the root, complete or not at all."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def forget(self, checkpoint: str) -> None:
        """Remove the tables of one partition; images stay, they are named by their content."""
        for table in TABLES:
            shutil.rmtree(self.table_dir(table, checkpoint), ignore_errors=True)
