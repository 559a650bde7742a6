"""Addresses of pictures: a file, a member of a tar, or a cell of a Parquet or Arrow table, local or of any fsspec URL.

    references/owl.png
    s3://bucket/references/00000.tar::1536+20480::owl.jpg       (offset and number of bytes in the tar)
    references/train-00000.parquet::17::image.bytes             (row and column)

A picture is read where it lies; nothing is unpacked to files.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

_TAR_MEMBER = re.compile(r"(?P<file>.+\.tar)::(?P<offset>\d+)\+(?P<size>\d+)::(?P<name>.*)", re.DOTALL)
_CELL = re.compile(r"(?P<file>.+\.(?:parquet|arrow))::(?P<row>\d+)::(?P<column>.+)", re.DOTALL)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def is_url(path: str) -> bool:
    """True if fsspec opens it, say `s3://bucket/folder` or `hf://datasets/owner/name`."""
    return "://" in path


def tar_address(file: str, offset: int, size: int, name: str) -> str:
    """The address of a member of a tar.

    Example:
        >>> tar_address("a.tar", 512, 20, "owl.png")
        'a.tar::512+20::owl.png'
    """
    return f"{file}::{offset}+{size}::{name}"


def cell_address(file: str, row: int, column: str) -> str:
    """The address of a cell that holds the bytes of a picture; a column within another is `image.bytes`.

    Example:
        >>> cell_address("a.parquet", 3, "image.bytes")
        'a.parquet::3::image.bytes'
    """
    return f"{file}::{row}::{column}"


def container_of(address: str) -> str:
    """The file in which the picture lies, itself if it is one.

    Example:
        >>> container_of("a.tar::512+20::owl.png"), container_of("owl.png")
        ('a.tar', 'owl.png')
    """
    match = _TAR_MEMBER.fullmatch(address) or _CELL.fullmatch(address)
    return address if match is None else match["file"]


def readable_name(path: str) -> str:
    r"""A file's name as text that any table can hold: bytes that are no UTF-8 are written `\xe9`.

    Example:
        >>> readable_name("caf\udce9.png")
        'caf\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def local_path(path: str) -> Path:
    """The file of a readable name."""
    file = Path(path)
    if "\\x" in path and not file.exists():
        content = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(path))
        return Path(os.fsdecode(content))
    return file


def open_stream(path: str) -> IO[bytes]:
    """A file of this machine or of a URL, opened for reading.

    Raises:
        OSError: It cannot be.
    """
    if not is_url(path):
        return local_path(path).open("rb")
    import fsspec

    try:
        return fsspec.open(path, "rb").open()
    except Exception as error:  # noqa: BLE001  each package of fsspec raises its own
        raise OSError(f"{type(error).__name__}: {error}") from None


def read_bytes(address: str) -> bytes:
    """The bytes of a picture.

    Raises:
        OSError: They cannot be read.
        ValueError: There is no such member or cell, or nothing is in it.
    """
    member = _TAR_MEMBER.fullmatch(address)
    if member is not None and not local_path(address).is_file():
        with open_stream(member["file"]) as stream:
            stream.seek(int(member["offset"]))
            return stream.read(int(member["size"]))
    cell = _CELL.fullmatch(address)
    if cell is not None and not local_path(address).is_file():
        return _cell(cell["file"], int(cell["row"]), cell["column"])
    with open_stream(address) as stream:
        return stream.read()


def _cell(file: str, row: int, column: str) -> bytes:
    try:
        if file.endswith(".arrow"):
            values, at = _arrow_column(file, column), row
        else:
            group, at = _row_group(file, row)
            values = _parquet_column(file, group, column)
        content = values[at].as_py()
    except (pa.ArrowException, IndexError, KeyError) as error:
        raise ValueError(f"no cell {row} of {column}: {error}") from None
    if not isinstance(content, bytes):
        raise ValueError(f"row {row} of {column} holds no bytes")
    return content


def _row_group(file: str, row: int) -> tuple[int, int]:
    """The row group of a row, and its place there."""
    for group, (start, count) in enumerate(_row_groups(file)):
        if row < start + count:
            return group, row - start
    raise IndexError(row)


@lru_cache(maxsize=64)
def _row_groups(file: str) -> list[tuple[int, int]]:
    with open_stream(file) as stream:
        metadata = pq.ParquetFile(stream).metadata
    starts, start = [], 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        starts.append((start, count))
        start += count
    return starts


@lru_cache(maxsize=2)  # pictures are read in their order: one row group after the other
def _parquet_column(file: str, group: int, column: str) -> Any:
    with open_stream(file) as stream:
        values = pq.ParquetFile(stream).read_row_group(group, columns=[column])
    return _nested(values.column(column.partition(".")[0]).combine_chunks(), column)


@lru_cache(maxsize=8)
def _arrow_column(file: str, column: str) -> Any:
    """Column of an Arrow file; a local one is not copied, the system maps it."""
    table = read_arrow(file)
    chunks = [_nested(chunk, column) for chunk in table.column(column.partition(".")[0]).chunks]
    return pa.chunked_array(chunks)


def read_arrow(file: str) -> pa.Table:
    """The table of an Arrow file or stream, as `Dataset.save_to_disk` writes it, mapped into memory where it is local.

    Raises:
        pa.ArrowException: It is none.
    """
    source = pa.BufferReader(read_bytes(file)) if is_url(file) else pa.memory_map(str(local_path(file)))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _nested(values: Any, column: str) -> Any:
    for name in column.split(".")[1:]:
        values = values.field(name) if isinstance(values, pa.StructArray) else values
    return values
