"""Labels of (generation, reference) pairs and of generations: VM, FM, BM or NM."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fbmem_core.rules import DEFAULT_RULE, Case, Label, load_rule

# arXiv 2508.12148: the threshold of similarity, and the share of area at or below which a region counts as absent
TAU = 0.8
BETA = 0.03
# arXiv 2508.12148: foreground copies carry the copyright and privacy risk
SEVERITY: dict[str, float] = {"VM": 2.0, "FM": 1.5, "BM": 0.5, "NM": 0.0}
FOREGROUND, BACKGROUND = "foreground", "background"
_MATTE = "matte"

# of a pair, and of the table `similarities`
OBJECT_COLUMNS = (
    "object_areas", "object_similarities", "reference_object_areas", "reference_object_similarities",
)  # fmt: skip


@dataclass(frozen=True)
class PairSimilarity:
    """Similarity of one generation to one reference: values in [0, 1], None where undecided or undefined.

    Masked, `foreground` is the most similar object of either image, `common_foreground` the most similar of those that
    both mattes show; `object_similarities` are of the generation's own objects, of these areas (shares of the image),
    `reference_object_similarities` of the reference's. `transform` is the view of the reference that was compared, or
    how it was moved, `transform_matrix` then the six numbers of it (`similarity.alignment.Transform`). `average`, of
    foreground and background, is computed where it is not given. `undecided_regions` are those of the generation that
    show nothing by which anything could be recognised, whatever the reference.

    Example:
        >>> PairSimilarity("horse", full=0.4, foreground=0.75, background=0.25).average
        0.5
    """

    reference_id: str
    full: float
    foreground: float | None
    background: float | None
    average: float | None = None
    common_foreground: float | None = None
    object_areas: tuple[float, ...] = ()
    object_similarities: tuple[float | None, ...] = ()
    reference_object_areas: tuple[float, ...] = ()
    reference_object_similarities: tuple[float | None, ...] = ()
    transform: str = "whole"
    transform_matrix: tuple[float, ...] = ()
    undecided_regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.average is None and self.foreground is not None and self.background is not None:
            object.__setattr__(self, "average", (self.foreground + self.background) / 2)

    def copied_area(self, tau: float) -> float:
        """The area of the generation's objects that are copied, 0 to 1."""
        return _area(self.object_areas, self.object_similarities, tau, math.inf)

    def changed_area(self, tau: float) -> float:
        """The area of the generation's objects that are not copied; one without texture is neither."""
        return _area(self.object_areas, self.object_similarities, -1.0, tau)

    def shows_object(self, tau: float, beta: float) -> bool:
        """True if copied objects of the generation, or of the reference, have more than `beta` of the area."""
        theirs = _area(self.reference_object_areas, self.reference_object_similarities, tau, math.inf)
        return max(self.copied_area(tau), theirs) > beta


@dataclass(frozen=True)
class GenerationLabel:
    """A generation's label, its highest similarity by each region, and the reference that each came from.

    `foreground_copied` and `background_copied` say which regions are copies, of these references; they may be two.
    `transform` is that of the pair that gave the label, or of the nearest by the full image. `undecided` says of which
    parts of the generation nothing can be said: its matte, or a foreground or background that shows nothing.
    """

    label: Label | None
    full_similarity: float | None
    foreground_similarity: float | None
    background_similarity: float | None
    full_reference_id: str | None
    foreground_reference_id: str | None
    background_reference_id: str | None
    foreground_copied: bool | None = None
    background_copied: bool | None = None
    transform: str | None = None
    undecided: str | None = None


@dataclass(frozen=True)
class CopiedRegions:
    """Regions of a generation that a pair shows to be copied; None: undecided. `whole`: all that it has."""

    foreground: bool | None
    background: bool | None
    whole: bool


