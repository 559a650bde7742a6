"""Tables as Parquet: one file per (table, partition, shard), there complete or not at all.

The store is a folder or the URL of an object store. A file of a folder is written under a temporary name and renamed;
an object is there when its upload is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fbmem_core.errors import InputError
from fbmem_core.store.schemas import TABLES

TABLES_DIR = "tables"
_BROKEN = (pa.ArrowException, OSError, ValueError)


def is_foreign(path: Path) -> bool:
    """True if the file is none of a table's: `._name`, which a Mac or SMB leaves beside it, or a partial one."""
    return path.name.startswith(".")


def digest(*parts: Any) -> str:
    """16 hex digits that change with any of some JSON values: a shard's name, from what its rows depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def rows_sha256(rows: Iterable[Sequence[Any]]) -> str:
    """64 hex digits over rows of JSON values, in whatever order they come."""
    lines = sorted(json.dumps(list(row)) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Store:
    """Everything that an audit produces: `tables/`, `images/`, `audits/` and `fbmem.duckdb`.

    Attributes:
        root: Where it lies: a folder, or the path of an object store with the same methods (universal_pathlib).
        local: A folder of this machine for what no object store can hold: memory-mapped planes (`cache/`), locks and
            Dagster's own database. The root itself, unless that is a URL.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> row = {"stage": "masks", "item": "owl.png", "reason": "its matte is undecided"}
        >>> store.write("rejected", "my-model-0123", [row])
        1
        >>> store.read("rejected", "my-model-0123")["item"].to_list()
        ['owl.png']
    """

    def __init__(self, root: Path | str) -> None:
        """`root` is a folder, or a URL such as `s3://bucket/audits`.

        Raises:
            InputError: fsspec knows no such kind of URL, or lacks the package for it; or the path is that of a file.
        """
        self.is_remote = "://" in str(root)
        self.root: Path = _remote_root(str(root)) if self.is_remote else _local_root(Path(root))
        self.local = Path.home() / ".cache" / "fbmem" / digest(str(root)) if self.is_remote else self.root

    def write(
        self,
        table: str,
        checkpoint: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        shard: str = "all",
        notes: Mapping[bytes, bytes] | None = None,
    ) -> int:
        """Replace one shard of a table's partition. Rows lack the column `checkpoint`, which is filled in.

        `notes` are kept in the metadata of the file.

        Returns:
            The number of rows.

        Raises:
            InputError: Two rows have one key, or a row lacks a column or has one too many.
        """
        spec = TABLES[table]
        filled = [{"checkpoint": checkpoint, **row} for row in rows]
        for row in filled:
            if row.keys() != spec.columns.keys():
                differing = sorted(row.keys() ^ spec.columns.keys())
                raise InputError(
                    f"the columns of `{table}`", f"a row that differs in {differing}", cure="Mend the row."
                )
        keys = [tuple(row[column] for column in spec.key) for row in filled]
        if len(set(keys)) < len(keys):
            again = Counter(keys).most_common(1)[0][0]
            raise InputError(f"unique keys in `{table}`", f"{again} twice", cure="Write each row once.")
        content = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(filled, schema=spec.schema.with_metadata(notes)), content)
        path = f"{TABLES_DIR}/{table}/partition={checkpoint}/{shard}.parquet"
        self.write_bytes(path, content.getvalue().to_pybytes())
        return len(filled)

    def keep_shards(self, table: str, checkpoint: str, shards: Iterable[str], *, among: str = "*") -> None:
        """Delete stale shards: those that match `among` and are not in `shards`."""
        current = set(shards)
        for path in self._files(table, checkpoint, among):
            if path.stem not in current:
                path.unlink(missing_ok=True)  # other steps may tidy up too

    def shards(
        self,
        table: str,
        checkpoint: str,
        names: Collection[str] | None = None,
        *,
        report: Callable[[str], None] = lambda message: None,
    ) -> set[str]:
        """The names of a partition's shards that are there and whole; `names`: only of these.

        One that is broken is removed, so that it is made again, and `report` is told its name.
        """
        whole = set()
        files = [path for path in self._files(table, checkpoint) if names is None or path.stem in names]
        for path, content in zip(files, self._contents(files), strict=True):
            try:
                pq.ParquetFile(pa.BufferReader(content)).read()
                whole.add(path.stem)
            except _BROKEN as error:
                report(f"{path} is broken and is made again: {error}")
                path.unlink()
        return whole

    def read(self, table: str, checkpoint: str, *, shard: str = "*") -> pl.DataFrame:
        """The rows of one partition, sorted by key; an empty frame with the right columns where nothing was written.

        Raises:
            InputError: A file is broken; the message names it.
        """
        spec = TABLES[table]
        files = self._files(table, checkpoint, shard)
        parts = [spec.schema.empty_table()]
        for path, content in zip(files, self._contents(files), strict=True):
            try:
                parts.append(pq.ParquetFile(pa.BufferReader(content)).read().replace_schema_metadata())
            except _BROKEN as error:
                cure = f"Remove it and materialize `{table}` again."
                raise InputError("a readable Parquet file", f"{error}", where=path, cure=cure) from None
        frames = [pl.DataFrame(pl.from_arrow(rows)) for rows in parts]
        # a column that an older version did not write is null, one that is no longer written is left out
        return pl.concat(frames, how="diagonal").select(spec.schema.names).sort(spec.key)

    def partitions(self, table: str) -> list[str]:
        """The partitions of which a table holds anything, sorted."""
        folder = self.root / TABLES_DIR / table
        try:
            return sorted(path.name.removeprefix("partition=") for path in folder.glob("partition=*"))
        except self.errors as error:
            raise self._unreadable(folder, error) from None

    def data_version(self, table: str, checkpoint: str, *, shard: str = "*") -> str:
        """A hash of a partition's rows: the same rows give the same version, whenever and in how many files written."""
        frame = self.read(table, checkpoint, shard=shard)
        content = frame.select(column for column in frame.columns if column != "created_at").write_ndjson()
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def table_dir(self, table: str, checkpoint: str) -> Path:
        """Folder of the Parquet files of one partition."""
        return self.root / TABLES_DIR / table / f"partition={checkpoint}"

    def write_bytes(self, relative: str, content: bytes) -> Path:
        """Write a file below the root, complete or not at all.

        Raises:
            InputError: It cannot be written: a full disk, no permission, no such bucket.
        """
        path = self.root / relative
        try:
            if self.is_remote:
                path.fs.pipe_file(path.path, content)  # type: ignore[attr-defined]
            else:
                _write_and_rename(path, content)
        except self.errors as error:
            cure = "Mend that and run it again: what is finished is kept."
            reason = getattr(error, "strerror", None) or error
            raise InputError("a store that can be written", reason, where=path, cure=cure) from None
        return path

    def forget(self, checkpoint: str) -> None:
        """Remove the tables of one partition; images stay, they are named by their content."""
        for table in TABLES:
            for path in self._files(table, checkpoint):
                path.unlink()

    @property
    def errors(self) -> type[Exception]:
        """Exceptions that may be raised where the store cannot be reached; each package of fsspec has its own."""
        return Exception if self.is_remote else OSError

    def _files(self, table: str, checkpoint: str, shard: str = "*") -> list[Path]:
        folder = self.table_dir(table, checkpoint)
        try:
            return sorted(path for path in folder.glob(f"{shard}.parquet") if not is_foreign(path))
        except self.errors as error:
            raise self._unreadable(folder, error) from None

    def _unreadable(self, where: Path, error: Exception) -> InputError:
        cure = "Mend that: credentials, endpoint, network or permissions."
        return InputError("a store that can be read", error, where=where, cure=cure)

    def _contents(self, files: Sequence[Path]) -> Iterable[bytes]:
        if not self.is_remote:
            return (path.read_bytes() for path in files)
        paths = [path.path for path in files]  # type: ignore[attr-defined]
        contents = self.root.fs.cat(paths) if paths else {}  # type: ignore[attr-defined]
        return [contents[path] for path in paths]


def _local_root(path: Path) -> Path:
    root = path.expanduser().resolve()
    if root.exists() and not root.is_dir():
        raise InputError("a folder for the store", "a file", where=root, cure="Name a folder.")
    return root


def _remote_root(url: str) -> Path:
    from upath import UPath

    try:
        root = UPath(url, use_listings_cache=False)  # other processes write there too
        root.fs  # noqa: B018  imports what the URL needs
    except (ImportError, ValueError) as error:
        cure = "Install what it needs: `pip install 'fbmem[s3]'` for s3://, gcsfs for gs://."
        raise InputError("a folder or a URL that fsspec can open", f"{error}", where=url, cure=cure) from None
    return root  # type: ignore[return-value]


def _write_and_rename(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
