"""Pictures that the project draws itself: one outlined object before one patterned scenery.

Everything is a pure function of its arguments, so a picture is named by its numbers and never has to be stored.
Objects always carry a dark outline and sceneries never do: that is what a salient-object network can learn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIZE = 64
_SUPERSAMPLING = 4
_OUTLINE = (28, 22, 34)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (244, 214, 70),
    "green": (64, 160, 80),
    "teal": (50, 170, 175),
    "blue": (56, 96, 200),
    "purple": (136, 76, 176),
    "pink": (240, 140, 180),
    "white": (240, 240, 236),
    "brown": (140, 96, 62),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "flower")
SCENERIES = ("stripes", "checks", "waves", "rings", "rays", "hills", "dots", "zigzags")

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Object:
    """A filled, outlined shape. `shape` is one of SHAPES or `creature`, which `seed` makes unique.

    `center` and `radius` are fractions of the picture's side, `angle` is in radians.
    """

    shape: str
    color: RGB
    accent: RGB
    center: tuple[float, float]
    radius: float
    angle: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Scenery:
    """A pattern of two colours. `period` is a fraction of the side, `phase` is in [0, 1), `angle` in radians."""

    kind: str
    color: RGB
    second: RGB
    period: float
    phase: tuple[float, float]
    angle: float


@dataclass(frozen=True)
class Picture:
    """An object before a scenery; `caption` says what is in it."""

    caption: str
    object: Object
    scenery: Scenery


def draw(picture: Picture, *, size: int = PICTURE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture.

    Returns:
        The image, uint8 RGB [size, size, 3], and the object's exact coverage, float32 alpha [size, size] in [0, 1].
    """
    scenery = draw_scenery(picture.scenery, size=size)
    color, alpha = draw_object(picture.object, size=size)
    image = scenery * (1 - alpha[..., None]) + color * alpha[..., None]
    return np.round(image).astype(np.uint8), alpha


def draw_scenery(scenery: Scenery, *, size: int = PICTURE_SIZE) -> np.ndarray:
    """The scenery alone, float32 RGB [size, size, 3] in [0, 255]."""
    blend = _pattern(scenery, 2 * size).reshape(size, 2, size, 2).mean(axis=(1, 3))[..., None]
    first, second = (np.array(c, dtype=np.float32) for c in (scenery.color, scenery.second))
    return (first * blend + second * (1 - blend)).astype(np.float32)


