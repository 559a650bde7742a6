"""The planes that measures compare, of one image set, at every scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fbmem_core.retrieval.image_sets import ImageSet, new_array
from fbmem_core.similarity import Masking
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, check_size
from fbmem_core.similarity.objects import objects
from fbmem_core.similarity.regions import MEASURES

_NUM_SCALES = len(SCALE_WEIGHTS)
_FINEST_KEPT = 2  # finer scales are for few pairs
_BATCH_PIXELS = 2**20  # of images that are prepared at once, so that they stay in the cache
_RAM_BYTES = 2 * 2**30  # planes that are kept at most: of a set in memory
_DISK_BYTES = 32 * 2**30  # and of a set on disk
OBJECT, EVERYWHERE = "object", "everywhere"


class Planes:
    """Planes of one image set that the measures of one masking compare, at every scale (0 = finest).

    Coarse scales, which every pair needs, are computed once and kept: beside the set's arrays if these are on disk.
    `image_of_object` [U] is the row of each object of the set's mattes, `number_of_object` [U] its number there.
    """

    def __init__(self, images: ImageSet, masking: Masking, *, device: torch.device | str = "cpu") -> None:
        check_size((images.size, images.size))
        self.images = images
        self.measures = MEASURES[masking]
        self.device = torch.device(device)
        self.masking = masking
        self._batch = max(1, _BATCH_PIXELS // images.size**2)
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._numbers = self._number_objects() if OBJECT in self.measures else None
        counts = [] if self._numbers is None else [int(numbers.max(initial=0)) for numbers in self._numbers]
        self.image_of_object = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)]).long()
        self.number_of_object = torch.tensor([number + 1 for count in counts for number in range(count)]).long()
        if len(images):
            self._keep()

    def side(self, region: str) -> Callable[[int, Tensor], Tensor]:
        """Planes of a region by scale and rows: of images; of objects for `object`; of whole images `everywhere`."""
        if region == OBJECT:
            return self._object_planes
        return self._everywhere if region == EVERYWHERE else partial(self, region)

    def __call__(self, region: str, scale: int, rows: Tensor) -> Tensor:
        """The planes [m, c, h, w] of some rows."""
        kept = self._kept.get((region, scale))
        if kept is not None:
            return torch.from_numpy(kept[rows.cpu().numpy()]).to(self.device)
        parts = []
        for batch in rows.split(self._batch):
            planes = self.measures[region].planes(*self.images.tensors(batch, self.device))
            for _ in range(scale):
                planes = self.measures[region].halve(planes)
            parts.append(planes)
        return torch.cat(parts)

    def places(self, objects: Tensor) -> np.ndarray:
        """bool [m, size, size]: where some objects are."""
        if self._numbers is None:
            return np.zeros((0, self.images.size, self.images.size), bool)
        rows, numbers = self.image_of_object[objects].numpy(), self.number_of_object[objects].numpy()
        return self._numbers[rows] == numbers[:, None, None]

    def _everywhere(self, scale: int, rows: Tensor) -> Tensor:
        planes = self("background", scale, rows)
        return torch.cat([planes[:, :3], torch.ones_like(planes[:, 3:])], dim=1)

    def _object_planes(self, scale: int, objects: Tensor) -> Tensor:
        rows, of_object = self.image_of_object[objects.cpu()].unique(return_inverse=True)
        planes = self("background", scale, rows)[:, :3][of_object.to(self.device)]
        kept = self._kept.get((OBJECT, scale))
        if kept is not None:
            shown = torch.from_numpy(kept[objects.cpu().numpy()]).to(self.device)
        else:
            shown = self._shown(objects, scale)
        return torch.cat([planes, shown.to(planes.dtype)], dim=1)

    def _shown(self, objects: Tensor, scale: int) -> Tensor:
        """[m, 1, h, w]: where objects are, at a scale."""
        shown = torch.from_numpy(self.places(objects.cpu()).astype(np.float32))[:, None].to(self.device)
        for _ in range(scale):
            shown = -torch.nn.functional.max_pool2d(-shown, 2, ceil_mode=True)
        return shown

    def _number_objects(self) -> np.ndarray:
        """uint8 [n, size, size]: the objects of every matte."""
        path = None if self.images.folder is None else self.images.folder / "objects.npy"
        if path is not None and path.is_file():
            return np.load(path, mmap_mode="r")
        partial_folder = None if path is None else _partial(path.parent)
        numbers = new_array(partial_folder, "objects", self.images.alphas.shape, np.uint8)
        for row in range(len(self.images)):
            if self.images.decided[row]:
                numbers[row] = objects(np.asarray(self.images.alphas[row]))
        if partial_folder is None or path is None:
            return numbers
        numbers.flush()  # type: ignore[attr-defined]
        (partial_folder / "objects.npy").replace(path)
        partial_folder.rmdir()
        return np.load(path, mmap_mode="r")

    def _keep(self) -> None:
        """Open the planes of coarse scales where they lie, compute and keep them where they don't."""
        folder, num = self.images.folder, len(self.images)
        left = _RAM_BYTES if folder is None else _DISK_BYTES
        missing: dict[tuple[str, int], tuple[int, ...]] = {}
        for scale in reversed(range(_FINEST_KEPT, _NUM_SCALES)):
            for region in self.measures:
                if region == OBJECT:
                    left -= self._keep_objects(scale, left)
                    continue
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

    def _keep_objects(self, scale: int, left: int) -> int:
        """Keep where objects are at a coarse scale, if that takes at most `left` bytes; return how many it takes."""
        side = self.images.size
        for _ in range(scale):
            side = -(-side // 2)
        num = len(self.image_of_object)
        if num == 0 or num * side**2 > left:
            return 0
        batches = torch.arange(num).split(max(1, self._batch))
        shown = [self._shown(batch, scale).to(torch.uint8).cpu().numpy() for batch in batches]
        self._kept[OBJECT, scale] = np.concatenate(shown)
        return num * side**2

    def _fill(self, missing: dict[tuple[str, int], tuple[int, ...]]) -> None:
        folder = None if self.images.folder is None or not missing else _partial(self.images.folder)
        arrays = {key: new_array(folder, "-".join(map(str, key)), s, np.float32) for key, s in missing.items()}
        for rows in torch.arange(len(self.images)).split(self._batch) if arrays else ():
            tensors = self.images.tensors(rows, self.device)
            for region, measure in self.measures.items():
                if region == OBJECT:
                    continue
                planes = measure.planes(*tensors)
                for scale in range(1, _NUM_SCALES):
                    planes = measure.halve(planes)
                    if (region, scale) in arrays:
                        arrays[region, scale][rows[0] : rows[-1] + 1] = planes.cpu().numpy()
        for (region, scale), array in arrays.items():
            path = self._path(region, scale)
            if folder is None or path is None:
                self._kept[region, scale] = array
                continue
            array.flush()  # type: ignore[attr-defined]
            (folder / f"{region}-{scale}.npy").replace(path)
            self._kept[region, scale] = np.load(path, mmap_mode="r")
        if folder is not None:
            folder.rmdir()

    def _path(self, region: str, scale: int) -> Path | None:
        folder = self.images.folder
        return None if folder is None else folder / f"{self.masking}-{region}-{scale}.npy"


def _partial(folder: Path) -> Path:
    partial_folder = folder / ".partial"
    partial_folder.mkdir(exist_ok=True)
    return partial_folder
