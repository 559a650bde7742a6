"""Images in the store: PNG files named by what determines them."""

from __future__ import annotations

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fbmem_core.errors import InputError
from fbmem_core.store.tables import Store

UNUSABLE = "unusable"  # the note of an image that holds no picture: why
_MAX_PENDING = 16


def image_path(folder: str, checkpoint: str, name: str, key: str) -> str:
    """Relative path of an image in the store."""
    return f"images/{folder}/{checkpoint}/{image_name(name, key)}"


def image_name(name: str, key: str) -> str:
    """Name of a file: what is readable of a name, then the key that makes it unique."""
    readable = re.sub(r"[^a-z0-9._-]+", "_", name.lower()).strip("._")[:60] or "image"
    return f"{readable}-{key}.png"


def save_png(store: Store, relative: str, image: Image.Image, *, notes: Mapping[str, str] | None = None) -> None:
    """Write a PNG, complete or not at all; `notes` become its text chunks."""
    info = PngInfo()
    for name, text in (notes or {}).items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    store.write_bytes(relative, buffer.getvalue())


class ImageWriter:
    """Writes PNGs beside other work; when the `with` ends, all are written or the first error is raised.

    At most a few images wait, so that a slow disk slows the rest down and does not fill the memory.

    Args:
        store: Where they go.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._pending = store, deque[Future[None]]()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    def __enter__(self) -> ImageWriter:
        return self

    def save(self, relative: str, image: Image.Image, *, notes: Mapping[str, str] | None = None) -> None:
        """Have an image written; see `save_png`."""
        while len(self._pending) >= _MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(save_png, self._store, relative, image, notes=notes))

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)
        for written in self._pending:
            written.result()


def has_image(store: Store, relative: str, *, report: Callable[[str], None] = lambda message: None) -> bool:
    """True if an image is there, whole. `report` is told the name of one that is broken; saving it replaces it."""
    try:
        with Image.open(io.BytesIO((store.root / relative).read_bytes())) as image:
            image.verify()  # reads every chunk with its checksum, to the end
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError, ValueError) as error:
        report(f"{store.root / relative} is broken and is made again: {error}")
        return False
    return True


def open_image(store: Store, relative: str) -> Image.Image:
    """An image of the store, decoded; `info` holds its notes.

    Raises:
        InputError: It is not there, or broken.
    """
    path = store.root / relative
    try:
        image = Image.open(io.BytesIO(path.read_bytes()))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        cure = "Run the audit again: it is made again."
        raise InputError("a readable image", f"{type(error).__name__}: {error}", where=path, cure=cure) from None
    return image


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
