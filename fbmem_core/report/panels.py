"""The pictures of a finding, all of one size: generation, reference, their foregrounds, and where they differ."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.store.images import open_image
from fbmem_core.store.tables import Store

if TYPE_CHECKING:
    import polars as pl

SIDE = 256
THUMBNAIL = 96
_GREY = 200


class Panels:
    """Pictures of one checkpoint as `data:` URIs; `num_bytes` counts what was given out. None where a file is gone.

    Nothing is given out beyond `max_bytes`, so that the page can be sent by mail.
    """

    def __init__(self, store: Store, checkpoint: str, *, max_bytes: int = 18_000_000) -> None:
        self._store, self._max_bytes = store, max_bytes
        self.num_bytes = 0
        self.num_left_out = 0
        masks = store.read("masks", checkpoint)
        self._reference_masks = _by_id(masks, "reference")

    def generation(self, row: dict[str, Any], *, side: int = SIDE) -> str | None:
        """The image of a row of `findings`."""
        return self._uri(self._open(row["path"]), side)

    def file(self, path: str | None, *, side: int = SIDE) -> str | None:
        """A picture below the store."""
        return self._uri(self._open(path), side)

    def reference(self, path: str | None, *, side: int = SIDE) -> str | None:
        """A reference by the path of its file."""
        return self._uri(_reference(path), side)

    def foreground(self, row: dict[str, Any]) -> str | None:
        """The foreground of a row's image on grey."""
        return self._cut(self._open(row["path"]), row["mask_path"])

    def reference_foreground(self, row: dict[str, Any]) -> str | None:
        """The foreground of a row's reference on grey."""
        return self._cut(_reference(row["reference_path"]), self._reference_masks.get(row["reference_id"]))

    def background(self, row: dict[str, Any]) -> str | None:
        """The background of a row's image, its foreground in grey."""
        return self._cut(self._open(row["path"]), row["mask_path"], inverted=True)

    def reference_background(self, row: dict[str, Any]) -> str | None:
        """The background of a row's reference, its foreground in grey."""
        matte = self._reference_masks.get(row["reference_id"])
        return self._cut(_reference(row["reference_path"]), matte, inverted=True)

    def as_compared(self, row: dict[str, Any]) -> str | None:
        """A row's reference as it was moved for the comparison; None where it was not."""
        from fbmem_core.report.maps import aligned

        reference, image = _reference(row["reference_path"]), self._open(row["path"])
        if reference is None or image is None or row["transform"] in (None, "whole"):
            return None
        return self._uri(Image.fromarray(aligned(image, reference, row["transform"])[1]), SIDE)

    def difference(self, row: dict[str, Any]) -> str | None:
        """Map of the difference between image and reference: dark where they are alike, bright where they are not."""
        image, reference = self._open(row["path"]), _reference(row["reference_path"])
        if image is None or reference is None:
            return None
        from matplotlib import colormaps

        from fbmem_core.report.maps import aligned

        x, y, _ = aligned(image, reference, row["transform"])
        values = np.abs(x.astype(np.float32) - y.astype(np.float32)).mean(axis=2) / 255
        colored = colormaps["inferno"](np.clip(values * 2, 0, 1))[..., :3]
        return self._uri(Image.fromarray((colored * 255).astype(np.uint8)), SIDE)

    def copies(self, row: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
        """The copy map of a row's image, and how much of each of its regions is copied; see `map_of_copies`."""
        from fbmem_core.report.maps import map_of_copies

        image, reference = self._open(row["path"]), _reference(row["reference_path"])
        if image is None or reference is None:
            return None, []
        matte = self._open(row["mask_path"])
        picture, places = map_of_copies(image, reference, transform=row["transform"], matte=matte)
        return self._uri(picture, SIDE), places

    def _cut(self, image: Image.Image | None, mask_path: str | None, *, inverted: bool = False) -> str | None:
        matte = self._open(mask_path)
        if image is None or matte is None:
            return None
        alpha = np.asarray(matte.convert("L").resize(image.size), dtype=np.float32)[..., None] / 255
        alpha = 1 - alpha if inverted else alpha
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        return self._uri(Image.fromarray((pixels * alpha + _GREY * (1 - alpha)).astype(np.uint8)), SIDE)

    def _open(self, path: str | None) -> Image.Image | None:
        """A file below the store."""
        try:
            return None if path is None else open_image(self._store, path)
        except InputError:
            return None

    def _uri(self, image: Image.Image | None, side: int) -> str | None:
        if image is None:
            return None
        if self.num_bytes >= self._max_bytes:
            self.num_left_out += 1
            return None
        small = image.convert("RGB")
        scale = side / max(small.size)
        resample = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))), resample)
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", quality=82)
        text = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.num_bytes += len(text)
        return text


def _reference(address: str | None) -> Image.Image | None:
    """A reference, wherever it lies; None where it is gone."""
    try:
        return None if address is None else open_rgb(address)
    except InputError:
        return None


def _by_id(masks: pl.DataFrame, kind: str) -> dict[str, str | None]:
    rows = masks.filter(masks["image_kind"] == kind).select("image_id", "path")
    return dict(rows.iter_rows())
