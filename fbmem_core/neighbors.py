"""Nearest references by every criterion: exact where it can matter, without computing every pair in full.

A similarity is a product of factors that are at most 1, so the coarse scales of a pair, which cost little, bound it
from above. Every pair is compared at the coarsest scale; only pairs whose bound still reaches what is asked for go on
to the next finer one. What is left at the finest scale is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fbmem_core.audit import CRITERIA, FLOOR_BELOW_TAU, TAU, Region
from fbmem_core.errors import InputError
from fbmem_core.image_sets import ImageSet, Planes
from fbmem_core.labels import PairSimilarity
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Similarity

FLOOR = TAU - FLOOR_BELOW_TAU
_SAME = 1e-6  # similarities that differ by less are the same but for rounding
_COARSEST = len(SCALE_WEIGHTS) - 1
_PARTS = CRITERIA[:3]  # full, foreground, background; `average` is made of the last two
_BLOCK = 256  # generations that are looked at together, at most
_STATE_BYTES = 256 * 2**20  # what is known of the pairs of one block
_PLANE_BYTES = 256 * 2**20  # statistics of the generations of one block that are held at once
_CHUNK_FLOATS = 2**18  # of the planes of references that are compared at once, so that products stay in the cache


@dataclass(frozen=True)
class Neighbor:
    """The reference of this rank (1 = most similar) by one criterion; `complete`: no reference above it is missing."""

    criterion: str
    rank: int
    reference_id: str
    similarity: float
    complete: bool = True


def nearest_references(
    generations: ImageSet,
    references: ImageSet | Planes,
    *,
    region: Region = "masked",
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
        region: Which definition of region similarity; see `region_similarity`.
        top_k: How many per criterion with floor 0. 0: none below the floor, which is enough for labels.
        floor: Every reference of at least this similarity is found. Where there is none, the one that looks nearest at
            the coarse scales is given. 0: the first `top_k`, and every reference of at least `tau`.
        tau: The similarity from which on a region counts as copied. Where one is, the reference of the highest average
            is found whatever the floor, because rule `release` labels by it. So labels are exact.
        candidates: By generation id, the references that are looked at; all by default. Of the others nothing is known,
            so no neighbor of such a generation is complete.
        device: Where to compute; given `Planes` stay where they are.

    Yields:
        (generation id, neighbors by criterion and rank), in the order of the generations. A criterion that is undefined
        for a pair, because a matte is undecided or a region empty, has no neighbor there. Equally similar references
        keep the order of the set.

    Raises:
        InputError: The sizes of the sets differ, or the floor is above `tau`.
    """
    if not 0 <= floor <= tau:
        raise InputError(f"a floor from 0 to tau ({tau})", floor, where="floor", cure="Lower it.")
    planes = _planes(references, region, device)
    for block in _blocks(generations, len(planes.images)):
        table = _Table(Planes(block, region, device=planes.device), planes)
        if candidates is not None:
            table.restrict(candidates)
        table.search(floor=floor, top_k=top_k, tau=tau)
        yield from zip(block.ids, table.neighbors(floor=floor, top_k=top_k, tau=tau), strict=True)


def pair_similarities(
    generations: ImageSet,
    references: ImageSet | Planes,
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    region: Region = "masked",
    device: str = "cpu",
) -> Iterator[tuple[str, list[PairSimilarity]]]:
    """The exact similarities of some pairs (generation id, reference id), or of every pair.

    Yields:
        (generation id, its pairs in the order of the references), in the order of the generations.
    """
    planes = _planes(references, region, device)
    column_of = {name: column for column, name in enumerate(planes.images.ids)}
    wanted: dict[str, list[int]] = {}
    for generation, reference in pairs or ():
        wanted.setdefault(generation, []).append(column_of[reference])
    for block in _blocks(generations, len(planes.images)):
        table = _Table(Planes(block, region, device=planes.device), planes)
        chosen = torch.full(table.shape, pairs is None, device=table.device)
        for row, name in enumerate(block.ids):
            chosen[row, wanted.get(name, [])] = True
        for part in _PARTS:
            table.advance(part, chosen)
        yield from zip(block.ids, table.pairs(chosen), strict=True)


def _planes(references: ImageSet | Planes, region: Region, device: str) -> Planes:
    if not isinstance(references, Planes):
        return Planes(references, region, device=device)
    if references.region != region:
        raise InputError(f"planes of region `{region}`", f"those of `{references.region}`", cure="Make them anew.")
    return references


