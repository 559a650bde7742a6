"""Tables that are made piece by piece, yet lie in few files: a file holds the rows of many pieces and names them.

A piece is the smallest part that is made anew, say the images of one prompt; its name changes with all that its rows
depend on. While work goes on, a file is written for every few pieces, so that a kill loses no more; once all is there,
small files are merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.store.tables import Store, digest

PIECES_KEY = b"fbmem_pieces"  # in the Parquet file's own metadata
_MERGED = 2000  # pieces of a merged file
Owner = tuple[Any, ...]


class Batches:
    """The files of a few tables of one partition whose rows are made together, piece by piece.

    Args:
        store: Where they lie.
        partition: Of the tables.
        tables: In the order in which they are written: what stands in the last is in all of them.
        prefix: Of the names of their files.
        owner: Columns that tell to which piece a row belongs.
    """

    def __init__(
        self,
        store: Store,
        partition: str,
        tables: Sequence[str],
        *,
        prefix: str,
        owner: Sequence[str] = ("method", "prompt_id"),
    ) -> None:
        self._store, self._partition, self._tables = store, partition, tuple(tables)
        self._prefix, self._owner = prefix, tuple(owner)

    def state(self, *, report: Callable[[str], None] = lambda message: None) -> tuple[set[str], set[str]]:
        """The pieces that are whole in every table, and those that the last one has but another has lost.

        A broken file is removed and `report` is told its name.
        """
        pieces_of_tables: list[set[str]] = []
        for table in self._tables:
            self._store.shards(table, self._partition, self._names(table), report=report)
            pieces_of_tables.append({piece for name in self._names(table) for piece in self._pieces(table, name)})
        present = set.intersection(*pieces_of_tables)
        return present, pieces_of_tables[-1] - present

    def keep(self, owners: Mapping[str, Owner]) -> None:
        """Remove the rows of all other pieces, and of one that an interrupted merge left in a second file.

        Args:
            owners: The pieces of the audit as it is now, each with what its rows have in the owner's columns.
        """
        for table in self._tables:
            seen: set[str] = set()
            for name in self._names(table):
                pieces = self._pieces(table, name)
                kept = [piece for piece in pieces if piece in owners and piece not in seen]
                seen |= set(kept)
                if not kept:
                    self._remove(table, name)
                elif kept != pieces:
                    keys = pl.DataFrame([owners[piece] for piece in kept], schema=self._owner, orient="row")
                    rows = self._store.read(table, self._partition, shard=name)
                    if not rows.is_empty():  # else another step has removed the file in between
                        self._write(table, name, kept, rows.join(keys, on=self._owner, how="semi"))

    def write(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], pieces: Sequence[str]) -> None:
        """Write the rows of a few pieces, a list for each table, as one file in each."""
        name = self._name(pieces)
        for table in self._tables:
            self._store.write(table, self._partition, rows[table], shard=name, notes=_notes(pieces))

    def merge(self) -> None:
        """Put small files together, once nothing is at work. A kill leaves rows twice until the next `keep`."""
        for table in self._tables:
            for names, pieces in self._groups(table):
                rows = pl.concat([self._store.read(table, self._partition, shard=name) for name in names])
                merged = self._name(pieces)
                self._write(table, merged, pieces, rows)
                for name in names:
                    if name != merged:
                        self._remove(table, name)

    def _groups(self, table: str) -> Iterator[tuple[list[str], list[str]]]:
        """Names of small files that become one, with the pieces that they hold."""
        names: list[str] = []
        pieces: list[str] = []
        for name in self._names(table):
            own = self._pieces(table, name)
            if len(own) >= _MERGED:
                continue
            if len(pieces) + len(own) > _MERGED:
                if len(names) > 1:
                    yield names, pieces
                names, pieces = [], []
            names, pieces = [*names, name], [*pieces, *own]
        if len(names) > 1:
            yield names, pieces

    def _name(self, pieces: Sequence[str]) -> str:
        return f"{self._prefix}-{digest(sorted(pieces))}"

    def _names(self, table: str) -> list[str]:
        folder = self._store.table_dir(table, self._partition)
        return sorted(path.stem for path in folder.glob(f"{self._prefix}-*.parquet"))

    def _pieces(self, table: str, name: str) -> list[str]:
        try:
            with (self._store.table_dir(table, self._partition) / f"{name}.parquet").open("rb") as file:
                metadata = pq.read_schema(file).metadata or {}  # the end of the file alone
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
