"""Containers of pictures: img2dataset's tars, Parquet and Arrow tables with the pictures' bytes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fbmem_core.inputs.addresses import (
    cell_address,
    open_stream,
    read_arrow,
    read_bytes,
    readable_name,
    tar_address,
)
from fbmem_core.inputs.entries import SIDECARS, Entry, SetFile, picture_suffixes

_IMAGE_COLUMNS = ("image", "jpg", "png", "jpeg", "webp", "img", "picture", "pixels", "bytes")
_NAME_COLUMNS = ("reference_id", "key", "__key__", "id", "file_name", "filename", "name")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
_URL_COLUMNS = ("url", "source_url")
_FETCHED = "success"  # img2dataset's status of a picture that is in the tar
_MAX_SIDECAR_BYTES = 2**16


def tar_entries(file: SetFile) -> Iterator[Entry]:
    """Entries of a tar, with the captions and URLs that lie beside them."""
    notes: dict[str, dict[str, str]] = {}
    entries = []
    with open_stream(file.address) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            name, suffix = readable_name(member.name), PurePosixPath(member.name).suffix.lower()
            if not member.isfile() or PurePosixPath(name).name.startswith("."):
                continue
            key = name.removesuffix(PurePosixPath(name).suffix)
            if suffix in SIDECARS:
                if suffix in (".txt", ".json") and member.size <= _MAX_SIDECAR_BYTES:
                    content = tar.extractfile(member)
                    notes.setdefault(key, {}).update(_notes(content.read() if content else b"", suffix))
                continue
            address = tar_address(file.address, member.offset_data, member.size, name)
            entry = Entry(key, address, f"{file.path}::{name}", file.stamp)
            if suffix not in picture_suffixes() and not _is_bytes_picture(address):
                reason = f"no picture that is read here (suffix `{suffix}`): convert it to png"
                entry = replace(entry, status="unreadable", reason=reason)
            entries.append(entry)
    for entry in entries:
        of_key = notes.get(entry.name, {})
        yield replace(entry, caption=of_key.get("caption"), url=of_key.get("url"))


def _is_bytes_picture(address: str) -> bool:
    import io

    try:
        with Image.open(io.BytesIO(read_bytes(address))):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def _notes(content: bytes, suffix: str) -> dict[str, str]:
    """Caption and URL of a file beside a picture in a tar."""
    try:
        text = content.decode()
        if suffix == ".txt":
            return {"caption": " ".join(text.split())}
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in ("caption", "url") if isinstance(values.get(name), str)}


def parquet_entries(file: SetFile) -> Iterator[Entry]:
    """Entries of a Parquet table, a row each."""
    with open_stream(file.address) as stream:
        table = pq.ParquetFile(stream)
        column = _image_column(table.schema_arrow)
        names = [name for name in table.schema_arrow.names if name.lower() in _FACTS]
        if column is not None:
            names += _beside(table.schema_arrow, column)
        facts = table.read(columns=names)
    yield from _table_entries(file, facts, column)


def arrow_entries(file: SetFile) -> Iterator[Entry]:
    """Entries of an Arrow file, a row each; none where it has no column of pictures."""
    table = read_arrow(file.address)
    column = _image_column(table.schema)
    if column is None:
        return
    beside = _beside(table.schema, column)
    facts = table.select([name for name in table.column_names if name.lower() in _FACTS])
    for name in beside:
        struct = table.column(column.partition(".")[0]).combine_chunks()
        facts = facts.append_column(
            name.partition(".")[0], pa.StructArray.from_arrays([struct.field("path")], ["path"])
        )
    yield from _table_entries(file, facts, column)


_FACTS = frozenset({*_NAME_COLUMNS, *_CAPTION_COLUMNS, *_URL_COLUMNS, "status", "error_message"})


def _image_column(schema: pa.Schema) -> str | None:
    """The column of pictures: bytes, or the struct of bytes and path that Hugging Face datasets keep."""
    for candidate in _IMAGE_COLUMNS:
        for name in schema.names:
            if name.lower() != candidate:
                continue
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    return None


def _beside(schema: pa.Schema, column: str) -> list[str]:
    outer = column.partition(".")[0]
    has_path = outer != column and schema.field(outer).type.get_field_index("path") >= 0
    return [f"{outer}.path"] if has_path else []


def _table_entries(file: SetFile, facts: pa.Table, column: str | None) -> Iterator[Entry]:
    names = {name.lower(): name for name in facts.column_names}
    if column is None and "status" not in names:
        return  # a table of something else beside the pictures
    outer = (column or "").partition(".")[0]
    for number, row in enumerate(facts.to_pylist()):
        values = {lowered: row[name] for lowered, name in names.items()}
        path = (row.get(outer) or {}).get("path") if outer in row else None
        name = next((str(values[n]) for n in _NAME_COLUMNS if values.get(n) not in (None, "")), None) or path
        stem = PurePosixPath(name).stem if name and PurePosixPath(name).suffix.lower() in picture_suffixes() else name
        entry = Entry(
            name=readable_name(stem or f"{PurePosixPath(file.path).stem}-{number}"),
            address=cell_address(file.address, number, column or ""),
            path=f"{file.path}::{number}",
            stamp=file.stamp,
            caption=_first(values, _CAPTION_COLUMNS),
            url=_first(values, _URL_COLUMNS),
        )
        status = values.get("status")
        if column is not None:
            yield entry
        elif isinstance(status, str) and status != _FETCHED:  # img2dataset's table of what it fetched
            yield replace(entry, status="missing", reason=f"{status}: {values.get('error_message') or 'no reason'}")


def _first(values: dict[str, object], columns: Iterable[str]) -> str | None:
    return next((value for name in columns if isinstance(value := values.get(name), str) and value), None)
