"""Reference images: the training images that a model may have memorized."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import is_url, local_path, read_bytes, readable_name
from fbmem_core.inputs.entries import Entry, picture_suffixes
from fbmem_core.inputs.looked_at import Looked, LookedAt
from fbmem_core.inputs.pictures import BROKEN, decode_rgb, open_rgb
from fbmem_core.inputs.rows import Rejection, read_rows, shorten
from fbmem_core.inputs.sources import find_entries, link_problem, unique_names

__all__ = ["MANIFEST_NAME", "MIN_SIDE", "ReferenceImage", "open_rgb", "read_references"]

MANIFEST_NAME = "references.csv"
# a dead link often serves a tiny or one-coloured picture instead of an error
MIN_SIDE = 8
_FLAT = 8  # numbers of 255 that the pixels of a picture must span at least
_BLOCK = 256  # entries that are looked at together
_NEEDED = ("reference_id", "path")


@dataclass(frozen=True)
class ReferenceImage:
    """One reference.

    Attributes:
        reference_id: Its name.
        path: Below the set.
        status: ok, missing, unreadable, placeholder, duplicate or unlisted.
        address: Where its bytes are; `fbmem_core.inputs.pictures.open_rgb` opens it.
    """

    reference_id: str
    path: str
    status: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    url: str | None = None
    reason: str | None = None
    address: str = field(default="", compare=False)


def read_references(
    source: Path | str, *, cache: Path | None = None, num_threads: int | None = None
) -> Iterator[ReferenceImage]:
    """Look at everything in a reference set, in the order of its files.

    A set is a folder of pictures, of img2dataset's tars, of Parquet or Arrow tables with a column of pictures (bytes,
    or the struct of bytes and path of Hugging Face datasets), or one such file; or the URL of one (s3://, hf://, ...).
    Nothing is unpacked. In a folder `references.csv` may name the pictures (columns reference_id, path, caption, url;
    paths stay inside the folder); else each is named by its path without suffix, in tars by its key, in tables by a
    column `key`, `id` or `file_name`, its path, or its row.

    Args:
        source: The set.
        cache: A file that keeps what was seen of each picture: it is read again only when its size or time changed.
        num_threads: That read and decode; one a core by default.

    Yields:
        One ReferenceImage each, also for those that cannot be used: `missing` (named but not there), `unreadable`
        (does not decode to its end, or no picture at all), `placeholder` (a single colour, or a side under 8 px),
        `duplicate` (the bytes of an earlier one), `unlisted` (a picture that `references.csv` does not name).

    Raises:
        InputError: No such place, nothing in it that could be a picture, or a manifest without its columns.
    """
    entries = _entries(source)
    seen: dict[str, str] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool, LookedAt(cache) as cached:
        for start in range(0, len(entries), _BLOCK):
            block = entries[start : start + _BLOCK]
            for reference in _look_at_all(block, pool, cached):
                if reference.status == "ok" and reference.sha256 is not None:
                    first = seen.setdefault(reference.sha256, reference.reference_id)
                    if first != reference.reference_id:
                        yield replace(reference, status="duplicate", reason=f"the same file as {first}")
                        continue
                yield reference


def _entries(source: Path | str) -> list[Entry]:
    folder = local_path(str(source)) if not is_url(str(source)) else None
    manifest = None if folder is None else folder / MANIFEST_NAME
    if folder is not None and manifest is not None and manifest.is_file():
        return _manifest_entries(manifest)
    entries = find_entries(str(source))
    if not entries:
        suffixes = ", ".join(sorted({".png", ".jpg", ".webp", ".tif", ".avif"} & picture_suffixes()))
        expected = f"images ({suffixes}, ...), tars or tables of them"
        raise InputError(expected, "none", where=source, cure="Put them there.")
    return unique_names(entries)


def _manifest_entries(manifest: Path) -> list[Entry]:
    folder = manifest.parent
    rows, columns = read_rows(manifest)
    lowered = [name.lower() for name in columns]
    if any(name not in lowered for name in _NEEDED):
        got = shorten(columns)
        raise InputError("the columns reference_id and path", got, where=manifest, cure="Add the columns.")
    entries = []
    for number, row in enumerate(rows):
        if isinstance(row, Rejection):
            name = f"{MANIFEST_NAME} {row.item}"
            entries.append(Entry(name, "", f"{name} ({number})", status="unreadable", reason=row.reason))
            continue
        cells = {name.lower(): str(value or "") for name, value in row.values.items()}
        entries.append(_named(folder, cells))
    if not entries:
        raise InputError("at least one reference", "none", where=manifest, cure="Name the images in it.")
    ids = Counter(entry.name for entry in entries)
    again, count = ids.most_common(1)[0]
    if count > 1:
        raise InputError("every reference_id once", f"`{again}` again", where=manifest, cure="Make the ids unique.")
    return entries + _unlisted(folder, entries)


def _named(folder: Path, cells: dict[str, str]) -> Entry:
    path = cells.get("path", "")  # a short row names no file: it is missing
    file = folder / local_path(path)
    try:
        if "\\" in path and not file.exists():  # written on Windows
            file = folder / path.replace("\\", "/")
        status, reason = link_problem(file, folder) if path else ("missing", None)
        if status == "ok" and not file.is_file():
            status, reason = "missing", "no such file"
        stamp = f"{file.stat().st_size} {file.stat().st_mtime_ns}" if status == "ok" else ""
    except (OSError, ValueError) as error:  # a name that no file can have
        status, reason, stamp = "unreadable", f"{getattr(error, 'strerror', None) or error}", ""
    if status == "missing":
        reason = "no path" if not path else reason if "link" in (reason or "") else f"no such file: {path}"
    return Entry(
        cells.get("reference_id", ""), readable_name(str(file)), path, stamp, status, reason,
        cells.get("caption") or None, cells.get("url") or None,
    )  # fmt: skip


def _unlisted(folder: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Pictures of the folder that the manifest does not name."""
    listed = {entry.address for entry in entries}
    names = {entry.name for entry in entries}
    unlisted = [entry for entry in find_entries(str(folder)) if entry.address not in listed]
    return [
        replace(entry, status="unlisted", reason=f"{MANIFEST_NAME} does not name it")
        for entry in unique_names(replace(entry, name=entry.path) for entry in unlisted)
        if entry.name not in names
    ]


def _look_at_all(block: Sequence[Entry], pool: ThreadPoolExecutor, cached: LookedAt) -> Iterator[ReferenceImage]:
    facts = [cached.get(entry) if entry.status == "ok" else None for entry in block]
    unseen = [entry for entry, fact in zip(block, facts, strict=True) if fact is None and entry.status == "ok"]
    looked = dict(zip((id(entry) for entry in unseen), pool.map(_look_at, unseen), strict=True))
    cached.keep([(entry, looked[id(entry)]) for entry in unseen])
    for entry, kept in zip(block, facts, strict=True):
        fact = kept or looked.get(id(entry)) or Looked(entry.status, reason=entry.reason)
        yield ReferenceImage(
            entry.name, entry.path, fact.status, fact.sha256, fact.width, fact.height,
            entry.caption, entry.url, fact.reason, entry.address,
        )  # fmt: skip


def _look_at(entry: Entry) -> Looked:
    try:
        content = read_bytes(entry.address)
    except BROKEN as error:
        return Looked("unreadable", reason=f"{getattr(error, 'strerror', None) or error}")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image = decode_rgb(content, where=entry.path)
    except InputError as error:
        return Looked("unreadable", sha256, reason=str(error))
    size = image.size
    if min(size) < MIN_SIDE:
        return Looked("placeholder", sha256, *size, reason=f"only {image.width}x{image.height} px")
    pixels = np.asarray(image).reshape(-1, 3)
    spread = int((pixels.max(axis=0) - pixels.min(axis=0)).max())
    if spread == 0:
        return Looked("placeholder", sha256, *size, reason="a single colour")
    if spread < _FLAT:
        return Looked("placeholder", sha256, *size, reason=f"nearly a single colour: its numbers span {spread} of 255")
    return Looked("ok", sha256, *size)
