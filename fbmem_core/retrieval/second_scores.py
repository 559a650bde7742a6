"""A second, independent score of pairs by the descriptors of a network, and where it and the labels disagree."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fbmem_core.labels import PairSimilarity, matches
from fbmem_core.retrieval.descriptors import Descriptor, region_descriptors
from fbmem_core.rules import Label

if TYPE_CHECKING:
    from torch import Tensor

    from fbmem_core.retrieval.image_sets import ImageSet

Region = Literal["full", "foreground", "background"]
REGION_OF: dict[str, Region] = {"VM": "full", "FM": "foreground", "BM": "background"}


@dataclass(frozen=True)
class SecondScore:
    """Cosines of one generation and one reference, -1 to 1, by region; None: a matte is undecided.

    Of a reference with several views the most similar counts. `is_listed`: the pair was asked for; `is_nearest`: no
    other reference is nearer by the whole image.
    """

    generation_id: str
    reference_id: str
    full: float
    foreground: float | None
    background: float | None
    is_listed: bool
    is_nearest: bool


@dataclass(frozen=True)
class Disagreement:
    """A pair that is a copy by its label alone, `only_measure`, or by the network alone, `only_sscd`; of which region,
    and how similar that is by each; `similarity` is None where the pair is not listed."""

    kind: Literal["only_measure", "only_sscd"]
    region: Region
    similarity: float | None
    second: float


def second_scores(
    generations: ImageSet,
    references: Mapping[str, Tensor],
    names: Sequence[str],
    network: Descriptor,
    *,
    listed: Mapping[str, Collection[str]],
) -> Iterator[SecondScore]:
    """Score every listed pair, and of each generation the reference that is nearest by the whole image.

    Args:
        generations: Images with their mattes.
        references: Their descriptors by region, as `region_descriptors` gives them.
        names: The reference of each of their rows.
        network: What the descriptors are made with.
        listed: By generation id, the references of its listed pairs.
    """
    if not names:
        return
    cosines = {
        region: (vectors @ references[region].mT).double().cpu().numpy()
        for region, vectors in region_descriptors(generations, network).items()
    }
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    for row, generation in enumerate(generations.ids):
        nearest = names[int(np.argmax(cosines["full"][row]))]
        for name in dict.fromkeys((*sorted(listed.get(generation, ())), nearest)):
            values = {region: _highest(value[row, rows_of[name]]) for region, value in cosines.items()}
            full = values["full"]
            assert full is not None  # a whole image is never undecided
            is_listed = name in listed.get(generation, ())
            yield SecondScore(
                generation, name, full, values["foreground"], values["background"], is_listed, name == nearest
            )


def disagreement(
    score: SecondScore, pairs: Sequence[PairSimilarity], label: Label | None, *, threshold: float
) -> Disagreement | None:
    """Compare a pair's label with the network; None: they agree, or the pair is undecided.

    A copied region is one by the network if the whole image or that region reaches the threshold; a pair that is no
    copy is one by the network if its whole images do.

    Args:
        score: By the network.
        pairs: The similarities of its listed views and transforms; none: below the floor.
        label: Of the pair.
        threshold: From which cosine on the network sees a copy.

    >>> score = SecondScore("g", "horse", 0.9, None, None, False, True)
    >>> disagreement(score, [], "NM", threshold=0.75).kind
    'only_sscd'
    """
    if label is None:
        return None
    region: Region = REGION_OF.get(label, "full")
    second: float | None = getattr(score, region)
    value = score.full if second is None else second
    sees_copy = max(score.full, value) >= threshold if matches(label) else score.full >= threshold
    if sees_copy == matches(label):
        return None
    similarities = [v for pair in pairs if (v := getattr(pair, region)) is not None]
    kind: Literal["only_measure", "only_sscd"] = "only_measure" if matches(label) else "only_sscd"
    return Disagreement(kind, region, max(similarities, default=None), value)


def _highest(values: np.ndarray) -> float | None:
    decided = values[~np.isnan(values)]
    return float(decided.max()) if len(decided) else None
