"""Nearest references by every criterion: exact where it can matter, without computing every pair in full.

A similarity is a product of factors that are at most 1, so the coarse scales of a pair, which cost little, bound it
from above. Every pair is compared at the coarsest scale; only pairs whose bound still reaches what is asked for go on
to the next finer one. What is left at the finest scale is exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.labels import TAU, PairSimilarity
from fbmem_core.retrieval.bounds import COARSEST, PARTS, PairBounds
from fbmem_core.retrieval.image_sets import WHOLE, ImageSet
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.settings import FLOOR_BELOW_TAU
from fbmem_core.retrieval.undecided import undecided_regions
from fbmem_core.rules import ranking_regions
from fbmem_core.similarity import REGIONS, Masking

FLOOR = TAU - FLOOR_BELOW_TAU
_SAME = 1e-6  # similarities that differ by less are the same but for rounding
_COMMON = 0.5  # share of an object's place that is foreground in the other image too, from which on both have it
_BLOCK = 256  # generations that are looked at together, at most
_STATE_BYTES = 256 * 2**20  # what is known of the pairs of one block


@dataclass(frozen=True)
class Neighbor:
    """The reference of this rank (1 = most similar) by one criterion; `complete`: no reference above it is missing."""

    region: str
    rank: int
    reference_id: str
    similarity: float
    complete: bool = True
    transform: str = WHOLE


def nearest_references(
    generations: ImageSet,
    references: ImageSet | Planes,
    *,
    masking: Masking = "masked",
    top_k: int = 5,
    floor: float = FLOOR,
    tau: float = TAU,
    candidates: Mapping[str, Sequence[str]] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, list[Neighbor]]]:
    """The references most similar to each generation by every criterion (full, foreground, background, average).

    Args:
        generations: The images that are asked about.
        references: The images among which they are looked for; their `Planes` where they are asked for again.
        masking: Definition of region similarity; see `region_similarity`.
        top_k: How many per criterion with floor 0. 0: none below the floor, which is enough for labels.
        floor: Every reference of at least this similarity is found. Where there is none, the one is given that as a
            whole looks nearest at the coarse scales. 0: the first `top_k`, and every reference of at least `tau`.
        tau: The similarity from which on a region counts as copied. Where one is, the reference that is highest by
            each of `rules.ranking_regions()` is found whatever the floor: rule `released` labels by the highest average
            alone. So labels are exact.
        candidates: By generation id, the references that are looked at; all by default. Of the others nothing is known,
            so no neighbor of such a generation is complete.
        device: Where to compute; given `Planes` stay where they are.

    Yields:
        (generation id, neighbors by criterion and rank), in the order of the generations. A criterion that is undefined
        for a pair, because a matte is undecided or a region empty, has no neighbor there. Equally similar references
        keep the order of the set.

    Raises:
        InputError: The sizes of the sets differ, or the floor is above `tau`.

    Example:
        >>> import numpy as np
        >>> pixels = np.random.default_rng(0).integers(256, size=(2, 176, 176, 3), dtype=np.uint8)
        >>> alphas = np.zeros((2, 176, 176), np.uint8)
        >>> alphas[:, 40:120, 40:120] = 255
        >>> references = ImageSet(("owl", "cat"), pixels, alphas, np.array([True, True]))
        >>> [(name, neighbors)] = nearest_references(references.select([1]), references)
        >>> [(n.region, n.reference_id, round(n.similarity, 2)) for n in neighbors if n.rank == 1]
        [('full', 'cat', 1.0), ('foreground', 'cat', 1.0), ('background', 'cat', 1.0), ('average', 'cat', 1.0)]
    """
    query = _Query(floor, top_k, tau)
    for table in _tables(generations, _planes(references, masking, device)):
        neighbors = _search(table, query, candidates)
        yield from zip(table.generations.images.ids, neighbors, strict=True)


def nearest_pairs(
    generations: ImageSet,
    references: ImageSet | Planes,
    *,
    masking: Masking = "masked",
    top_k: int = 5,
    floor: float = FLOOR,
    tau: float = TAU,
    candidates: Mapping[str, Sequence[str]] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, list[Neighbor], list[PairSimilarity]]]:
    """Neighbors as `nearest_references` gives them, and the exact similarity of each listed pair by every region.

    In one pass: what made a pair a neighbor by one criterion is not computed again for the others.

    Yields:
        (generation id, its neighbors, its pairs in the order of the references), in the order of the generations.
    """
    query = _Query(floor, top_k, tau)
    for table in _tables(generations, _planes(references, masking, device)):
        listed = list(_search(table, query, candidates))
        names = table.generations.images.ids
        chosen = _mask(table, ((name, n.reference_id) for name, row in zip(names, listed, strict=True) for n in row))
        pairs = list(_pairs(table, chosen))
        # a pair that is listed for one region may be nearer by another than what looked nearest there
        yield from zip(names, _neighbors(table, query), pairs, strict=True)


def pair_similarities(
    generations: ImageSet,
    references: ImageSet | Planes,
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    masking: Masking = "masked",
    device: str = "cpu",
) -> Iterator[tuple[str, list[PairSimilarity]]]:
    """The exact similarities of some pairs (generation id, reference id), or of every pair.

    Yields:
        (generation id, its pairs in the order of the references), in the order of the generations.
    """
    chosen = None if pairs is None else list(pairs)
    for table in _tables(generations, _planes(references, masking, device)):
        yield from zip(table.generations.images.ids, _pairs(table, _mask(table, chosen)), strict=True)


@dataclass(frozen=True)
class _Query:
    """Arguments of `nearest_references`."""

    floor: float
    top_k: int
    tau: float

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.tau:
            raise InputError(f"a floor from 0 to tau ({self.tau})", self.floor, where="floor", cure="Lower it.")


def _planes(references: ImageSet | Planes, masking: Masking, device: str) -> Planes:
    if not isinstance(references, Planes):
        return Planes(references, masking, device=device)
    if references.masking != masking:
        raise InputError(f"planes of region `{masking}`", f"those of `{references.masking}`", cure="Make them anew.")
    return references


def _tables(generations: ImageSet, references: Planes) -> Iterator[PairBounds]:
    rows = max(1, min(_BLOCK, _STATE_BYTES // (64 * max(1, len(references.images)))))
    for first in range(0, len(generations), rows):
        block = generations.select(range(first, min(first + rows, len(generations))))
        yield PairBounds(Planes(block, references.masking, device=references.device), references)


def _search(
    table: PairBounds, query: _Query, candidates: Mapping[str, Sequence[str]] | None
) -> Iterator[list[Neighbor]]:
    """Make every pair exact that `nearest_references` promises, and list them row by row."""
    if candidates is not None:
        table.restrict(candidates)
    floor, shape = query.floor, (table.shape[0], 1)
    least = {region: torch.full(shape, floor, device=table.device) for region in REGIONS}
    for scale in reversed(range(COARSEST + 1)):
        if floor == 0 and scale < COARSEST - 1:
            for region in REGIONS:
                least[region] = _kth_best(table, region, query.top_k).clamp(max=query.tau)
        table.descend(least, scale)
    if floor > 0 and query.top_k > 0:
        for region in REGIONS:
            _resolve_nearest(table, region, floor)
    copied = _copied(table, query.tau)
    for region in ranking_regions() if bool(copied.any()) else ():
        table.resolve(region, copied)
        best = table.exact_values(region).amax(dim=1, keepdim=True).clamp_min(0.0)
        least_highest = {region: torch.where(copied.any(dim=1, keepdim=True), best, 2.0)}
        for scale in reversed(range(COARSEST + 1)):
            table.descend(least_highest, scale)
    return _neighbors(table, query)


def _neighbors(table: PairBounds, query: _Query) -> Iterator[list[Neighbor]]:
    copied = _copied(table, query.tau).any(dim=1)
    facts = []
    for region in REGIONS:
        exact = table.exact_values(region)
        least = torch.full((table.shape[0],), query.top_k if query.floor == 0 else min(query.top_k, 1))
        if region in ranking_regions():
            least = torch.maximum(least, copied.cpu().to(least.dtype))
        # rounded, so that equal references keep their order whatever batch they were compared in
        columns = exact.div(_SAME).round().argsort(dim=1, descending=True, stable=True)
        facts.append((region, least.tolist(), exact.gather(1, columns), columns, _unknown(table, region)))
    for row in range(table.shape[0]):
        neighbors = []
        for region, least_of_rows, similarities, columns, hidden in facts:
            ranked = zip(similarities[row].tolist(), columns[row].tolist(), strict=True)
            for rank, (value, column) in enumerate(_distinct(table, ranked, least_of_rows[row], query), start=1):
                name, view = table.references.images.ids[column], table.references.images.view(column)
                neighbors.append(Neighbor(region, rank, name, value, value >= hidden[row], view))
        yield neighbors


def _distinct(
    table: PairBounds, ranked: Iterable[tuple[float, int]], least: int, query: _Query
) -> Iterator[tuple[float, int]]:
    """The first view of each reference that is similar enough, or among the first `least` references."""
    seen: set[str] = set()
    for value, column in ranked:
        if value < 0 or (value < (query.floor or query.tau) and len(seen) >= least):
            return
        name = table.references.images.ids[column]
        if name not in seen:
            seen.add(name)
            yield value, column


def _unknown(table: PairBounds, region: str) -> list[float]:
    """Upper bound by row of the pairs that are not exact; infinity where candidates were left out."""
    if not table.shape[1]:
        return [0.0] * table.shape[0]
    unknown = table.bound(region).masked_fill(table.exact(region), -1.0).amax(dim=1)
    if table.looked_at is not None:
        unknown = unknown.masked_fill(~table.looked_at.all(dim=1), math.inf)
    return unknown.tolist()


def _mask(table: PairBounds, pairs: Iterable[tuple[str, str]] | None) -> Tensor:
    """[g, n]: every view of these pairs of ids, or all."""
    mask = torch.full(table.shape, pairs is None, device=table.device)
    columns_of: dict[str, list[int]] = {}
    for column, name in enumerate(table.references.images.ids):
        columns_of.setdefault(name, []).append(column)
    row_of = {name: row for row, name in enumerate(table.generations.images.ids)}
    for generation, reference in pairs or ():
        if generation in row_of:
            mask[row_of[generation], columns_of[reference]] = True
    return mask


def _pairs(table: PairBounds, chosen: Tensor) -> Iterator[list[PairSimilarity]]:
    """The similarities of the chosen pairs [g, n] by every region, row by row."""
    for part in PARTS:
        table.advance(part, chosen)
    values = [table.bound(region) for region in REGIONS]
    undecided = undecided_regions(table.generations) if bool(chosen.any()) else [()] * table.shape[0]
    for row in range(table.shape[0]):
        columns = chosen[row].nonzero()[:, 0]
        of_row = [value[row, columns].tolist() for value in values]
        yield [
            PairSimilarity(
                table.references.images.ids[column], full, _defined(foreground), _defined(background),
                average=_defined(average), transform=table.references.images.view(column),
                undecided_regions=undecided[row], **_object_facts(table, row, column),
            )
            for column, full, foreground, background, average in zip(columns.tolist(), *of_row, strict=True)
        ]  # fmt: skip


def _object_facts(table: PairBounds, row: int, column: int) -> dict[str, Any]:
    """Facts about the objects of a pair, as fields of `PairSimilarity`."""
    if table.objects is None or table.bound("foreground")[row, column] < 0:
        return {}
    pair = table.objects.of_pair(row, column)
    common: list[float] = [-1.0]
    facts: dict[str, Any] = {}
    for side, objects, values, opposite, at, name in (
        (table.generations, pair.own, pair.own_values, table.references, column, "object"),
        (table.references, pair.theirs, pair.their_values, table.generations, row, "reference_object"),
    ):
        foreground, places = opposite.images.alphas[at] >= 128, side.places(objects.cpu())
        facts[f"{name}_areas"] = tuple(float(place.mean()) for place in places)
        facts[f"{name}_similarities"] = tuple(_defined(value) for value in values.tolist())
        common += [v for place, v in zip(places, values.tolist(), strict=True) if foreground[place].mean() >= _COMMON]
    return {**facts, "common_foreground": _defined(max(common))}


def _copied(table: PairBounds, tau: float) -> Tensor:
    """[g, n]: whose foreground or background is a copy."""
    return torch.maximum(*(table.exact_values(part) for part in PARTS[1:])) >= tau


def _kth_best(table: PairBounds, region: str, top_k: int) -> Tensor:
    """[g, 1]: the similarity of the k-th best pair that is exact, after those that look best have been made so."""
    views = Counter(table.references.images.ids)
    k = min(top_k * max(views.values(), default=1), table.shape[1])
    if k == 0:
        return torch.zeros(table.shape[0], 1, device=table.device)
    bound = table.bound(region)
    promising = torch.zeros_like(bound, dtype=torch.bool).scatter_(1, bound.topk(k, dim=1).indices, True)
    table.resolve(region, promising & (bound >= 0))
    return table.exact_values(region).topk(k, dim=1).values[:, -1:].clamp_min(0.0)


def _resolve_nearest(table: PairBounds, region: str, floor: float) -> None:
    """Make one pair exact for each generation that has none of at least the floor.

    By the whole image that of the highest bound; by a region the same pair, so that few are computed in full where
    nothing is near, unless the region is undefined there.
    """
    if not table.shape[1]:
        return
    bound = table.bound(region)
    value, column = bound.max(dim=1, keepdim=True)
    if region != "full":
        nearest = table.exact_values("full").argmax(dim=1, keepdim=True)
        column = torch.where(bound.gather(1, nearest) >= 0, nearest, column)
    nothing = (table.exact_values(region).amax(dim=1, keepdim=True) < floor) & (value >= 0)
    table.resolve(region, torch.zeros_like(bound, dtype=torch.bool).scatter_(1, column, nothing))


def _defined(similarity: float) -> float | None:
    return None if similarity < 0 or math.isnan(similarity) else similarity
