"""Places of reference pictures: folders, img2dataset's tars, Parquet and Arrow tables with the pictures' bytes.

A set may mix them, and lie on this machine or behind a URL that fsspec opens. Everything in it is an entry: also what
cannot be a picture, with the reason, so that nothing is passed over in silence.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import (
    is_url,
    open_stream,
    readable_name,
)
from fbmem_core.inputs.containers import arrow_entries, parquet_entries, tar_entries
from fbmem_core.inputs.entries import SIDECARS, Entry, SetFile, picture_suffixes

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
_HUB_PARENTS = 5  # levels above a file of the Hugging Face cache at which its `blobs` lie


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


def _files(root: str) -> Iterator[SetFile]:
    if is_url(root):
        yield from _remote_files(root)
        return
    path = Path(root)
    if path.is_file():
        yield SetFile(path.name, str(path), _stamp(path))
    elif path.is_dir():
        yield from _local_files(path)
    else:
        raise InputError("a folder of images", "no such folder", where=root, cure="Mend the path.")


def _local_files(root: Path) -> Iterator[SetFile]:
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
        yield SetFile(readable_name(below), str(error.filename), "", "unreadable", f"a folder: {error.strerror}")


def _local_file(path: Path, below: str, root: Path, *, is_folder: bool) -> SetFile:
    shown, address = readable_name(below), readable_name(str(path))
    if is_folder:
        link = readable_name(str(path.readlink()))
        return SetFile(shown, address, "", "unreadable", f"a link to a folder, {link}: name that folder, or copy it")
    status, reason = link_problem(path, root)
    if status != "ok":
        return SetFile(shown, address, "", status, reason)
    return SetFile(shown, address, _stamp(path))


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


def _remote_files(root: str) -> Iterator[SetFile]:
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
        yield SetFile(below, filesystem.unstrip_protocol(name), f"{facts.get('size')} {changed}")


def _entries_of(file: SetFile) -> list[Entry]:
    if file.status == "ok":
        reader = {".tar": tar_entries, ".parquet": parquet_entries, ".arrow": arrow_entries}.get(file.suffix)
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


def _entry(file: SetFile, *, status: str, reason: str | None) -> Entry:
    name = str(PurePosixPath(file.path).with_suffix("")) if file.suffix else file.path
    return Entry(name, file.address, file.path, file.stamp, status, reason)


def _is_picture(address: str) -> bool:
    try:
        with open_stream(address) as stream, Image.open(stream):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False


def _container_entries(file: SetFile, reader) -> list[Entry]:  # type: ignore[no-untyped-def]
    try:
        return list(reader(file))
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        return [_entry(file, status="unreadable", reason=f"{type(error).__name__}: {error}")]
