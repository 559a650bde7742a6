"""A prefilter for very large reference sets: only references whose embedding is near are compared.

It can miss what a full comparison finds, so it is off unless asked for, no neighbor is then called complete, and its
recall is measured on generations that are compared with every reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.retrieval.descriptors import Descriptor, region_descriptors
from fbmem_core.retrieval.neighbors import Neighbor

if TYPE_CHECKING:
    from fbmem_core.retrieval.image_sets import ImageSet

Candidates = Mapping[str, Sequence[str]]  # reference ids by generation id


class Prefilter:
    """An index over the references' embeddings, by region.

    Args:
        references: The set.
        descriptor: How images become vectors.
        num_candidates: So many references are nearest by each of the three regions; a generation's candidates are all
            of those.
    """

    def __init__(self, references: ImageSet, descriptor: Descriptor, *, num_candidates: int) -> None:
        import faiss

        if num_candidates < 1:
            raise InputError("at least one candidate", num_candidates, cure="Raise `similarity.num_candidates`.")
        self.references, self.descriptor = references, descriptor
        self.num_candidates = min(num_candidates, len(references))
        self._indexes = {}
        for region, vectors in _vectors(references, descriptor).items():
            self._indexes[region] = faiss.IndexFlatIP(vectors.shape[1])
            self._indexes[region].add(vectors)

    def candidates(self, generations: ImageSet) -> dict[str, list[str]]:
        """The references that are compared with each generation, in the order of the set."""
        columns: list[set[int]] = [set() for _ in generations.ids]
        for region, vectors in _vectors(generations, self.descriptor).items():
            _, nearest = self._indexes[region].search(vectors, self.num_candidates)
            for row, nearest_columns in enumerate(nearest):
                columns[row].update(nearest_columns.tolist())
        names = self.references.ids
        return {
            generation: [names[column] for column in sorted(chosen)]
            for generation, chosen in zip(generations.ids, columns, strict=True)
        }


def _vectors(images: ImageSet, descriptor: Descriptor) -> dict[str, np.ndarray]:
    """Vectors as faiss wants them: float32, contiguous, and 0 where a matte is undecided."""
    by_region = region_descriptors(images, descriptor).items()
    return {region: np.ascontiguousarray(vectors.nan_to_num().cpu().numpy()) for region, vectors in by_region}


@dataclass(frozen=True)
class Recall:
    """Recall of a prefilter over the pairs that count.

    Attributes:
        num_generations: That were compared with every reference.
        num_pairs: Their (criterion, reference) pairs of at least the floor.
        num_kept: Those of them that were candidates.
    """

    num_generations: int
    num_pairs: int
    num_kept: int

    @property
    def value(self) -> float:
        """Share of the pairs that were kept; NaN where there were none."""
        return self.num_kept / self.num_pairs if self.num_pairs else math.nan


def measure_recall(exact: Mapping[str, Sequence[Neighbor]], candidates: Candidates, *, floor: float) -> Recall:
    """Compare what a full search found with what the prefilter would have let through.

    Args:
        exact: Neighbors of some generations among all references.
        candidates: Of at least those generations.
        floor: Pairs of at least this similarity count.
    """
    pairs = [
        (generation, neighbor.reference_id)
        for generation, neighbors in exact.items()
        for neighbor in neighbors
        if neighbor.similarity >= floor
    ]
    kept = sum(reference in set(candidates[generation]) for generation, reference in pairs)
    return Recall(len(exact), len(pairs), kept)
