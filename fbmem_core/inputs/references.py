"""Reference images: the training images that a model may have memorized."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fbmem_core.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MANIFEST_NAME = "references.csv"
# a dead link often serves a tiny or one-coloured picture instead of an error
MIN_SIDE = 8
_MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class ReferenceImage:
    """One reference. `path` is relative to the folder; `status`: ok, missing, unreadable, placeholder, duplicate."""

    reference_id: str
    path: str
    status: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    url: str | None = None
    reason: str | None = None


def read_references(folder: Path) -> Iterator[ReferenceImage]:
    """Look at every image below `folder`, in the order of their ids.

    Images are named by `references.csv` in the folder (columns reference_id, path, caption, url; paths stay inside the
    folder), or, without it, found by their suffix; the id is then the path without suffix.

    Yields:
        One ReferenceImage each, also for those that cannot be used: `missing` (named but not there), `unreadable`
        (does not decode to its end), `placeholder` (a single colour, or a side under 8 px), `duplicate` (the bytes of
        an earlier one).

    Raises:
        InputError: No such folder, no image in it, or a manifest without its columns.
    """
    entries = _entries(folder)
    seen: dict[str, str] = {}
    for reference in entries:
        looked_at = _look_at(folder, reference)
        if looked_at.status == "ok" and looked_at.sha256 is not None:
            first = seen.setdefault(looked_at.sha256, looked_at.reference_id)
            if first != looked_at.reference_id:
                looked_at = replace(looked_at, status="duplicate", reason=f"the same file as {first}")
        yield looked_at


def open_rgb(path: Path) -> Image.Image:
    """Decode an image to RGB the way up its EXIF orientation says; transparency is laid on white.

    Raises:
        InputError: The file does not decode, is truncated, or has more than 200 million pixels.
    """
    cure = "Replace or remove the file."
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError("at most 200 million pixels", f"{image.width}x{image.height}", where=path, cure=cure)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("a readable image", f"{type(error).__name__}: {error}", where=path, cure=cure) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit and float greys would be clipped by convert()
        grey = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(float(grey.max()), 1e-6)
        return Image.fromarray(np.clip(grey / top * 255, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _entries(folder: Path) -> list[ReferenceImage]:
    if not folder.is_dir():
        raise InputError("a folder of images", "no such folder", where=folder, cure="Mend the path.")
    manifest = folder / MANIFEST_NAME
    if manifest.is_file():
        return _manifest_entries(manifest)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"images ({suffixes})", "none", where=folder, cure="Put them there.")
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    count = Counter(stems)
    return [
        # two files that differ by their suffix alone keep it, so that ids stay unique
        ReferenceImage(stem if count[stem] == 1 else _relative(path, folder), _relative(path, folder), "ok")
        for stem, path in zip(stems, files, strict=True)
    ]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _manifest_entries(manifest: Path) -> list[ReferenceImage]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError("a readable manifest", f"{error}", where=manifest, cure="Save it anew as UTF-8.") from None
    if "reference_id" not in columns or "path" not in columns:
        got = ", ".join(columns) or "none"
        raise InputError("the columns reference_id and path", got, where=manifest, cure="Add the columns.")
    entries = [
        ReferenceImage(
            reference_id=row["reference_id"] or "",
            path=row["path"] or "",  # a short row names no file: it will be missing
            status="ok",
            caption=row.get("caption") or None,
            url=row.get("url") or None,
        )
        for row in rows
    ]
    if not entries:
        raise InputError("at least one reference", "none", where=manifest, cure="Name the images in it.")
    ids = [entry.reference_id for entry in entries]
    if len(set(ids)) < len(ids):
        again = Counter(ids).most_common(1)[0][0]
        raise InputError("every reference_id once", f"`{again}` again", where=manifest, cure="Make the ids unique.")
    return entries


def _look_at(folder: Path, reference: ReferenceImage) -> ReferenceImage:
    path = folder / reference.path
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return replace(reference, status="unreadable", reason="its path leads out of the folder")
        if not path.is_file():
            return replace(reference, status="missing", reason="no such file")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:  # a name that no file can have, a file that must not be read
        return replace(reference, status="unreadable", reason=f"{getattr(error, 'strerror', None) or error}")
    return _decode(path, replace(reference, sha256=sha256))


def _decode(path: Path, reference: ReferenceImage) -> ReferenceImage:
    try:
        image = open_rgb(path)
    except InputError as error:
        return replace(reference, status="unreadable", reason=str(error))
    found = replace(reference, width=image.width, height=image.height)
    if min(image.size) < MIN_SIDE:
        return replace(found, status="placeholder", reason=f"only {image.width}x{image.height} px")
    if len(image.getcolors(2) or ()) == 1:
        return replace(found, status="placeholder", reason="a single colour")
    return found
