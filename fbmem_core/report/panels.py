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

    def reference(self, path: str | None, *, side: int = SIDE) -> str | None:
        """A reference by the path of its file."""
        return self._uri(_reference(path), side)

    def foreground(self, row: dict[str, Any]) -> str | None:
        """The foreground of a row's image on grey."""
        return self._cut(self._open(row["path"]), row["mask_path"])

    def reference_foreground(self, row: dict[str, Any]) -> str | None:
        """The foreground of a row's reference on grey."""
        return self._cut(_reference(row["reference_path"]), self._reference_masks.get(row["reference_id"]))

    def difference(self, row: dict[str, Any]) -> str | None:
        """Map of the difference between image and reference: dark where they are alike, bright where they are not."""
        images = [self._open(row["path"]), _reference(row["reference_path"])]
        if images[0] is None or images[1] is None:
            return None
        generated, reference = (
            np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
            for image in images
            if image is not None
        )
        from matplotlib import colormaps

        values = np.abs(generated - reference).mean(axis=2) / 255
        colored = colormaps["inferno"](np.clip(values * 2, 0, 1))[..., :3]
        return self._uri(Image.fromarray((colored * 255).astype(np.uint8)), SIDE)

    def _cut(self, image: Image.Image | None, mask_path: str | None) -> str | None:
        matte = self._open(mask_path)
        if image is None or matte is None:
            return None
        alpha = np.asarray(matte.convert("L").resize(image.size), dtype=np.float32)[..., None] / 255
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
