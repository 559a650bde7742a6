"""Entries of a reference set: a picture each, or what cannot be one, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from PIL import Image

# beside pictures: captions, tables, arrays and notes; they are no pictures and nobody takes them for any
SIDECARS = frozenset({
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".toml", ".xml", ".log", ".npy", ".npz", ".lock",
    ".pkl", ".pt", ".safetensors", ".py", ".sh", ".ini", ".db", ".duckdb", ".sha256", ".md5",
})  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One thing of a reference set.

    Attributes:
        name: By which it is told from others: its path without suffix, its key, or its row.
        address: Where its bytes are, as in `fbmem_core.inputs.addresses`.
        path: The same, below the set.
        stamp: Changes when the bytes do: size and time of change of its file.
        status: `ok`, or why it is not looked at.
        reason: The same in words.
        caption: A text beside it.
        url: Where it comes from.
    """

    name: str
    address: str
    path: str
    stamp: str = ""
    status: str = "ok"
    reason: str | None = None
    caption: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class SetFile:
    """A file of the set: its path below it, where it is, and its stamp."""

    path: str
    address: str
    stamp: str
    status: str = "ok"
    reason: str | None = None

    @property
    def suffix(self) -> str:
        """Suffix in small letters."""
        return PurePosixPath(self.path).suffix.lower()


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes that Pillow opens here."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