def _blocks(generations: ImageSet, num_references: int) -> Iterator[ImageSet]:
    rows = max(1, min(_BLOCK, _STATE_BYTES // (64 * max(1, num_references))))
    for first in range(0, len(generations), rows):
        yield generations.select(range(first, min(first + rows, len(generations))))


class _Table:
    """How far each pair of a block of generations [g] and all references [n] is compared, by criterion."""

    def __init__(self, generations: Planes, references: Planes) -> None:
        if generations.images.size != references.images.size:
            raise InputError(
                "generations and references of one size",
                f"{generations.images.size} px and {references.images.size} px",
                cure="Load both with the same size.",
            )
        self.generations, self.references = generations, references
        self.device = references.device
        self.shape = (len(generations.images), len(references.images))
        self._found = {part: Similarity.begin(self.shape, self.device) for part in _PARTS}
        # the scale that a pair has reached; -1: none left, it is exact
        self._next = {part: torch.full(self.shape, _COARSEST, dtype=torch.int8, device=self.device) for part in _PARTS}
        ours, theirs = (torch.tensor(side.images.decided, device=self.device) for side in (generations, references))
        self._decided = ours[:, None] & theirs
        self._looked_at: Tensor | None = None

    def bound(self, criterion: str) -> Tensor:
        """[g, n]: what each pair can reach at most; its similarity where it is exact; -1 where it is undefined."""
        if criterion == "average":
            parts = self.bound("foreground"), self.bound("background")
            return torch.where(torch.minimum(*parts) < 0, -1.0, sum(parts) / 2)
        value = self._found[criterion].value.nan_to_num(-1.0)
        if self._looked_at is not None:
            value = value.masked_fill(~self._looked_at, -1.0)
        return value if criterion == "full" else value.masked_fill(~self._decided, -1.0)

    def exact(self, criterion: str) -> Tensor:
        """[g, n]: which pairs have gone through every scale."""
        if criterion == "average":
            return self.exact("foreground") & self.exact("background")
        return self._next[criterion] < 0

    def restrict(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Look at these references alone."""
        column_of = {name: column for column, name in enumerate(self.references.images.ids)}
        self._looked_at = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for row, name in enumerate(self.generations.images.ids):
            self._looked_at[row, [column_of[reference] for reference in candidates[name]]] = True

    def search(self, *, floor: float, top_k: int, tau: float) -> None:
        """Make every pair exact that `nearest_references` promises."""
        least = {criterion: torch.full((self.shape[0], 1), floor, device=self.device) for criterion in CRITERIA}
        for scale in reversed(range(_COARSEST + 1)):
            if floor == 0 and scale < _COARSEST - 1:
                for criterion in CRITERIA:
                    least[criterion] = self._kth_best(criterion, top_k).clamp(max=tau)
            self._descend(least, scale)
        if floor > 0 and top_k > 0:
            for criterion in CRITERIA:
                self._resolve_nearest(criterion, floor)
        copied = self._copied(tau)
        if bool(copied.any()):
            self._resolve("average", copied)
            best = self.bound("average").masked_fill(~self.exact("average"), -1.0).amax(dim=1, keepdim=True)
            only = {"average": torch.where(copied.any(dim=1, keepdim=True), best.clamp_min(0.0), 2.0)}
            for scale in reversed(range(_COARSEST + 1)):
                self._descend(only, scale)

    def neighbors(self, *, floor: float, top_k: int, tau: float) -> Iterator[list[Neighbor]]:
        """What `nearest_references` gives, row by row."""
        names = self.references.images.ids
        copied = self._copied(tau).any(dim=1)
        facts = []
        for criterion in CRITERIA:
            bound, exact = self.bound(criterion), self.exact(criterion)
            known = bound.masked_fill(~exact, -1.0)
            wanted = known >= (floor or tau)
            count = wanted.sum(dim=1).clamp_min(top_k if floor == 0 else min(top_k, 1))
            if criterion == "average":
                count = torch.maximum(count, copied.to(count.dtype))
            # rounded, so that equal references keep their order whatever batch they were compared in
            columns = known.div(_SAME).round().argsort(dim=1, descending=True, stable=True)
            values = known.gather(1, columns)
            unknown = bound.masked_fill(exact, -1.0).amax(dim=1) if len(names) else count
            if self._looked_at is not None:
                unknown = unknown.masked_fill(~self._looked_at.all(dim=1), math.inf)
            facts.append((criterion, count.tolist(), values, columns, unknown.tolist()))
        for row in range(self.shape[0]):
            found = []
            for criterion, counts, similarities, columns, hidden in facts:
                first = slice(counts[row])
                nearest = zip(similarities[row, first].tolist(), columns[row, first].tolist(), strict=True)
                for rank, (value, column) in enumerate(nearest, start=1):
                    if value >= 0:
                        found.append(Neighbor(criterion, rank, names[column], value, value >= hidden[row]))
            yield found

    def pairs(self, chosen: Tensor) -> Iterator[list[PairSimilarity]]:
        """The similarities of the chosen pairs, which must be exact, row by row."""
        values = [self.bound(part) for part in _PARTS]
        for row in range(self.shape[0]):
            columns = chosen[row].nonzero()[:, 0]
            of_row = [value[row, columns].tolist() for value in values]
            yield [
                PairSimilarity(self.references.images.ids[column], full, _defined(foreground), _defined(background))
                for column, full, foreground, background in zip(columns.tolist(), *of_row, strict=True)
            ]

    def advance(self, part: str, pairs: Tensor, *, to_scale: int = 0) -> None:
        """Take the pairs of a mask [g, n] through all scales down to this one."""
        for scale in reversed(range(to_scale, _COARSEST + 1)):
            self._compare(part, scale, pairs & (self._next[part] == scale))

    def _copied(self, tau: float) -> Tensor:
        """[g, n]: whose foreground or background is a copy."""
        parts = (self.bound(part).masked_fill(~self.exact(part), -1.0) for part in _PARTS[1:])
        return torch.maximum(*parts) >= tau

    def _descend(self, least: dict[str, Tensor], scale: int) -> None:
        for part in _PARTS:
            alive = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
            for criterion, value in least.items():
                if criterion == part or (criterion == "average" and part != "full"):
                    bound = self.bound(criterion)
                    alive |= (bound >= value) & (bound >= 0)
            self.advance(part, alive & ~self.exact(part), to_scale=scale)

    def _kth_best(self, criterion: str, top_k: int) -> Tensor:
        """[g, 1]: the similarity of the k-th best pair that is exact, after those that look best have been made so."""
        k = min(top_k, self.shape[1])
        if k == 0:
            return torch.zeros(self.shape[0], 1, device=self.device)
        bound = self.bound(criterion)
        promising = torch.zeros_like(self._decided).scatter_(1, bound.topk(k, dim=1).indices, True)
        self._resolve(criterion, promising & (bound >= 0))
        known = self.bound(criterion).masked_fill(~self.exact(criterion), -1.0)
        return known.topk(k, dim=1).values[:, -1:].clamp_min(0.0)

    def _resolve_nearest(self, criterion: str, floor: float) -> None:
        bound = self.bound(criterion)
        if not bound.shape[1]:
            return
        value, column = bound.max(dim=1, keepdim=True)
        nothing = (bound.masked_fill(~self.exact(criterion), -1.0).amax(dim=1, keepdim=True) < floor) & (value >= 0)
        self._resolve(criterion, torch.zeros_like(self._decided).scatter_(1, column, nothing))

    def _resolve(self, criterion: str, pairs: Tensor) -> None:
        for part in _PARTS[1:] if criterion == "average" else (criterion,):
            self.advance(part, pairs)

    def _compare(self, part: str, scale: int, pairs: Tensor) -> None:
        """Multiply in the factor of one scale, references by chunks."""
        columns = pairs.any(dim=0).nonzero()[:, 0]
        if not len(columns):
            return
        measure = self.references.measures[part]
        floats = self.references(part, scale, columns[:1]).numel()
        for rows in pairs.any(dim=1).nonzero()[:, 0].split(max(1, _PLANE_BYTES // (16 * floats))):
            ours = measure.statistics(self.generations(part, scale, rows))
            for chunk in columns.split(max(1, _CHUNK_FLOATS // floats)):
                asked = pairs[rows][:, chunk]
                used, asked = chunk[asked.any(dim=0)], asked[:, asked.any(dim=0)]
                if not len(used):
                    continue
                theirs = measure.statistics(self.references(part, scale, used))
                for index, row in enumerate(rows.tolist()):
                    chosen = asked[index].nonzero()[:, 0]
                    if not len(chosen):
                        continue
                    some = theirs if len(chosen) == len(used) else tuple(plane[chosen] for plane in theirs)
                    maps = measure.maps(tuple(plane[index : index + 1] for plane in ours), some)
                    self._found[part].multiply(scale, maps, at=(torch.tensor(row), used[chosen]))
        self._next[part] -= pairs.to(torch.int8)


def _defined(similarity: float) -> float | None:
    return None if similarity < 0 or math.isnan(similarity) else similarity