def copied_regions(
    pair: PairSimilarity, *, foreground_fraction: float | None, tau: float = TAU, beta: float = BETA
) -> CopiedRegions:
    """The copied regions of a generation by one reference, as rule `per_region` sees them.

    The background is copied if it is as similar as tau. The foreground is, if an object is; beside a copied background
    and other objects that are not copied, only if both mattes show it, as a matte may take a piece of scenery for an
    object, and if it is not smaller than those together. All is copied if the background and every object is; before
    a background that shows nothing, as a page or a clear sky, if every object is and the full images agree too.

    Args:
        pair: Its similarities.
        foreground_fraction: Share of the generation that is foreground; None when its matte is undecided.
        tau: From this similarity on, a region counts as copied.
        beta: A region of at most this share of the image counts as absent.
    """
    if foreground_fraction is None:
        return CopiedRegions(None, None, pair.full >= tau)
    has_foreground, has_background = foreground_fraction > beta, foreground_fraction < 1 - beta
    background = has_background and _reaches(pair.background, tau)
    if pair.object_areas or pair.reference_object_areas:
        any_object = pair.shows_object(tau, beta)
    else:  # compared as one foreground
        any_object = has_foreground and _reaches(pair.foreground, tau)
    copied, changed = pair.copied_area(tau), pair.changed_area(tau)
    if has_background and pair.background is None and BACKGROUND in pair.undecided_regions:
        return CopiedRegions(any_object, None, any_object and not changed and pair.full >= tau)
    if not background:
        return CopiedRegions(any_object, False, any_object and not has_background and not changed)
    if not has_foreground:
        return CopiedRegions(False, True, not changed)
    if changed:
        return CopiedRegions(_reaches(pair.common_foreground, tau) and copied >= changed, True, False)
    foreground = None if pair.foreground is None else any_object  # None: nothing that could be recognised
    return CopiedRegions(foreground, True, bool(foreground))


def label_pair(
    pair: PairSimilarity,
    *,
    foreground_fraction: float | None,
    rule: str = DEFAULT_RULE,
    tau: float = TAU,
    beta: float = BETA,
) -> Label | None:
    """The label of one generation against one reference.

    Args:
        pair: Its similarities.
        foreground_fraction: Share of the generation that is foreground; None when its matte is undecided.
        rule: Name of a file of `fbmem_core/rules/`. `per_region` is VM if every region that the generation has is
            copied, whatever the full image says: see `copied_regions`. `paper` tests the full image first, `released`
            never does.
        tau: From this similarity on, a region counts as copied.
        beta: A region of at most this share of the image counts as absent.

    Returns:
        The label, or None when the matte is undecided and the full image does not decide.

    >>> pair = PairSimilarity("horse", full=0.4, foreground=0.93, background=0.1)
    >>> label_pair(pair, foreground_fraction=0.3)
    'FM'
    """
    copied = copied_regions(pair, foreground_fraction=foreground_fraction, tau=tau, beta=beta)
    case = Case(
        pair.full, pair.foreground, pair.background, copied.foreground, copied.background, copied.whole,
        foreground_fraction, tau, beta,
    )  # fmt: skip
    return load_rule(rule).label(case)


