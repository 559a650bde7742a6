"""Label rules, one file each: from the evidence of one pair to its label, and what the search must make exact for it.

A rule is one file of this folder; its name is what an audit file calls it. Its function `label` gives the label of a
`Case`. Without more, a generation has the most severe label over all its pairs, and exact is every pair with a region
of at least tau. A rule that looks at one pair alone, that of the highest similarity by a region, names the region in
`RANKED_BY`: then the search makes that pair exact too. Nothing else has to be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal, Protocol, cast

from fbmem_core.errors import InputError

Label = Literal["VM", "FM", "BM", "NM"]
DEFAULT_RULE = "per_region"


@dataclass(frozen=True)
class Case:
    """Evidence of one generation against one reference.

    Attributes:
        full: Similarity of the whole images, in [0, 1].
        foreground: Similarity of the foregrounds; None where undefined.
        background: Similarity of the backgrounds; None where undefined.
        foreground_copied: The foreground is a copy, judged object by object; None where undecided.
        background_copied: The background is a copy; None where undecided.
        whole_copied: Every region that the generation has is a copy.
        foreground_fraction: Share of the generation that is foreground; None when its matte is undecided.
        tau: From this similarity on, a region counts as copied.
        beta: A region of at most this share of the image counts as absent.
    """

    full: float
    foreground: float | None
    background: float | None
    foreground_copied: bool | None
    background_copied: bool | None
    whole_copied: bool
    foreground_fraction: float | None
    tau: float
    beta: float

    @property
    def similar_regions(self) -> tuple[bool, bool]:
        """Foreground and background: present, and as similar as tau."""
        fraction = 0.0 if self.foreground_fraction is None else self.foreground_fraction
        foreground, background = self.foreground or 0.0, self.background or 0.0
        return fraction > self.beta and foreground >= self.tau, fraction < 1 - self.beta and background >= self.tau


class Rule(Protocol):
    """A module of this folder."""

    RANKED_BY: str | None

    def label(self, case: Case) -> Label | None:
        """The label of one pair; None: undecided."""
        ...


def rule_names() -> tuple[str, ...]:
    """Names of all rules, the default first."""
    return tuple(sorted((module.name for module in iter_modules(__path__)), key=lambda n: (n != DEFAULT_RULE, n)))


@cache
def load_rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        InputError: There is no such rule.

    Example:
        >>> load_rule("paper").label(Case(0.9, None, None, None, None, False, None, 0.8, 0.03))
        'VM'
    """
    if name not in rule_names():
        raise InputError(f"one of {', '.join(rule_names())}", f"`{name}`", where="the label rule", cure="Choose one.")
    return cast(Rule, import_module(f"{__name__}.{name}"))


def ranking_regions() -> tuple[str, ...]:
    """Regions by whose highest pair some rule labels, sorted.

    >>> ranking_regions()
    ('average',)
    """
    regions = {getattr(load_rule(name), "RANKED_BY", None) for name in rule_names()}
    return tuple(sorted(region for region in regions if region is not None))


def joined(foreground: bool, background: bool, *, both: Label) -> Label:
    """The label of two regions that are copies or not; `both` where both are."""
    if foreground and background:
        return both
    if foreground:
        return "FM"
    return "BM" if background else "NM"
