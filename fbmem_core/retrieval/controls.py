"""Controls: pictures that copy nothing, searched against the references as a generation is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fbmem_core.labels import PairSimilarity
from fbmem_core.retrieval.duplicates import foreground_fraction, is_near_duplicate, whole_views
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.search import search
from fbmem_core.retrieval.settings import SimilarityConfig

_BLOCK = 64  # that are compared together


@dataclass(frozen=True)
class Control:
    """One control: its listed pairs by reference, and which of these are near-duplicates of it and do not count."""

    control_id: str
    foreground_fraction: float | None
    pairs: dict[str, list[PairSimilarity]]
    near_duplicates: frozenset[str] = frozenset()


def picture_controls(
    images: ImageSet, references: Planes, settings: SimilarityConfig, *, moved: MovedCopies | None = None
) -> Iterator[Control]:
    """Pictures from elsewhere, each searched against all references, in the order of the set."""
    for first in range(0, len(images), _BLOCK):
        block = images.select(range(first, min(first + _BLOCK, len(images))))
        for row, (name, _, pairs) in enumerate(search(block, references, settings, moved=moved)):
            yield Control(name, foreground_fraction(block, row), _by_reference(pairs))


def reference_controls(
    references: Planes, settings: SimilarityConfig, *, num_controls: int, moved: MovedCopies | None = None
) -> Iterator[Control]:
    """References, evenly spread over the set, each searched against all others.

    A reference that is a whole copy of the control is a near-duplicate of it: its pair is no control's.
    """
    images = whole_views(references.images)
    num = min(num_controls, len(images))
    rows = [at * len(images) // num for at in range(num)]
    for first in range(0, num, _BLOCK):
        block = images.select(rows[first : first + _BLOCK])
        rest = {name: [another for another in images.ids if another != name] for name in block.ids}
        for row, (name, _, pairs) in enumerate(search(block, references, settings, moved=moved, candidates=rest)):
            fraction = foreground_fraction(block, row)
            of_reference = _by_reference([pair for pair in pairs if pair.reference_id != name])
            copies = frozenset(
                reference_id
                for reference_id, views in of_reference.items()
                if is_near_duplicate(views, foreground_fraction=fraction, settings=settings)
            )
            yield Control(name, fraction, of_reference, copies)


def _by_reference(pairs: Sequence[PairSimilarity]) -> dict[str, list[PairSimilarity]]:
    of_reference: dict[str, list[PairSimilarity]] = {}
    for pair in pairs:
        of_reference.setdefault(pair.reference_id, []).append(pair)
    return of_reference
