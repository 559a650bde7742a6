"""Copied regions of listed pairs: the very pixels of a generation that are copied from a reference, as map and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fbmem_core.labels import PairSimilarity
from fbmem_core.retrieval.image_sets import CENTER_CROP, WHOLE, ImageSet
from fbmem_core.similarity.alignment import Transform
from fbmem_core.similarity.copied_regions import (
    BACKGROUND,
    FOREGROUND,
    IMAGE,
    OBJECT,
    REFERENCE_OBJECT,
    copied_regions,
    copy_map,
    draw,
)

MAX_PAIRS = 8  # of a generation, the most similar by any region
COLUMNS = ("region", "left", "top", "right", "bottom", "area", "share_copied", "similarity", "largest_area")


@dataclass(frozen=True)
class PairCopies:
    """Copies of one pair: `rows`, one per region, with `COLUMNS`; `picture` uint8 [h, w, 3], see `draw`."""

    pair: PairSimilarity
    rows: list[dict[str, Any]]
    picture: np.ndarray


class Copies:
    """Maps what generations copy from listed references.

    Args:
        references: The images, with all their views.
        floor: Pairs of at least this similarity by a region are told of, but no more than `MAX_PAIRS` a generation.

    Attributes:
        num_left_out: Pairs above the floor beyond that number, so far.
    """

    def __init__(self, references: ImageSet, *, floor: float) -> None:
        self._references, self._floor, self.num_left_out = references, floor, 0
        self._row_of = {(name, references.view(row)): row for row, name in enumerate(references.ids)}

    def __call__(self, generations: ImageSet, row: int, pairs: Sequence[PairSimilarity]) -> Iterator[PairCopies]:
        """The copies of one generation from each of its pairs that are similar enough, the most similar first."""
        listed = sorted((pair for pair in pairs if _highest(pair) >= self._floor), key=_highest, reverse=True)
        self.num_left_out += max(0, len(listed) - MAX_PAIRS)
        for pair in listed[:MAX_PAIRS]:
            yield self._of_pair(generations, row, pair)

    def _of_pair(self, generations: ImageSet, row: int, pair: PairSimilarity) -> PairCopies:
        view = CENTER_CROP if pair.transform.startswith(CENTER_CROP) else WHOLE
        column = self._row_of[pair.reference_id, view]
        generation = np.asarray(generations.images[row])
        reference, theirs = (np.asarray(array[column]) for array in (self._references.images, self._references.alphas))
        covered = None
        if pair.transform_matrix:
            transform = Transform.from_numbers(pair.transform_matrix)
            covered = transform.covered(generations.size)
            reference, theirs = transform.apply(reference), np.where(covered, transform.apply(theirs), 0)
        copies = copy_map(generation, reference, covered)
        is_decided = bool(generations.decided[row] and self._references.decided[column])
        mattes = (generations.alphas[row], theirs.astype(np.uint8)) if is_decided else (None, None)
        similarity_of = _similarities(pair)
        rows = [
            {**asdict(region), "similarity": similarity_of.get(region.region)}
            for region in copied_regions(copies, *mattes)
        ]
        return PairCopies(pair, rows, draw(generation, copies))


def _highest(pair: PairSimilarity) -> float:
    """The highest similarity of any region, an object among them."""
    return max(pair.full, pair.foreground or 0.0, pair.background or 0.0)


def _similarities(pair: PairSimilarity) -> dict[str, float | None]:
    """The similarity of each region by its name; those of objects stand in the order of their numbers."""
    values: dict[str, float | None] = {IMAGE: pair.full, FOREGROUND: pair.foreground, BACKGROUND: pair.background}
    for name, similarities in (
        (OBJECT, pair.object_similarities), (REFERENCE_OBJECT, pair.reference_object_similarities),
    ):  # fmt: skip
        values |= {f"{name} {number}": value for number, value in enumerate(similarities, start=1)}
    return values
