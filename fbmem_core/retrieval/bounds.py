"""Bounds of pairs: similarities from the coarsest scale on, each an upper bound of the whole.

Only pairs whose bound still reaches what is asked for go on to the next finer scale; see `neighbors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.retrieval.image_sets import Planes
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.fused import comparison, joined
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Similarity

COARSEST = len(SCALE_WEIGHTS) - 1
PARTS = REGIONS[:3]  # full, foreground, background; `average` is made of the last two
_STATISTICS_BYTES = 1024 * 2**20  # of the generations that are compared at once


class PairBounds:
    """Upper bounds of each pair of generations [g] and references [n], by region."""

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
        self.looked_at: Tensor | None = None  # [g, n]; None: all
        self._found = {part: Similarity.begin(self.shape, self.device) for part in PARTS}
        # the scale that a pair has reached; -1: none left, it is exact
        self._next = {part: torch.full(self.shape, COARSEST, dtype=torch.int8, device=self.device) for part in PARTS}
        ours, theirs = (torch.tensor(side.images.decided, device=self.device) for side in (generations, references))
        self._decided = ours[:, None] & theirs

    def bound(self, region: str) -> Tensor:
        """[g, n]: what each pair can reach at most; its similarity where it is exact; -1 where it is undefined."""
        if region == "average":
            parts = self.bound("foreground"), self.bound("background")
            return torch.where(torch.minimum(*parts) < 0, -1.0, sum(parts) / 2)
        value = self._found[region].value.nan_to_num(-1.0)
        if self.looked_at is not None:
            value = value.masked_fill(~self.looked_at, -1.0)
        return value if region == "full" else value.masked_fill(~self._decided, -1.0)

    def exact(self, region: str) -> Tensor:
        """[g, n]: which pairs have gone through every scale."""
        if region == "average":
            return self.exact("foreground") & self.exact("background")
        return self._next[region] < 0

    def known(self, region: str) -> Tensor:
        """[g, n]: the similarity where it is exact, else -1."""
        return self.bound(region).masked_fill(~self.exact(region), -1.0)

    def restrict(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Look at these references alone."""
        column_of = {name: column for column, name in enumerate(self.references.images.ids)}
        self.looked_at = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for row, name in enumerate(self.generations.images.ids):
            self.looked_at[row, [column_of[reference] for reference in candidates[name]]] = True

    def descend(self, least: Mapping[str, Tensor], scale: int) -> None:
        """Take every pair down to this scale that can still reach the least [g, 1] that is asked by any criterion."""
        for part in PARTS:
            alive = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
            for region, value in least.items():
                if region == part or (region == "average" and part != "full"):
                    bound = self.bound(region)
                    alive |= (bound >= value) & (bound >= 0)
            self.advance(part, alive & ~self.exact(part), to_scale=scale)

    def resolve(self, region: str, pairs: Tensor) -> None:
        """Make the pairs of a mask [g, n] exact."""
        for part in PARTS[1:] if region == "average" else (region,):
            self.advance(part, pairs)

    def advance(self, part: str, pairs: Tensor, *, to_scale: int = 0) -> None:
        """Take the pairs of a mask [g, n] through all scales down to this one."""
        for scale in reversed(range(to_scale, COARSEST + 1)):
            self._compare(part, scale, pairs & (self._next[part] == scale))

    def _compare(self, part: str, scale: int, pairs: Tensor) -> None:
        """Multiply in the factor of one scale, references by chunks."""
        columns = pairs.any(dim=0).nonzero()[:, 0]
        if not len(columns):
            return
        by, found = comparison(self.references.measures[part], self.device), self._found[part]
        floats = self.references(part, scale, columns[:1]).numel()
        for rows in pairs.any(dim=1).nonzero()[:, 0].split(max(1, _STATISTICS_BYTES // (16 * floats))):
            # a few at a time, as making them takes several times their memory
            some = rows.split(max(1, by.chunk_floats // floats))
            ours = joined([by.statistics(self.generations(part, scale, few)) for few in some])
            of_rows = pairs[rows]
            for used in of_rows.any(dim=0).nonzero()[:, 0].split(max(1, by.chunk_floats // floats)):
                theirs = by.statistics(self.references(part, scale, used))
                indexes = of_rows[:, used].nonzero()
                at = (rows[indexes[:, 0]], used[indexes[:, 1]])
                factors, masses = by.factors(ours, theirs, indexes, found.is_first(scale, at))
                found.multiply(scale, factors, masses, at)
        self._next[part] -= pairs.to(torch.int8)