def draw_object(obj: Object, *, size: int = PICTURE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The object alone: float32 RGB [size, size, 3] in [0, 255] and its coverage, float32 [size, size] in [0, 1]."""
    side = size * _SUPERSAMPLING
    canvas = Image.new("RGBA", (side, side), (*_OUTLINE, 0))
    brush = ImageDraw.Draw(canvas)
    outline = round(0.032 * side)
    if obj.shape == "creature":
        _draw_creature(brush, obj, side, outline)
    else:
        points = _place(_unit_outline(obj.shape), obj, side)
        _fill(brush, points, obj.color, outline)
        inner = _place(_unit_outline(obj.shape), replace(obj, radius=0.4 * obj.radius), side)
        brush.polygon(inner, fill=(*obj.accent, 255))
    # averaged premultiplied, so that transparent pixels do not darken the border
    pixels = np.asarray(canvas.convert("RGBa").reduce(_SUPERSAMPLING), dtype=np.float32)
    alpha = pixels[..., 3] / 255
    return pixels[..., :3] / np.maximum(alpha, 1e-6)[..., None], alpha


def random_public_picture(rng: np.random.Generator) -> Picture:
    """A picture of the public space with the caption that describes it; place, size, angle and phase are free."""
    color, accent, ground, second = _distinct_colors(rng, 4)
    shape = SHAPES[rng.integers(len(SHAPES))]
    return picture_of(rng, color=color, shape=shape, ground=ground, accent=accent, second=second)


def picture_of(
    rng: np.random.Generator, *, color: str, shape: str, ground: str, accent: str, second: str, kind: str | None = None
) -> Picture:
    """A public picture of the named things, everything that its caption leaves open drawn from `rng`."""
    kind = kind or SCENERIES[rng.integers(len(SCENERIES))]
    radius = rng.uniform(0.19, 0.27)
    obj = Object(
        shape=shape,
        color=_jitter(rng, COLORS[color]),
        accent=_jitter(rng, COLORS[accent]),
        center=(rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)),
        radius=radius,
        angle=rng.uniform(-0.4, 0.4),
    )
    scenery = random_scenery(rng, kind=kind, color=ground, second=second)
    return Picture(f"a {color} {shape} on {ground} {kind}", obj, scenery)


def random_scenery(
    rng: np.random.Generator, *, kind: str | None = None, color: str | None = None, second: str | None = None
) -> Scenery:
    """A scenery of the public space; what is not named is drawn from `rng`."""
    names = _distinct_colors(rng, 2)
    return Scenery(
        kind=kind or SCENERIES[rng.integers(len(SCENERIES))],
        color=_jitter(rng, COLORS[color or names[0]]),
        second=_jitter(rng, COLORS[second or names[1]]),
        period=rng.uniform(0.24, 0.36),
        phase=(rng.uniform(), rng.uniform()),
        angle=rng.uniform(0, math.pi),
    )


def random_object(rng: np.random.Generator) -> Object:
    """An object of the public space."""
    return random_public_picture(rng).object


def random_creature(rng: np.random.Generator, *, center: tuple[float, float] | None = None) -> Object:
    """An object outside the public space: a many-coloured creature whose outline its own seed decides."""
    color, accent = _distinct_colors(rng, 2)
    radius = rng.uniform(0.27, 0.31)
    return Object(
        shape="creature",
        color=_jitter(rng, COLORS[color]),
        accent=_jitter(rng, COLORS[accent]),
        center=center or (rng.uniform(0.4, 0.6), rng.uniform(0.42, 0.58)),
        radius=radius,
        seed=int(rng.integers(2**31)),
    )


def _distinct_colors(rng: np.random.Generator, count: int) -> list[str]:
    return [str(name) for name in rng.choice(list(COLORS), size=count, replace=False)]


def _jitter(rng: np.random.Generator, color: RGB) -> RGB:
    red, green, blue = (int(np.clip(c + rng.integers(-12, 13), 0, 255)) for c in color)
    return red, green, blue


def _fill(brush: ImageDraw.ImageDraw, points: list[tuple[float, float]], color: RGB, outline: int) -> None:
    brush.polygon(points, fill=(*color, 255))
    brush.line([*points, points[0], points[1]], fill=(*_OUTLINE, 255), width=outline, joint="curve")


def _place(unit: np.ndarray, obj: Object, side: int) -> list[tuple[float, float]]:
    cos, sin = math.cos(obj.angle), math.sin(obj.angle)
    turned = unit @ np.array([[cos, sin], [-sin, cos]]) * obj.radius + np.array(obj.center)
    return [(float(x), float(y)) for x, y in turned * side]


@cache
def _unit_outline(shape: str) -> np.ndarray:
    """Corner points [n, 2] of a shape of radius 1 about the origin, y downwards."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False) - np.pi / 2
    radii = {
        "circle": np.ones_like(turn),
        "flower": 0.78 + 0.22 * np.cos(5 * (turn + np.pi / 2)),
    }
    if shape in radii:
        return np.stack([np.cos(turn), np.sin(turn)], axis=1) * radii[shape][:, None]
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x, -y], axis=1) / 17
    if shape == "star":
        corner = np.arange(10) * np.pi / 5 - np.pi / 2
        return np.stack([np.cos(corner), np.sin(corner)], axis=1) * np.tile([1.08, 0.5], 5)[:, None]
    corners = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1.05), (1.0, 0.8), (-1.0, 0.8)],
        "diamond": [(0, -1.15), (0.8, 0), (0, 1.15), (-0.8, 0)],
        "cross": [
            (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36),
            (0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
        ],
    }  # fmt: skip
    return np.array(corners[shape])


