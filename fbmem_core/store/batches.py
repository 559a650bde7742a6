"""Tables that are made piece by piece, yet lie in few files: a file holds the rows of many pieces and names them.

A piece is the smallest part that is made anew, say the images of one prompt; its name changes with all that its rows
depend on. While work goes on, a file is written for every few pieces, so that a kill loses no more; once all is there,
small files are merged.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.store.tables import Store, digest

PIECES_KEY = b"fbmem_pieces"  # in the Parquet file's own metadata
_MERGED = 2000  # pieces of a merged file
_OWNER = ("method", "prompt_id")
Owner = tuple[str, str]


class Batches:
    """The files of some tables of one partition that belong together: the same names hold the same pieces in each.

    Args:
        store: The store.
        partition: The partition.
        tables: In the order in which they are written: what stands in the last is in all of them.
        prefix: Of the names of their files.
    """

    def __init__(self, store: Store, partition: str, tables: Sequence[str], *, prefix: str) -> None:
        self._store, self._partition, self._tables, self._prefix = store, partition, tuple(tables), prefix

    def state(self, *, report: Callable[[str], None] = lambda message: None) -> tuple[set[str], set[str]]:
        """The pieces that are there whole in every table, and those that the last has but another has lost.

        A broken file is removed and `report` is told its name.
        """
        whole: list[set[str]] = []
        for table in self._tables:
            names = self._store.shards(table, self._partition, report=report)
            of_table: set[str] = set()
            for name in names:
                if name.startswith(self._prefix):
                    of_table |= set(self._pieces(table, name))
            whole.append(of_table)
        present = set.intersection(*whole)
        return present, whole[-1] - present

    def keep(self, wanted: Mapping[str, Owner]) -> None:
        """Remove the rows of every other piece, and of a piece that an interrupted merge left in a second file.

        Args:
            wanted: The pieces of the audit as it is now, each with the method and the prompt_id of its rows.
        """
        for table in self._tables:
            seen: set[str] = set()
            for name in self._names(table):
                pieces = self._pieces(table, name)
                kept = [piece for piece in pieces if piece in wanted and piece not in seen]
                seen |= set(kept)
                if kept == pieces:
                    continue
                if not kept:
                    self._remove(table, name)
                    continue
                owners = pl.DataFrame([wanted[piece] for piece in kept], schema=_OWNER, orient="row")
                rows = self._store.read(table, self._partition, shard=name)
                self._write(table, name, kept, rows.join(owners, on=_OWNER, how="semi"))

    def write(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], pieces: Sequence[str]) -> None:
        """Write the rows of some pieces, a list for each table, as one file in each."""
        name = self._name(pieces)
        for table in self._tables:
            self._store.write(table, self._partition, rows[table], shard=name, notes=_notes(pieces))

    def merge(self) -> None:
        """Put small files together, once nothing is at work."""
        names = [name for name in self._names(self._tables[-1])]
        pieces = {name: self._pieces(self._tables[-1], name) for name in names}
        group: list[str] = []
        for name in [*names, ""]:
            num = sum(len(pieces[member]) for member in group)
            if group and (not name or num >= _MERGED):
                self._merge(group, [piece for member in group for piece in pieces[member]])
                group = []
            if name and len(pieces[name]) < _MERGED:
                group.append(name)

    def _merge(self, names: Sequence[str], pieces: Sequence[str]) -> None:
        if len(names) < 2:
            return
        merged = self._name(pieces)
        for table in self._tables:
            there = [name for name in names if name in set(self._names(table))]
            rows = pl.concat([self._store.read(table, self._partition, shard=name) for name in there])
            self._write(table, merged, pieces, rows)
            for name in there:
                if name != merged:
                    self._remove(table, name)

    def _name(self, pieces: Sequence[str]) -> str:
        return f"{self._prefix}-{digest(sorted(pieces))}"

    def _names(self, table: str) -> list[str]:
        folder = self._store.table_dir(table, self._partition)
        return sorted(path.stem for path in folder.glob(f"{self._prefix}-*.parquet"))

    def _pieces(self, table: str, name: str) -> list[str]:
        try:
            content = (self._store.table_dir(table, self._partition) / f"{name}.parquet").read_bytes()
            metadata = pq.read_schema(io.BytesIO(content)).metadata or {}
        except (FileNotFoundError, pa.ArrowException):  # another step tidies up too
            return []
        # a file of an earlier version holds the one piece whose name it has
        return list(json.loads(metadata[PIECES_KEY])) if PIECES_KEY in metadata else [name]

    def _write(self, table: str, name: str, pieces: Sequence[str], rows: pl.DataFrame) -> None:
        records = rows.drop("checkpoint").to_dicts()
        self._store.write(table, self._partition, records, shard=name, notes=_notes(pieces))

    def _remove(self, table: str, name: str) -> None:
        (self._store.table_dir(table, self._partition) / f"{name}.parquet").unlink(missing_ok=True)


def _notes(pieces: Sequence[str]) -> dict[bytes, bytes]:
    return {PIECES_KEY: json.dumps(list(pieces)).encode()}
