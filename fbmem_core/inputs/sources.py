"""Places of reference pictures: folders, img2dataset's tars, Parquet and Arrow tables with the pictures' bytes.

A set may mix them, and lie on this machine or behind a URL that fsspec opens. Everything in it is an entry: also what
cannot be a picture, with the reason, so that nothing is passed over in silence.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import (
    cell_address,
    is_url,
    open_stream,
    read_arrow,
    read_bytes,
    readable_name,
    tar_address,
)

# beside pictures: captions, tables, arrays and notes; they are no pictures and nobody takes them for any
SIDECARS = frozenset({
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".toml", ".xml", ".log", ".npy", ".npz", ".lock",
    ".pkl", ".pt", ".safetensors", ".py", ".sh", ".ini", ".db", ".duckdb", ".sha256", ".md5",
})  # fmt: skip
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
_IMAGE_COLUMNS = ("image", "jpg", "png", "jpeg", "webp", "img", "picture", "pixels", "bytes")
_NAME_COLUMNS = ("reference_id", "key", "__key__", "id", "file_name", "filename", "name")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
_URL_COLUMNS = ("url", "source_url")
_FETCHED = "success"  # img2dataset's status of a picture that is in the tar
_MAX_SIDECAR_BYTES = 2**16
_HUB_PARENTS = 5  # levels above a file of the Hugging Face cache at which its `blobs` lie


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
class _File:
    """A file of the set: its path below it, where it is, and its stamp."""

    path: str
    address: str
    stamp: str
    status: str = "ok"
    reason: str | None = None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes that Pillow opens here."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def find_entries(root: str) -> list[Entry]:
    """Everything in a reference set, in the order of its files, names not yet made unique.

    Args:
        root: A folder, a tar, a Parquet or Arrow file, or the URL of one.

    Raises:
        InputError: There is no such place.
    """
    entries: list[Entry] = []
    for file in _files(root):
        entries += _entries_of(file)
    return entries


def unique_names(entries: Iterable[Entry]) -> list[Entry]:
    """Give entries whose names are taken their path as name, and where that is taken too, a number."""
    entries = list(entries)
    count = Counter(entry.name for entry in entries)
    named = [entry if count[entry.name] == 1 else replace(entry, name=entry.path) for entry in entries]
    count = Counter(entry.name for entry in named)
    # `x.png.png` has the name of `x.png`, which took its path
    named = [entry if count[entry.name] == 1 else replace(entry, name=entry.path) for entry in named]
    seen: Counter[str] = Counter()
    unique = []
    for entry in named:
        seen[entry.name] += 1
        again = seen[entry.name]
        unique.append(entry if again == 1 else replace(entry, name=f"{entry.name} ({again})"))
    return unique


def _files(root: str) -> Iterator[_File]:
    if is_url(root):
        yield from _remote_files(root)
        return
    path = Path(root)
    if path.is_file():
        yield _File(path.name, str(path), _stamp(path))
    elif path.is_dir():
        yield from _local_files(path)
    else:
        raise InputError("a folder of images", "no such folder", where=root, cure="Mend the path.")


def _local_files(root: Path) -> Iterator[_File]:
    refused: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=refused.append):
        folders.sort()
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *linked]):
            path = Path(folder, name)
            below = path.relative_to(root).as_posix()
            if not name.startswith("."):
                yield _local_file(path, below, root, is_folder=name in linked)
    for error in refused:
        below = os.path.relpath(error.filename, root)
        yield _File(readable_name(below), str(error.filename), "", "unreadable", f"a folder: {error.strerror}")


def _local_file(path: Path, below: str, root: Path, *, is_folder: bool) -> _File:
    shown, address = readable_name(below), readable_name(str(path))
    if is_folder:
        link = readable_name(str(path.readlink()))
        return _File(shown, address, "", "unreadable", f"a link to a folder, {link}: name that folder, or copy it")
    status, reason = link_problem(path, root)
    if status != "ok":
        return _File(shown, address, "", status, reason)
    return _File(shown, address, _stamp(path))


def link_problem(path: Path, root: Path) -> tuple[str, str | None]:
    """`ok`, or why a file's path must not be followed: links stay inside the set or lead to the hub cache's `blobs`."""
    try:
        real = path.resolve()
        if not path.exists():
            target = f", a link to {readable_name(str(path.readlink()))}" if path.is_symlink() else ""
            return "missing", f"no such file{target}"
        parents = list(root.resolve().parents)[:_HUB_PARENTS]
        if real.is_relative_to(root.resolve()):
            return "ok", None
        if path.is_symlink() and any(real.parent == parent / "blobs" for parent in parents):
            return "ok", None
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a circle of links
        return "unreadable", f"{getattr(error, 'strerror', None) or error}"
    return "unreadable", "its path leads out of the folder: copy it there (cp -rL follows links)"


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _remote_files(root: str) -> Iterator[_File]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        files = filesystem.find(path, detail=True)
    except Exception as error:  # noqa: BLE001  each package of fsspec raises its own
        cure = "Mend the URL, its credentials, or install the package of fsspec that it needs."
        raise InputError(
            "references that can be listed", f"{type(error).__name__}: {error}", where=root, cure=cure
        ) from None
    if not files:
        raise InputError("a folder of images", "nothing", where=root, cure="Mend the URL.")
    for name, facts in sorted(files.items()):
        below = name.removeprefix(path).lstrip("/") or PurePosixPath(name).name
        changed = facts.get("ETag") or facts.get("LastModified") or facts.get("mtime") or facts.get("created") or ""
        yield _File(below, filesystem.unstrip_protocol(name), f"{facts.get('size')} {changed}")


def _entries_of(file: _File) -> list[Entry]:
    if file.status == "ok":
        reader = {".tar": _tar_entries, ".parquet": _parquet_entries, ".arrow": _arrow_entries}.get(file.suffix)
        if reader is not None:
            return _container_entries(file, reader)
        if file.path.lower().endswith(_PACKED):
            reason = "a packed archive: unpack it, or repack it as .tar, which is read as it is"
            return [_entry(file, status="unreadable", reason=reason)]
        if file.suffix in SIDECARS:
            return []
        if file.suffix not in picture_suffixes() and not _is_picture(file.address):
            reason = f"no picture that is read here (suffix `{file.suffix}`): convert it to png"
            return [_entry(file, status="unreadable", reason=reason)]
    elif file.suffix in SIDECARS:
        return []
    return [_entry(file, status=file.status, reason=file.reason)]


def _entry(file: _File, *, status: str, reason: str | None) -> Entry:
    name = str(PurePosixPath(file.path).with_suffix("")) if file.suffix else file.path
    return Entry(name, file.address, file.path, file.stamp, status, reason)


def _is_picture(address: str) -> bool:
    try:
        with open_stream(address) as stream, Image.open(stream):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def _container_entries(file: _File, reader) -> list[Entry]:  # type: ignore[no-untyped-def]
    try:
        return list(reader(file))
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        return [_entry(file, status="unreadable", reason=f"{type(error).__name__}: {error}")]


def _tar_entries(file: _File) -> Iterator[Entry]:
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


def _parquet_entries(file: _File) -> Iterator[Entry]:
    with open_stream(file.address) as stream:
        table = pq.ParquetFile(stream)
        column = _image_column(table.schema_arrow)
        names = [name for name in table.schema_arrow.names if name.lower() in _FACTS]
        if column is not None:
            names += _beside(table.schema_arrow, column)
        facts = table.read(columns=names)
    yield from _table_entries(file, facts, column)


def _arrow_entries(file: _File) -> Iterator[Entry]:
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


def _table_entries(file: _File, facts: pa.Table, column: str | None) -> Iterator[Entry]:
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
