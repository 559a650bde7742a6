"""Images at one size with their mattes, in memory or on disk, and their planes at every scale."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.similarity import Masking
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, check_size
from fbmem_core.similarity.regions import MEASURES

_NUM_SCALES = len(SCALE_WEIGHTS)
_FINEST_KEPT = 2  # finer scales are for few pairs
_BATCH_PIXELS = 2**20  # of images that are prepared at once, so that they stay in the cache
_RAM_BYTES = 2 * 2**30  # planes that are kept at most: of a set in memory
_DISK_BYTES = 32 * 2**30  # and of a set on disk


@dataclass(frozen=True)
class ImageSet:
    """Images at one size with their mattes, kept as bytes; arrays may be memory-mapped.

    `images` is uint8 [n, size, size, 3]; `alphas` uint8 [n, size, size], 255 = foreground; `decided` bool [n], False
    where the segmenter could not decide. `folder` is where the arrays lie, None for a set in memory.
    """

    ids: tuple[str, ...]
    images: np.ndarray
    alphas: np.ndarray
    decided: np.ndarray
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """The side of the images, px."""
        return int(self.images.shape[1])

    def select(self, rows: Sequence[int]) -> ImageSet:
        """The images of these rows, in this order, in memory."""
        chosen = list(rows)
        return ImageSet(
            tuple(self.ids[row] for row in chosen), self.images[chosen], self.alphas[chosen], self.decided[chosen]
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
    folder: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> ImageSet:
    """Read (id, image, matte) triples and resize them to `size`, images with Lanczos, mattes linearly.

    Args:
        items: A matte is an 8-bit grey PNG, white for the foreground; None is an undecided one.
        size: Side of the square images, px.
        folder: Where the arrays are kept, memory-mapped; they are read and not made again if they are there. The name
            must change with the images. None: in memory.
        report: Called with the number of images read so far.

    Raises:
        InputError: An image or a matte does not decode, or a matte has another size than its image.
    """
    ids = tuple(name for name, _, _ in items)
    folder = folder if items else None
    if folder is not None and folder.is_dir():
        return _open(ids, folder)
    partial = None if folder is None else folder.with_name(f".{folder.name}.partial")
    if partial is not None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    images = _new_array(partial, "images", (len(items), size, size, 3), np.uint8)
    alphas = _new_array(partial, "alphas", (len(items), size, size), np.uint8)
    decided = _new_array(partial, "decided", (len(items),), np.bool_)
    for row, (_, image_path, matte_path) in enumerate(items):
        image = open_rgb(image_path)
        images[row] = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
        decided[row] = matte_path is not None
        alphas[row] = 0 if matte_path is None else _matte(matte_path, image, size)
        report(row + 1)
    if folder is None or partial is None:
        return ImageSet(ids, images, alphas, decided)
    for array in (images, alphas, decided):
        array.flush()  # type: ignore[attr-defined]
    partial.replace(folder)
    return _open(ids, folder)


class Planes:
    """Image pyramid of one image set under one masking, at every scale (0 = finest).

    Coarse scales, which every pair needs, are computed once and kept: beside the set's arrays if these are on disk.
    """

    def __init__(self, images: ImageSet, masking: Masking, *, device: torch.device | str = "cpu") -> None:
        check_size((images.size, images.size))
        self.images = images
        self.measures = MEASURES[masking]
        self.device = torch.device(device)
        self.masking = masking
        self._batch = max(1, _BATCH_PIXELS // images.size**2)
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        if len(images):
            self._keep()

    def __call__(self, region: str, scale: int, rows: Tensor) -> Tensor:
        """The planes [m, c, h, w] of some rows."""
        kept = self._kept.get((region, scale))
        if kept is not None:
            return torch.from_numpy(kept[rows.cpu().numpy()]).to(self.device)
        parts = []
        for some in rows.split(self._batch):
            planes = self.measures[region].planes(*self.images.tensors(some, self.device))
            for _ in range(scale):
                planes = self.measures[region].halve(planes)
            parts.append(planes)
        return torch.cat(parts)

    def _keep(self) -> None:
        """Open the planes of coarse scales where they lie, compute and keep them where they don't."""
        folder, num = self.images.folder, len(self.images)
        left = _RAM_BYTES if folder is None else _DISK_BYTES
        missing: dict[tuple[str, int], tuple[int, ...]] = {}
        for scale in reversed(range(_FINEST_KEPT, _NUM_SCALES)):
            for region in self.measures:
                shape = self(region, scale, torch.zeros(1, dtype=torch.long)).shape[1:]
                left -= 4 * num * shape.numel()
                if left < 0:
                    break
                path = self._path(region, scale)
                if path is not None and path.is_file():
                    self._kept[region, scale] = np.load(path, mmap_mode="r")
                else:
                    missing[region, scale] = (num, *shape)
        self._fill(missing)

    def _fill(self, missing: dict[tuple[str, int], tuple[int, ...]]) -> None:
        partial = None if self.images.folder is None else self.images.folder / ".partial"
        if partial is not None and missing:
            partial.mkdir(exist_ok=True)
        arrays = {key: _new_array(partial, "-".join(map(str, key)), s, np.float32) for key, s in missing.items()}
        for rows in torch.arange(len(self.images)).split(self._batch) if arrays else ():
            tensors = self.images.tensors(rows, self.device)
            for region, measure in self.measures.items():
                planes = measure.planes(*tensors)
                for scale in range(1, _NUM_SCALES):
                    planes = measure.halve(planes)
                    if (region, scale) in arrays:
                        arrays[region, scale][rows[0] : rows[-1] + 1] = planes.cpu().numpy()
        for (region, scale), array in arrays.items():
            path = self._path(region, scale)
            if partial is None or path is None:
                self._kept[region, scale] = array
                continue
            array.flush()  # type: ignore[attr-defined]
            (partial / f"{region}-{scale}.npy").replace(path)
            self._kept[region, scale] = np.load(path, mmap_mode="r")
        if partial is not None and missing:
            partial.rmdir()

    def _path(self, region: str, scale: int) -> Path | None:
        folder = self.images.folder
        return None if folder is None else folder / f"{self.masking}-{region}-{scale}.npy"


def _open(ids: tuple[str, ...], folder: Path) -> ImageSet:
    images, alphas, decided = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "alphas", "decided")
    )
    if len(images) != len(ids):
        raise InputError(f"{len(ids)} images", len(images), where=folder, cure="Remove the folder.")
    return ImageSet(ids, images, alphas, decided, folder)


def _new_array(folder: Path | None, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    if folder is None:
        return np.zeros(shape, dtype=dtype)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def _matte(path: Path, image: Image.Image, size: int) -> np.ndarray:
    cure = "Make it as large as its image."
    try:
        with path.open("rb") as stream, Image.open(stream) as opened:
            matte = opened.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("a readable mask", f"{type(error).__name__}: {error}", where=path, cure=cure) from None
    if matte.size != image.size:
        got = f"{matte.width}x{matte.height}"
        raise InputError(f"a mask of {image.width}x{image.height} px, as its image", got, where=path, cure=cure)
    return np.asarray(matte.resize((size, size), Image.Resampling.BILINEAR))
