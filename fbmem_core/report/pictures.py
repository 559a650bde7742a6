"""Small pictures for people: contact sheets, mattes laid over images, pairs side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

_GAP = 4
_CAPTION_HEIGHT = 14
_OUTSIDE = np.array([225, 0, 130], dtype=np.float32)


def contact_sheet(
    tiles: Sequence[tuple[str, Image.Image]], *, columns: int, tile: int = 72, max_bytes: int = 72_000
) -> str:
    """Captioned tiles in rows as a WebP `data:` URI of at most `max_bytes` of picture; quality falls until it fits."""
    rows = max(1, -(-len(tiles) // columns))
    step_x, step_y = tile + _GAP, tile + _GAP + _CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    brush = ImageDraw.Draw(sheet)
    for number, (caption, image) in enumerate(tiles):
        x, y = _GAP + number % columns * step_x, _GAP + number // columns * step_y
        brush.text((x, y), _fit(brush, caption, tile), fill="black")
        sheet.paste(image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS), (x, y + _CAPTION_HEIGHT))
    return data_uri(sheet, max_bytes)


def overlay(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    """Image with its background in stripes of two colors, one of which any picture shows. `alpha` is [h, w], 0 to 1."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    rows, columns = np.indices(alpha.shape)
    width = max(2, min(alpha.shape) // 24)
    stripes = np.where(((rows + columns) // width % 2 == 0)[..., None], _OUTSIDE, 255.0)
    tinted = 0.4 * pixels + 0.6 * stripes
    mixed = pixels * alpha[..., None] + tinted * (1 - alpha[..., None])
    return Image.fromarray(mixed.astype(np.uint8))


def side_by_side(left: Image.Image, right: Image.Image, *, side: int = 72) -> Image.Image:
    """Two images as one square of half-height halves' width: the left one, then the right one."""
    pair = Image.new("RGB", (2 * side, 2 * side), "white")
    for x, image in ((0, left), (side, right)):
        pair.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, side // 2))
    return pair


def pair_sheet(
    pairs: Sequence[tuple[str, Image.Image, Image.Image]], *, columns: int = 2, side: int = 256, max_bytes: int = 90_000
) -> str:
    """Generation and reference side by side under a caption, `side` px each, as a WebP `data:` URI."""
    rows = max(1, -(-len(pairs) // columns))
    step_x, step_y = 2 * side + 4 * _GAP, side + _GAP + _CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * step_x, rows * step_y + _GAP), "white")
    brush = ImageDraw.Draw(sheet)
    for number, (caption, left, right) in enumerate(pairs):
        x, y = _GAP + number % columns * step_x, _GAP + number // columns * step_y
        brush.text((x, y), _fit(brush, caption, 2 * side), fill="black")
        for offset, image in ((0, left), (side + _GAP, right)):
            shown = image.convert("RGB")
            resample = Image.Resampling.NEAREST if shown.width * 2 < side else Image.Resampling.LANCZOS
            sheet.paste(shown.resize((side, side), resample), (x + offset, y + _CAPTION_HEIGHT))
    return data_uri(sheet, max_bytes)


def _fit(brush: ImageDraw.ImageDraw, caption: str, width: int) -> str:
    """The caption without its middle where it is too long: the ends of names tell them apart."""
    kept = len(caption)
    text = caption
    while kept > 2 and brush.textlength(text) > width:
        kept -= 1
        text = f"{caption[: kept // 2]}..{caption[len(caption) - (kept - kept // 2) :]}"
    return text


def data_uri(sheet: Image.Image, max_bytes: int) -> str:
    """The picture as a WebP `data:` URI of at most `max_bytes`; quality falls, then size, until it fits."""
    content = b""
    for quality in (80, 60, 40, 25, 10):
        buffer = io.BytesIO()
        sheet.save(buffer, format="WEBP", quality=quality)
        content = buffer.getvalue()
        if len(content) <= max_bytes:
            break
    else:
        half = (max(1, sheet.width // 2), max(1, sheet.height // 2))
        return data_uri(sheet.resize(half, Image.Resampling.LANCZOS), max_bytes)
    return "data:image/webp;base64," + base64.b64encode(content).decode()
