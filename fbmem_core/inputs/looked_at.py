"""Facts of each picture of a reference set, kept in a file, so that unchanged ones are not decoded again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fbmem_core.inputs.entries import Entry

_VERSION = 1  # raise it when the same picture begins to be seen otherwise
_TABLE = f"looked_at_{_VERSION}"


@dataclass(frozen=True)
class Looked:
    """Facts of a picture: its status, hash, size in px, and why it cannot be used."""

    status: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    reason: str | None = None


class LookedAt:
    """The kept facts, by the address of a picture and the stamp (size and time of change) of its file."""

    def __init__(self, file: Path | None) -> None:
        """`file` None, or one that cannot be written: nothing is kept."""
        self._connection = None
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=60)
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {_TABLE} (address TEXT PRIMARY KEY, stamp TEXT, status TEXT, "
                "sha256 TEXT, width INTEGER, height INTEGER, reason TEXT)"
            )
        except (OSError, sqlite3.Error):  # a read-only store, a broken file: it is a cache
            self._connection = None

    def __enter__(self) -> LookedAt:
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def get(self, entry: Entry) -> Looked | None:
        """Facts of a picture that are kept; None: there are none, or it has changed."""
        if self._connection is None or not entry.stamp:
            return None
        question = f"SELECT status, sha256, width, height, reason FROM {_TABLE} WHERE address = ? AND stamp = ?"
        try:
            row = self._connection.execute(question, (entry.address, entry.stamp)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else Looked(*row)

    def keep(self, facts: Sequence[tuple[Entry, Looked]]) -> None:
        """Keep what was seen."""
        if self._connection is None or not facts:
            return
        rows = [
            (entry.address, entry.stamp, seen.status, seen.sha256, seen.width, seen.height, seen.reason)
            for entry, seen in facts
        ]
        try:
            with self._connection:
                self._connection.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            pass
