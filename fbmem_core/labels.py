"""Labels of (generation, reference) pairs and of generations: VM, FM, BM or NM."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Label = Literal["VM", "FM", "BM", "NM"]
Rule = Literal["paper", "released", "per_region"]
# arXiv 2508.12148: the threshold of similarity, and the share of area at or below which a region counts as absent
TAU = 0.8
BETA = 0.03
# arXiv 2508.12148: foreground copies carry the copyright and privacy risk
SEVERITY: dict[str, float] = {"VM": 2.0, "FM": 1.5, "BM": 0.5, "NM": 0.0}


@dataclass(frozen=True)
class PairSimilarity:
    """Similarity of one generation to one reference: values in [0, 1], None where undecided or undefined."""

    reference_id: str
    full: float
    foreground: float | None
    background: float | None

    @property
    def average(self) -> float | None:
        """Mean of foreground and background similarity."""
        if self.foreground is None or self.background is None:
            return None
        return (self.foreground + self.background) / 2


@dataclass(frozen=True)
class GenerationLabel:
    """A generation's label, its highest similarity by each criterion, and the reference that each came from."""

    label: Label | None
    full_similarity: float | None
    foreground_similarity: float | None
    background_similarity: float | None
    full_reference_id: str | None
    foreground_reference_id: str | None
    background_reference_id: str | None


def label_pair(
    full: float,
    foreground: float | None,
    background: float | None,
    *,
    foreground_fraction: float | None,
    rule: Rule = "paper",
    tau: float = TAU,
    beta: float = BETA,
) -> Label | None:
    """The label of one generation against one reference.

    Args:
        full: Similarity of the whole images, in [0, 1].
        foreground: Similarity of the foregrounds; None when undecided.
        background: Similarity of the backgrounds; None when undecided.
        foreground_fraction: Share of the generation that is foreground; None when its matte is undecided.
        rule: `paper` tests the full image first, `released` never does. `per_region` is VM if every region that the
            generation has is copied, whatever the full image says: a large copied foreground does not make the whole
            verbatim, nor does a copied background with a small new object.
        tau: From this similarity on, a region counts as copied.
        beta: A region of at most this share of the image counts as absent.

    Returns:
        The label, or None when the matte is undecided and the full image does not decide.
    """
    whole_decides = rule == "paper" or (rule == "per_region" and foreground_fraction is None)
    if whole_decides and full >= tau:
        return "VM"
    if foreground_fraction is None:
        return None
    has_foreground = foreground_fraction > beta
    has_background = foreground_fraction < 1 - beta
    same_foreground = has_foreground and foreground is not None and foreground >= tau
    same_background = has_background and background is not None and background >= tau
    if same_foreground and same_background:
        return "VM"
    if rule == "per_region" and (same_foreground or same_background) and not (has_foreground and has_background):
        return "VM"
    if same_foreground:
        return "FM"
    return "BM" if same_background else "NM"


def label_generation(
    pairs: Iterable[PairSimilarity],
    *,
    foreground_fraction: float | None,
    rule: Rule = "paper",
    tau: float = TAU,
    beta: float = BETA,
) -> GenerationLabel:
    """The label of a generation over all its pairs; see `label_pair` for the arguments.

    Rules `paper` and `per_region`: the most severe pair over all references, so foreground and background may come from
    different ones. Rule `released`: the pair of highest average similarity alone. Of equally similar references the
    first by id counts.
    """
    counted = sorted(pairs, key=lambda pair: pair.reference_id)
    if rule == "released":
        decided = [pair for pair in counted if pair.average is not None]
        counted = [max(decided, key=lambda pair: pair.average or 0.0)] if decided else []
    labels = [
        label_pair(
            pair.full, pair.foreground, pair.background,
            foreground_fraction=foreground_fraction, rule=rule, tau=tau, beta=beta,
        )
        for pair in counted
    ]  # fmt: skip
    decided_labels: list[Label] = [label for label in labels if label is not None]
    by_severity = sorted(decided_labels, key=_severity)
    label: Label | None = by_severity[-1] if by_severity else None
    if label is not None and label != "VM" and foreground_fraction is None:
        label = None
    if not counted and foreground_fraction is not None:
        label = "NM"
    full, foreground, background = (_best(counted, region) for region in ("full", "foreground", "background"))
    return GenerationLabel(label, full[0], foreground[0], background[0], full[1], foreground[1], background[1])


def matches(label: Label | None) -> bool:
    """True if a pair of this label shows a copied region."""
    return label is not None and label != "NM"


def _severity(label: Label) -> float:
    return SEVERITY[label]


def _best(pairs: list[PairSimilarity], region: str) -> tuple[float | None, str | None]:
    values = [(getattr(pair, region), pair.reference_id) for pair in pairs]
    usable = [(value, reference_id) for value, reference_id in values if value is not None and not math.isnan(value)]
    return max(usable, key=lambda item: item[0], default=(None, None))
