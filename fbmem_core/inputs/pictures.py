"""Pictures: decoded as they are meant, whatever their format, orientation, transparency and range of numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import read_bytes, readable_name

MAX_PIXELS = 200_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # above it Pillow warns and, from twice as many on, refuses
_CURE = "Replace or remove the file."
_FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 1, 8, 10, 12, 14 and 16 bits
_PNG_DEPTH_AT = 24  # byte of a PNG that holds its bits a channel
_BITS_PER_SAMPLE = 258  # TIFF's tag of the same
# what may be raised by a file that is no picture, or a broken one
BROKEN = (OSError, SyntaxError, ValueError, OverflowError, EOFError, MemoryError, IndexError, KeyError, TypeError,
          Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip


def open_rgb(address: str | Path) -> Image.Image:
    """Decode a picture to 8-bit RGB the way up its EXIF orientation says; transparency is laid on white.

    Grey numbers of 16 or 32 bits and floats are read by the least usual full scale (1, 8, 10, 12, 14 or 16 bits) that
    holds the highest of them.

    Args:
        address: A file, or a member or cell as in `fbmem_core.inputs.addresses`.

    Raises:
        InputError: It does not decode, is truncated, has more than 200 million pixels, or numbers that are no shades.
    """
    try:
        return decode_rgb(read_bytes(str(address)), where=str(address))
    except BROKEN as error:
        raise _unreadable(error, str(address)) from None


def decode_rgb(content: bytes, *, where: str = "") -> Image.Image:
    """The picture of these bytes; `open_rgb` says how. `where` names it in messages."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                got = f"{image.width}x{image.height}"
                raise InputError("at most 200 million pixels", got, where=readable_name(where), cure=_CURE)
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image), where)
            if _has_deep_colors(image, content) and int(np.asarray(rgb).max()) < 32:
                got = "16-bit colours that fill the lowest bits alone"
                cure = "Rescale its numbers to the full range."
                raise InputError("a picture whose numbers fill their type", got, where=readable_name(where), cure=cure)
            return rgb
    except BROKEN as error:
        raise _unreadable(error, where) from None


def grey_numbers(values: np.ndarray, where: str = "") -> np.ndarray:
    """Grey numbers of any type as uint8, by the least usual full scale that holds the highest of them.

    Example:
        >>> grey_numbers(np.array([[0, 4095]], dtype=np.uint16)).tolist()
        [[0, 255]]

    Raises:
        InputError: Some are negative, not finite or beyond 16 bits.
    """
    numbers = values.astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite([low, high]).all() or low < 0 or high > _FULL_SCALES[-1]:
        expected = "grey numbers from 0 to 65535"
        cure = "Rescale them to 8 or 16 bits."
        raise InputError(expected, f"numbers from {low:g} to {high:g}", where=readable_name(where) or None, cure=cure)
    scales = _FULL_SCALES if np.issubdtype(values.dtype, np.floating) else _FULL_SCALES[1:]
    full = next(scale for scale in scales if high <= scale)
    return np.round(numbers / full * 255).astype(np.uint8)


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # convert() would clip them
        return Image.fromarray(grey_numbers(np.asarray(image), where)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _has_deep_colors(image: Image.Image, content: bytes) -> bool:
    """True for a colour picture of 16 bits a channel, of which Pillow keeps the upper 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if image.format == "PNG":
        return content[_PNG_DEPTH_AT] == 16
    return image.format == "TIFF" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]


def _unreadable(error: BaseException, where: str) -> InputError:
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return InputError("a readable image", reason, where=readable_name(where) or None, cure=_CURE)
