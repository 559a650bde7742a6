"""Bounds of similarities: pairs are compared from the coarsest scale on, and what is multiplied so far is a bound.

MS-SSIM is prod_j f_j ^ w_j over scales j, with 0 <= f_j <= 1 and weights w_j of sum 1. After the coarsest scales the
product of the known factors, with 1 for each that is missing, is a bound from above: no finer scale can raise it, and
one without texture, which is left out, gives the others larger exponents and so lowers it. Only pairs whose bound still
reaches what is asked for go on to the next finer scale; see `neighbors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fbmem_core.errors import InputError
from fbmem_core.retrieval.planes import EVERYWHERE, OBJECT, Planes
from fbmem_core.similarity import REGIONS
from fbmem_core.similarity.fused import comparison, joined
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Measure, Similarity

COARSEST = len(SCALE_WEIGHTS) - 1
PARTS = REGIONS[:3]  # full, foreground, background; `average` is made of the last two
_FEW_PAIRS = 4  # of a reference with the generations that are compared at once
_STATISTICS_BYTES = 128 * 2**20  # of the generations that are compared at once; more cost more to move than they save

PlanesOf = Callable[[int, Tensor], Tensor]  # scale and rows to planes [m, c, h, w]


class _Table:
    """The similarity by one measure of every row of one side to every row of the other, as far as it is known."""

    def __init__(
        self, measure: Measure, x: PlanesOf, y: PlanesOf, shape: tuple[int, int], device: torch.device
    ) -> None:
        self._measure, self._x, self._y, self._device = measure, x, y, device
        self._state = Similarity.begin(shape, device)
        # the scale that comes next for a pair; -1: none left, it is exact
        self._next = torch.full(shape, COARSEST, dtype=torch.int8, device=device)

    @property
    def bound(self) -> Tensor:
        """[x, y]: what a pair can reach at most; its similarity where it is exact; -1 where it is undecided."""
        return self._state.value.nan_to_num(-1.0)

    @property
    def exact(self) -> Tensor:
        """[x, y]: which pairs have gone through every scale, or cannot be decided by those that are left."""
        return (self._next < 0) | self._state.value.isnan()

    def values(self, rows: Tensor | int, columns: Tensor | int) -> Tensor:
        """Values of `bound` for a few pairs."""
        return self._state.of(rows, columns).value.nan_to_num(-1.0)

    def advance(self, pairs: Tensor, *, to_scale: int = 0) -> None:
        """Take the pairs of a mask [x, y] through all scales down to this one."""
        for scale in reversed(range(to_scale, COARSEST + 1)):
            self._compare(scale, pairs & (self._next == scale))

    def _compare(self, scale: int, pairs: Tensor) -> None:
        """Multiply in the factor of one scale, references by chunks."""
        columns = pairs.any(dim=0).nonzero()[:, 0]
        if not len(columns):
            return
        # 1. statistics of the generations that take part, in blocks that fit into memory
        by = comparison(self._measure, self._device)
        floats = self._y(scale, columns[:1]).numel()
        for rows in pairs.any(dim=1).nonzero()[:, 0].split(max(1, _STATISTICS_BYTES // (16 * floats))):
            # a few at a time, as making them takes several times their memory
            parts = rows.split(max(1, by.chunk_floats // floats))
            x = joined([by.statistics(self._x(scale, part)) for part in parts])
            # 2. those of the references, chunk by chunk, and the factors of the pairs of both
            of_rows = pairs[rows]
            columns = of_rows.any(dim=0).nonzero()[:, 0]
            # where a column has few pairs several are taken together, so that every thread has some
            together = _FEW_PAIRS if int(of_rows.sum()) < _FEW_PAIRS * len(columns) else 1
            for used in columns.split(max(1, together * by.chunk_floats // floats)):
                y = by.statistics(self._y(scale, used))
                indexes = of_rows[:, used].nonzero()
                at = (rows[indexes[:, 0]], used[indexes[:, 1]])
                # 3. multiply f_j ^ w_j into the product of each pair; luminance counts at the coarsest scale of texture
                factors, textures = by.factors(x, y, indexes, self._state.is_first(at))
                self._state.multiply(scale, factors, textures, at)
        self._next[pairs] -= 1


class _Region:
    """One region of every pair of some generations [g] and all references [n]."""

    def __init__(self, region: str, generations: Planes, references: Planes) -> None:
        measure = references.measures[region]
        shape = (len(generations.images), len(references.images))
        self._table = _Table(measure, generations.side(region), references.side(region), shape, references.device)

    @property
    def bound(self) -> Tensor:
        """[g, n]: as of `_Table`."""
        return self._table.bound

    @property
    def exact(self) -> Tensor:
        """[g, n]: as of `_Table`."""
        return self._table.exact

    def advance(self, pairs: Tensor, *, least: Tensor | None = None, to_scale: int = 0) -> None:
        """Take the pairs of a mask [g, n] through all scales down to this one."""
        self._table.advance(pairs & ~self.exact, to_scale=to_scale)


@dataclass(frozen=True)
class ObjectSimilarities:
    """The objects of the generation and of the reference of one pair [k], and how similar each is; -1: undecided."""

    own: Tensor
    own_values: Tensor
    theirs: Tensor
    their_values: Tensor


class _Objects:
    """The foregrounds of every pair: the most similar of the objects of either image, over its own place in both."""

    def __init__(self, generations: Planes, references: Planes) -> None:
        measure, device = references.measures[OBJECT], references.device
        self._shape = (len(generations.images), len(references.images))
        self._of_rows = generations.image_of_object.to(device)  # of each object of a generation, its row
        self._of_columns = references.image_of_object.to(device)
        self.own = _Table(
            measure, generations.side(OBJECT), references.side(EVERYWHERE),
            (len(self._of_rows), self._shape[1]), device,
        )  # fmt: skip
        self.theirs = _Table(
            measure, generations.side(EVERYWHERE), references.side(OBJECT),
            (self._shape[0], len(self._of_columns)), device,
        )  # fmt: skip
        counts = [
            torch.bincount(image_of_object, minlength=num)
            for image_of_object, num in zip((self._of_rows, self._of_columns), self._shape, strict=True)
        ]
        self.absent = (counts[0][:, None] == 0) & (counts[1] == 0)  # [g, n]: neither image has an object

    @property
    def bound(self) -> Tensor:
        """[g, n]: the highest bound of an object; -1 where there is none, or none that is decided."""
        return self._highest(self.own.bound, self.theirs.bound)

    @property
    def exact(self) -> Tensor:
        """[g, n]: where no object that is not exact can be more similar than one that is."""
        bounds = self.own.bound, self.theirs.bound
        exact = self.own.exact, self.theirs.exact
        highest = self._highest(*(b.masked_fill(~e, -1.0) for b, e in zip(bounds, exact, strict=True)))
        return self._highest(*(b.masked_fill(e, -1.0) for b, e in zip(bounds, exact, strict=True))) <= highest

    def advance(self, pairs: Tensor, *, least: Tensor | None = None, to_scale: int = 0) -> None:
        """Take the objects of these pairs [g, n] through all scales down to this one: those that reach the least."""
        own, theirs = pairs[self._of_rows], pairs[:, self._of_columns]
        if least is not None:
            own = own & (self.own.bound >= least[self._of_rows])
            theirs = theirs & (self.theirs.bound >= least)
        self.own.advance(own & ~self.own.exact, to_scale=to_scale)
        self.theirs.advance(theirs & ~self.theirs.exact, to_scale=to_scale)

    def of_pair(self, row: int, column: int) -> ObjectSimilarities:
        """Similarity of each object of a pair whose objects are all exact."""
        own, theirs = (self._of_rows == row).nonzero()[:, 0], (self._of_columns == column).nonzero()[:, 0]
        return ObjectSimilarities(own, self.own.values(own, column), theirs, self.theirs.values(row, theirs))

    def _highest(self, own: Tensor, theirs: Tensor) -> Tensor:
        values = torch.full(self._shape, -1.0, device=own.device)
        values.scatter_reduce_(0, self._of_rows[:, None].expand_as(own), own, "amax")
        return values.scatter_reduce_(1, self._of_columns.expand_as(theirs), theirs, "amax")


class PairBounds:
    """Bounds of every pair of a block of generations [g] and all references [n], by region."""

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
        self.objects = _Objects(generations, references) if OBJECT in references.measures else None
        self._parts: dict[str, _Region | _Objects] = {
            part: _Region(part, generations, references) for part in PARTS if part in references.measures
        }
        if self.objects is not None:
            self._parts["foreground"] = self.objects
        ours, theirs = (torch.tensor(side.images.decided, device=self.device) for side in (generations, references))
        self._decided = ours[:, None] & theirs

    def bound(self, region: str) -> Tensor:
        """[g, n]: what each pair can reach at most; its similarity where it is exact; -1 where it is undefined."""
        if region == "average":
            foreground, background = self.bound("foreground"), self.bound("background")
            average = torch.where(torch.minimum(foreground, background) < 0, -1.0, (foreground + background) / 2)
            # without a foreground in either image the background is all that can be compared
            return average if self.objects is None else torch.where(self.objects.absent, background, average)
        value = self._parts[region].bound
        if self.looked_at is not None:
            value = value.masked_fill(~self.looked_at, -1.0)
        return value if region == "full" else value.masked_fill(~self._decided, -1.0)

    def exact(self, region: str) -> Tensor:
        """[g, n]: which pairs have gone through every scale."""
        if region == "average":
            return self.exact("foreground") & self.exact("background")
        return self._parts[region].exact

    def exact_values(self, region: str) -> Tensor:
        """[g, n]: the similarity where it is exact, else -1."""
        return self.bound(region).masked_fill(~self.exact(region), -1.0)

    def restrict(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Look at these references alone."""
        columns_of: dict[str, list[int]] = {}
        for column, name in enumerate(self.references.images.ids):
            columns_of.setdefault(name, []).append(column)
        self.looked_at = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for row, name in enumerate(self.generations.images.ids):
            self.looked_at[row, [column for reference in candidates[name] for column in columns_of[reference]]] = True

    def descend(self, least: Mapping[str, Tensor], scale: int) -> None:
        """Take every pair down to this scale that can still reach the least [g, 1] that is asked by any region."""
        for part, table in self._parts.items():
            for region, value in least.items():
                if region == part or (region == "average" and part != "full"):
                    bound = self.bound(region)
                    alive = (bound >= value) & (bound >= 0) & ~self.exact(part)
                    table.advance(alive, least=value if region == part else None, to_scale=scale)

    def resolve(self, region: str, pairs: Tensor) -> None:
        """Make the pairs of a mask [g, n] exact."""
        for part in PARTS[1:] if region == "average" else (region,):
            self.advance(part, pairs)

    def advance(self, part: str, pairs: Tensor) -> None:
        """Take the pairs of a mask [g, n] through all scales."""
        self._parts[part].advance(pairs)