def _draw_creature(brush: ImageDraw.ImageDraw, obj: Object, side: int, outline: int) -> None:
    """Horns, a lobed body, a belly and eyes, all from the object's own seed."""
    rng = np.random.default_rng(obj.seed)
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    body = np.ones_like(turn)
    for lobes in (2, 3, 5):
        body += rng.uniform(0.04, 0.13) * np.cos(lobes * turn + rng.uniform(0, 2 * np.pi))
    body = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (0.82 * body / body.mean())[:, None]
    for at in rng.uniform(-0.9, 0.9, size=2) + np.array([-2.2, -0.9]):
        tip = 1.35 * np.array([np.cos(at), np.sin(at)])
        foot = 0.7 * np.stack([[np.cos(at + d), np.sin(at + d)] for d in (-0.4, 0.4)])
        _fill(brush, _place(np.vstack([foot[:1], tip[None], foot[1:]]), obj, side), obj.accent, outline)
    _fill(brush, _place(body, obj, side), obj.color, outline)
    belly = np.array([rng.uniform(-0.2, 0.2), 0.35]) + body * rng.uniform(0.34, 0.46)
    brush.polygon(_place(belly, obj, side), fill=(*obj.accent, 255))
    circle = _unit_outline("circle")
    height, gap = rng.uniform(-0.4, -0.2), rng.uniform(0.26, 0.4)
    for x in (-gap, gap):
        brush.polygon(_place(circle * 0.2 + np.array([x, height]), obj, side), fill=(245, 245, 245, 255))
        brush.polygon(_place(circle * 0.1 + np.array([x, height]), obj, side), fill=(*_OUTLINE, 255))


def _pattern(scenery: Scenery, size: int) -> np.ndarray:
    """Share of the first colour at each point, float [size, size] in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    px, py = scenery.phase
    cos, sin = math.cos(scenery.angle), math.sin(scenery.angle)
    u, v = x * cos + y * sin, y * cos - x * sin
    turn = 2 * np.pi / scenery.period
    if scenery.kind == "stripes":
        wave = np.sin(turn * u + 2 * np.pi * px)
    elif scenery.kind == "checks":
        wave = 2 * np.sin(0.8 * turn * u + 2 * np.pi * px) * np.sin(0.8 * turn * v + 2 * np.pi * py)
    elif scenery.kind == "waves":
        wave = np.sin(turn * (y + 0.07 * np.sin(2 * np.pi * (1.5 * x + py))) + 2 * np.pi * px)
    elif scenery.kind == "zigzags":
        wave = np.sin(turn * (x + 0.3 * np.abs((2.2 * y + py) % 1 - 0.5)) + 2 * np.pi * px)
    elif scenery.kind == "rings":
        wave = np.sin(turn * np.hypot(x - px, y - py) + scenery.angle)
    elif scenery.kind == "rays":
        wave = np.sin(round(2.4 / scenery.period) * np.arctan2(y - py, x - px) + 2 * scenery.angle)
    elif scenery.kind == "dots":
        wave = np.cos(turn * u + 2 * np.pi * px) + np.cos(turn * v + 2 * np.pi * py) - 0.5
    else:
        ridge = 0.55 + 0.16 * np.sin(2 * np.pi * (1.1 * x + px)) + 0.1 * np.sin(2 * np.pi * (2.3 * x + py))
        far = ridge - 0.25 + 0.08 * np.sin(2 * np.pi * (1.7 * x + scenery.angle))
        wave = np.where(y > ridge, 1.0, np.where(y > far, 0.0, -0.6 - 1.2 * y))
        return np.clip(0.5 + 0.5 * wave, 0, 1)
    return np.clip(0.5 + 1.2 * wave, 0, 1)