def label_generation(
    pairs: Iterable[PairSimilarity],
    *,
    foreground_fraction: float | None,
    rule: str = DEFAULT_RULE,
    tau: float = TAU,
    beta: float = BETA,
) -> GenerationLabel:
    """The label of a generation over all its pairs; see `label_pair` for the arguments.

    The most severe pair over all references counts, so foreground and background may come from different ones; by a
    rule that names a region in `RANKED_BY` (`released`: the average) the pair of its highest similarity alone. Of
    equally similar references the first by id counts. A generation whose regions all show nothing has no label unless a
    whole image decides.

    Args:
        pairs: Similarities to each reference.
        foreground_fraction: See `label_pair`, as for the others.
        rule: Name of a rule.
        tau: Threshold of similarity.
        beta: Share of the image at or below which a region counts as absent.

    Example:
        >>> pairs = [PairSimilarity("horse", 0.4, 0.93, 0.1), PairSimilarity("beach", 0.3, 0.2, 0.9)]
        >>> label = label_generation(pairs, foreground_fraction=0.3)
        >>> label.label, label.foreground_reference_id, label.background_reference_id
        ('FM', 'horse', 'beach')
    """
    counted = sorted(pairs, key=lambda pair: pair.reference_id)
    undecided = _undecided(counted, foreground_fraction, beta)
    region = getattr(load_rule(rule), "RANKED_BY", None)
    if region is not None:
        decided = [pair for pair in counted if getattr(pair, region) is not None]
        counted = [max(decided, key=lambda pair: getattr(pair, region))] if decided else []
    labels = [
        label_pair(pair, foreground_fraction=foreground_fraction, rule=rule, tau=tau, beta=beta) for pair in counted
    ]
    label = _most_severe(labels, foreground_fraction, undecided, beta)
    copied = [copied_regions(pair, foreground_fraction=foreground_fraction, tau=tau, beta=beta) for pair in counted]
    with_foreground = [pair for pair, regions in zip(counted, copied, strict=True) if regions.foreground]
    with_background = [pair for pair, regions in zip(counted, copied, strict=True) if regions.background]
    full, full_reference = _first(counted, "full")
    foreground, foreground_reference = _first(with_foreground or counted, FOREGROUND)
    background, background_reference = _first(with_background or counted, BACKGROUND)
    return GenerationLabel(
        label,
        full_similarity=full,
        foreground_similarity=foreground,
        background_similarity=background,
        full_reference_id=full_reference,
        foreground_reference_id=foreground_reference,
        background_reference_id=background_reference,
        foreground_copied=_is_copied(with_foreground, FOREGROUND, undecided),
        background_copied=_is_copied(with_background, BACKGROUND, undecided),
        transform=_transform(counted, labels, label),
        undecided=", ".join(undecided) or None,
    )


def matches(label: Label | None) -> bool:
    """True if a pair of this label shows a copied region."""
    return label is not None and label != "NM"


def _most_severe(
    labels: list[Label | None], foreground_fraction: float | None, undecided: tuple[str, ...], beta: float
) -> Label | None:
    decided = sorted((label for label in labels if label is not None), key=SEVERITY.__getitem__)
    if foreground_fraction is None:
        return "VM" if "VM" in decided else None
    if decided and decided[-1] != "NM":
        return decided[-1]
    return None if undecided and set(undecided) == set(_present(foreground_fraction, beta)) else "NM"


def _present(foreground_fraction: float, beta: float) -> tuple[str, ...]:
    """The regions that a generation has."""
    has_foreground, has_background = foreground_fraction > beta, foreground_fraction < 1 - beta
    return (FOREGROUND,) * has_foreground + (BACKGROUND,) * has_background


def _undecided(pairs: list[PairSimilarity], foreground_fraction: float | None, beta: float) -> tuple[str, ...]:
    """Parts of a generation of which nothing can be said."""
    if foreground_fraction is None:
        return (_MATTE,)
    plain = pairs[0].undecided_regions if pairs else ()
    return tuple(region for region in _present(foreground_fraction, beta) if region in plain)


def _is_copied(pairs: list[PairSimilarity], region: str, undecided: tuple[str, ...]) -> bool | None:
    """True if pairs show that a region is copied; None where nothing can be said."""
    return True if pairs else (None if {region, _MATTE} & set(undecided) else False)


def _area(areas: tuple[float, ...], similarities: tuple[float | None, ...], low: float, high: float) -> float:
    values = zip(areas, similarities, strict=True)
    return sum(area for area, value in values if value is not None and low <= value < high)


def _reaches(similarity: float | None, tau: float) -> bool:
    return similarity is not None and similarity >= tau


def _first(pairs: list[PairSimilarity], region: str) -> tuple[float | None, str | None]:
    values = [(getattr(pair, region), pair.reference_id) for pair in pairs]
    usable = [(value, name) for value, name in values if value is not None and not math.isnan(value)]
    return max(usable, key=lambda item: item[0], default=(None, None))


def _transform(pairs: list[PairSimilarity], labels: list[Label | None], label: Label | None) -> str | None:
    deciding = [pair for pair, of_pair in zip(pairs, labels, strict=True) if matches(label) and of_pair == label]
    best = max(deciding or pairs, key=lambda pair: pair.full, default=None)
    return None if best is None else best.transform
