"""Search for what a generation copies: in place among all references, exactly; moved, among those that look alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fbmem_core.labels import PairSimilarity, copied_regions
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.neighbors import Neighbor, nearest_pairs
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.similarity import REGIONS, SEARCHED, Alignment


def search(
    generations: ImageSet,
    references: Planes,
    settings: SimilarityConfig,
    *,
    moved: MovedCopies | None = None,
    candidates: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, list[Neighbor], list[PairSimilarity]]]:
    """Neighbors and pairs of `nearest_pairs`, with the pairs compared after a transform, which are ranked with them.

    A generation that is a whole copy in place, by rule `per_region`, is not looked for elsewhere.
    """
    in_place = list(
        nearest_pairs(
            generations, references, masking=references.masking, top_k=settings.top_k, floor=settings.lowest,
            tau=settings.tau, candidates=candidates,
        )
    )  # fmt: skip
    finished = [
        any(_is_whole(pair, fraction, settings) for pair in pairs)
        for fraction, (_, _, pairs) in zip(generations.foreground_fractions, in_place, strict=True)
    ]
    after = [[] for _ in in_place] if moved is None else list(moved(generations, finished))
    for (name, neighbors, pairs), transformed in zip(in_place, after, strict=True):
        undecided = pairs[0].undecided_regions if pairs else ()
        moved_pairs = [replace(pair, undecided_regions=undecided) for pair in transformed]
        yield name, merged(neighbors, moved_pairs, floor=settings.lowest), [*pairs, *moved_pairs]


def _is_whole(pair: PairSimilarity, foreground_fraction: float | None, settings: SimilarityConfig) -> bool:
    return copied_regions(pair, foreground_fraction=foreground_fraction, tau=settings.tau, beta=settings.beta).whole


def searched(settings: SimilarityConfig, masking: str) -> str:
    """Words for what was searched: where copies were looked for, and among which references.

    >>> searched(SimilarityConfig(), "composite")
    'in place'
    """
    alignment: Alignment = settings.alignment if masking == "masked" else "none"
    where = SEARCHED[alignment]
    if settings.prefilter == "none":
        return where
    return f"{where}, among {settings.num_candidates} references an image chosen by {settings.prefilter}"


def merged(neighbors: Sequence[Neighbor], pairs: Sequence[PairSimilarity], *, floor: float) -> list[Neighbor]:
    """Neighbors with those among the pairs that are at least as similar as the floor, or as the nearest, by a region.

    A reference is ranked once, by its most similar view or transform. No search for moved copies is complete.
    """
    ranked: list[Neighbor] = []
    for region in REGIONS:
        best = {neighbor.reference_id: neighbor for neighbor in neighbors if neighbor.region == region}
        least = min(floor, max((neighbor.similarity for neighbor in best.values()), default=0.0))
        for pair in pairs:
            value = getattr(pair, region)
            listed = best.get(pair.reference_id)
            if value is not None and value >= (least if listed is None else listed.similarity):
                best[pair.reference_id] = Neighbor(region, 0, pair.reference_id, value, False, pair.transform)
        order = sorted(best.values(), key=lambda neighbor: -neighbor.similarity)
        ranked += [replace(neighbor, rank=rank) for rank, neighbor in enumerate(order, start=1)]
    return ranked
