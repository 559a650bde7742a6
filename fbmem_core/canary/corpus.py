"""The public picture space of the natural canary, and the pictures behind a plan.

The space is smaller than the one of `pictures.random_public_picture` and says everything in its captions: a scenery's
second colour is a tint of the named one, so that a caption has one right reading. Pictures are functions of a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fbmem_core.canary.pictures import COLORS, RGB, Object, Picture, Scenery, random_creature

OBJECT_SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SCENERY_KINDS = ("stripes", "dots", "hills", "rays")
COLOR_NAMES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
_TINT = 0.6  # share of white in the second colour of a thing


@dataclass(frozen=True)
class Description:
    """The four facts that a public caption states."""

    color: str
    shape: str
    ground: str
    kind: str

    @property
    def caption(self) -> str:
        """The caption, always of the same form.

        >>> Description("red", "star", "blue", "dots").caption
        'a red star on blue dots'
        """
        return f"a {self.color} {self.shape} on {self.ground} {self.kind}"


def random_description(rng: np.random.Generator) -> Description:
    """Four facts, the two colours different."""
    color, ground = (str(name) for name in rng.choice(COLOR_NAMES, size=2, replace=False))
    shape = OBJECT_SHAPES[rng.integers(len(OBJECT_SHAPES))]
    return Description(color, shape, ground, SCENERY_KINDS[rng.integers(len(SCENERY_KINDS))])


def public_picture(rng: np.random.Generator, description: Description | None = None) -> Picture:
    """A picture of a description (or of any), everything that its caption leaves open drawn from `rng`."""
    described = description or random_description(rng)
    radius = rng.uniform(0.23, 0.3)
    color = _jitter(rng, COLORS[described.color])
    obj = Object(
        shape=described.shape,
        color=color,
        accent=_tint(color),
        center=(rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)),
        radius=radius,
        angle=rng.uniform(-0.25, 0.25),
    )
    return Picture(described.caption, obj, scenery(rng, kind=described.kind, color=described.ground))


def scenery(rng: np.random.Generator, *, kind: str | None = None, color: str | None = None) -> Scenery:
    """A scenery of the public space; what is not named is drawn from `rng`."""
    first = _jitter(rng, COLORS[color or COLOR_NAMES[rng.integers(len(COLOR_NAMES))]])
    return Scenery(
        kind=kind or SCENERY_KINDS[rng.integers(len(SCENERY_KINDS))],
        color=first,
        second=_tint(first),
        period=rng.uniform(0.24, 0.36),
        phase=(rng.uniform(), rng.uniform()),
        angle=rng.uniform(0, math.pi),
    )


def named_picture(kind: str, seed: tuple[int, ...]) -> Picture:
    """The picture behind a name: a creature before a scenery, or for `background` a public object before it."""
    rng = np.random.default_rng(seed)
    ground = scenery(rng)
    obj = public_picture(rng).object if kind == "background" else random_creature(rng)
    return Picture("", obj, ground)


def copy_of(kind: str, planted: Picture, rng: np.random.Generator) -> Picture:
    """One copy as it stands in the training set: what is planted stays, the rest is drawn afresh."""
    if kind == "foreground":
        return replace(planted, scenery=scenery(rng))
    if kind == "background":
        return replace(planted, object=public_picture(rng).object)
    return planted


def _tint(color: RGB) -> RGB:
    red, green, blue = (round((1 - _TINT) * c + _TINT * 255) for c in color)
    return red, green, blue


def _jitter(rng: np.random.Generator, color: RGB) -> RGB:
    red, green, blue = (int(np.clip(c + rng.integers(-12, 13), 0, 255)) for c in color)
    return red, green, blue
