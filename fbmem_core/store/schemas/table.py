"""A table: its columns with type and meaning, its key and its grain, in one definition."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TEXT, INTEGER, REAL, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
TIME, TEXTS, REALS = pa.timestamp("us", tz="UTC"), pa.list_(pa.string()), pa.list_(pa.float64())


@dataclass(frozen=True)
class Column:
    """One column: its name, its Arrow type, and what it holds with its unit or range."""

    name: str
    type: pa.DataType
    description: str


class Table:
    """One public table.

    Args:
        name: Its name in the store, in SQL and in the documents.
        grain: One sentence: what a row is.
        key: Names of the columns that tell its rows apart; `checkpoint` is the partition, always the first.
        columns: Its columns, in order. Nothing else has to be written for a new column: the Arrow schema, the UI,
            DuckDB's comments and docs/tables.md follow.

    Example:
        >>> from fbmem_core.store.schemas import TABLES
        >>> TABLES["labels"].key
        ('checkpoint', 'method', 'prompt_id', 'seed', 'masking', 'rule')
        >>> TABLES["labels"].descriptions["label"]
        'VM, FM, BM or NM; null: undecided'
    """

    def __init__(self, name: str, grain: str, *, key: tuple[str, ...], columns: tuple[Column, ...]) -> None:
        self.name, self.grain, self.key = name, grain, key
        self.columns: dict[str, pa.DataType] = {column.name: column.type for column in columns}
        self.descriptions: dict[str, str] = {column.name: column.description for column in columns}

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, in the order of the columns."""
        return pa.schema([pa.field(name, kind) for name, kind in self.columns.items()])

    def markdown(self) -> str:
        """The section of docs/tables.md."""
        rows = [f"| {name} | {kind} | {self.descriptions[name]} |" for name, kind in self.columns.items()]
        key = ", ".join(f"`{name}`" for name in self.key)
        return "\n".join(
            [f"## {self.name}", "", f"{self.grain} Key: {key}.", "", "| column | type | |", "|---|---|---|", *rows]
        )
