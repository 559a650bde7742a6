"""Images at one size with their mattes, in memory or on disk."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import read_bytes
from fbmem_core.inputs.pictures import BROKEN, open_rgb

WHOLE, CENTER_CROP = "whole", "center crop"
_SQUARE = 1.02  # up to this ratio of its sides an image counts as square
_MAX_COLOR = 16  # by which the channels of a grey mask may differ
_MASK_CURE = "Save it as an 8-bit grey PNG, or as a cut-out with an alpha channel."


@dataclass(frozen=True)
class ImageSet:
    """Images at one size with their mattes, kept as bytes; arrays may be memory-mapped.

    `images` is uint8 [n, size, size, 3]; `alphas` uint8 [n, size, size], 255 = foreground; `decided` bool [n], False
    where the segmenter could not decide. `folder` is where the arrays lie, None for a set in memory. An image may have
    several rows of one id, its views: `whole`, stretched to a square, and `center crop`.
    """

    ids: tuple[str, ...]
    images: np.ndarray
    alphas: np.ndarray
    decided: np.ndarray
    folder: Path | None = None
    views: tuple[str, ...] = ()  # none: all are whole

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """The side of the images, px."""
        return int(self.images.shape[1])

    @property
    def foreground_fractions(self) -> list[float | None]:
        """Share of each image that its matte covers by at least half; None where it is undecided."""
        return [
            float((alpha >= 128).mean()) if decided else None
            for alpha, decided in zip(self.alphas, self.decided, strict=True)
        ]

    def view(self, row: int) -> str:
        """View of its image that a row is."""
        return self.views[row] if self.views else WHOLE

    def select(self, rows: Sequence[int]) -> ImageSet:
        """The images of these rows, in this order, in memory."""
        chosen = list(rows)
        return ImageSet(
            tuple(self.ids[row] for row in chosen),
            self.images[chosen],
            self.alphas[chosen],
            self.decided[chosen],
            views=tuple(self.view(row) for row in chosen),
        )

    def tensors(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images [m, 3, size, size] and mattes [m, 1, size, size], both in [0, 1], of some rows."""
        chosen = rows.cpu().numpy()
        images = torch.from_numpy(self.images[chosen]).to(device).permute(0, 3, 1, 2).float() / 255
        alphas = torch.from_numpy(self.alphas[chosen]).to(device)[:, None].float() / 255
        return images.contiguous(), alphas


def load_image_set(
    items: Sequence[tuple[str, Path | str, Path | None]],
    *,
    size: int,
    crops: bool = False,
    folder: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> ImageSet:
    """Read (id, image, matte) triples and resize them to `size`, images with Lanczos, mattes linearly.

    Args:
        items: A matte is an 8-bit grey PNG, white for the foreground; None is an undecided one.
        size: Side of the square images, px.
        crops: Give an image that is not square a second row, the square in its middle, on which models are trained.
        folder: Where the arrays are kept, memory-mapped; they are read and not made again if they are there. The name
            must change with the images. None: in memory.
        report: Called with the number of images read so far.

    Raises:
        InputError: An image or a matte does not decode, or a matte has another size than its image.
    """
    folder = folder if items else None
    if folder is not None and folder.is_dir():
        return _open([name for name, _, _ in items], folder)
    views = [_views(path) if crops else (WHOLE,) for _, path, _ in items]
    ids = tuple(name for (name, _, _), of_image in zip(items, views, strict=True) for _ in of_image)
    partial = None if folder is None else folder.with_name(f".{folder.name}.partial")
    if partial is not None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    images = new_array(partial, "images", (len(ids), size, size, 3), np.uint8)
    alphas = new_array(partial, "alphas", (len(ids), size, size), np.uint8)
    decided = new_array(partial, "decided", (len(ids),), np.bool_)
    row = 0
    for number, ((_, image_path, matte_path), of_image) in enumerate(zip(items, views, strict=True), start=1):
        image = open_rgb(image_path)
        matte = None if matte_path is None else open_matte(matte_path, image)
        for view in of_image:
            box = _box(image, view)
            images[row] = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box))
            decided[row] = matte is not None
            alphas[row] = 0 if matte is None else np.asarray(matte.resize((size, size), Image.Resampling.BILINEAR, box))
            row += 1
        report(number)
    flat = tuple(view for of_image in views for view in of_image)
    if folder is None or partial is None:
        return ImageSet(ids, images, alphas, decided, views=flat)
    for array in (images, alphas, decided):
        array.flush()  # type: ignore[attr-defined]
    (partial / "views.json").write_text(json.dumps(views))
    partial.replace(folder)
    return _open([name for name, _, _ in items], folder)


def _views(address: Path | str) -> tuple[str, ...]:
    """The views of an image: only if it is not square has it a centre crop."""
    try:
        with Image.open(address if isinstance(address, Path) else io.BytesIO(read_bytes(address))) as image:
            width, height = image.size
    except (InputError, *BROKEN):
        return (WHOLE,)  # it is read, and refused, later
    return (WHOLE, CENTER_CROP) if max(width, height) > _SQUARE * min(width, height) else (WHOLE,)


def _box(image: Image.Image, view: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a view, px."""
    if view == WHOLE:
        return 0, 0, image.width, image.height
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return left, top, left + side, top + side


def _open(names: Sequence[str], folder: Path) -> ImageSet:
    images, alphas, decided = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "alphas", "decided")
    )
    views = json.loads((folder / "views.json").read_text())
    if len(views) != len(names):
        raise InputError(f"{len(names)} images", len(views), where=folder, cure="Remove the folder.")
    ids = tuple(name for name, of_image in zip(names, views, strict=True) for _ in of_image)
    return ImageSet(ids, images, alphas, decided, folder, tuple(view for of_image in views for view in of_image))


def new_array(folder: Path | None, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An array of zeros, memory-mapped if there is a folder."""
    if folder is None:
        return np.zeros(shape, dtype=dtype)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def open_matte(path: Path, image: Image.Image) -> Image.Image:
    """The matte of an image as an 8-bit grey picture, 255 = foreground.

    A cut-out, as rembg writes it, has its matte in its alpha channel; a mask of the numbers 0 and 1 is stretched.

    Raises:
        InputError: The file does not decode, has another size than the image, or is a colour picture.
    """
    try:
        with path.open("rb") as stream, Image.open(stream) as opened:
            opened.load()
            matte = _matte_of(opened, path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("a readable mask", f"{type(error).__name__}: {error}", where=path, cure=_MASK_CURE) from None
    if matte.size != image.size:
        got = f"{matte.width}x{matte.height}"
        cure = "Make it as large as its image."
        raise InputError(f"a mask of {image.width}x{image.height} px, as its image", got, where=path, cure=cure)
    return matte


def _matte_of(image: Image.Image, path: Path) -> Image.Image:
    if image.has_transparency_data:
        return image.convert("RGBA").getchannel("A")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        return _stretched((values / top * 255).round().astype(np.uint8))
    if image.mode not in ("1", "L"):
        red, green, blue = (np.asarray(band, dtype=np.int16) for band in image.convert("RGB").split())
        if max(np.abs(red - green).max(), np.abs(red - blue).max()) > _MAX_COLOR:
            raise InputError("a grey mask, white for the foreground", "a colour picture", where=path, cure=_MASK_CURE)
    return _stretched(np.asarray(image.convert("L")))


def _stretched(values: np.ndarray) -> Image.Image:
    """0 and 1, as numpy and labelling tools write masks, mean black and white."""
    return Image.fromarray(values * np.uint8(255) if values.max(initial=0) == 1 else values)
