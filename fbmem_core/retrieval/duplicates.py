"""Near-duplicates among references: pictures that the measure itself takes for whole copies of each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fbmem_core.inputs.segmentation import foreground_fraction as share_of_foreground
from fbmem_core.labels import PairSimilarity, label_generation
from fbmem_core.retrieval.image_sets import WHOLE, ImageSet
from fbmem_core.retrieval.neighbors import pair_similarities
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.settings import SimilarityConfig


def is_near_duplicate(
    pairs: Iterable[PairSimilarity], *, foreground_fraction: float | None, settings: SimilarityConfig
) -> bool:
    """True if a picture, by its pairs with one reference, is a whole copy of it: VM by the audit's first rule."""
    label = label_generation(
        pairs, foreground_fraction=foreground_fraction, rule=settings.rule[0], tau=settings.tau, beta=settings.beta
    )
    return label.label == "VM"


def whole_views(images: ImageSet) -> ImageSet:
    """The rows of a set that are whole pictures, one for each."""
    return images.select([row for row in range(len(images)) if images.view(row) == WHOLE])


def near_duplicates(
    references: Planes, settings: SimilarityConfig, together: Iterable[Sequence[str]]
) -> dict[str, str]:
    """Groups of references that are whole copies of each other, directly or through others.

    Args:
        references: Among which they are looked for.
        settings: By which a pair is labelled.
        together: Sets of reference ids; only references of one set are compared.

    Returns:
        By reference id, of all ids in the sets, the first id of its group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sets = [sorted(set(names)) for names in together]
    pairs = {(first, second) for names in sets for first in names for second in names if first != second}
    ids = sorted({name for names in sets for name in names})
    if not pairs:
        return {name: name for name in ids}
    images = whole_views(references.images)
    of_pairs = {name for pair in pairs for name in pair}
    chosen = images.select([row for row, name in enumerate(images.ids) if name in of_pairs])
    edges: list[tuple[int, int]] = []
    row_of = {name: row for row, name in enumerate(ids)}
    compared = pair_similarities(chosen, references, sorted(pairs), masking=references.masking)
    for row, (name, similarities) in enumerate(compared):
        fraction = foreground_fraction(chosen, row)
        for pair in similarities:
            if is_near_duplicate([pair], foreground_fraction=fraction, settings=settings):
                edges.append((row_of[name], row_of[pair.reference_id]))
    ends = tuple(zip(*edges, strict=True)) if edges else ((), ())
    graph = coo_array((np.ones(len(edges)), ends), shape=(len(ids), len(ids)))
    _, group = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    return {name: first.setdefault(int(group[row]), name) for row, name in enumerate(ids)}


def foreground_fraction(images: ImageSet, row: int) -> float | None:
    """The share of an image that is foreground, 0 to 1; None: its matte is undecided."""
    return share_of_foreground(images.alphas[row]) if images.decided[row] else None
