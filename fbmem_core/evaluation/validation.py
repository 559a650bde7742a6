"""Validation of labels by people: what somebody who did not see fbmem's labels says of the same images.

A file of people's labels is a CSV or a JSON list with the columns `image` and either `label` (VM, FM, BM or NM) or
`region` (full, foreground, background or none: what is copied), and, where known, `reference`: from which picture.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.evaluation.intervals import Interval, share_interval
from fbmem_core.rules import Label

LABELS: tuple[Label, ...] = get_args(Label)
UNDECIDED = "undecided"
_LABEL_OF_REGION: dict[str, Label] = {"full": "VM", "foreground": "FM", "background": "BM", "none": "NM"}
_COLUMNS = ("image", "label", "region", "reference")
_CURE = "Write a row per image: image,label,reference."


@dataclass(frozen=True)
class Opinion:
    """The label that a person, or fbmem, gives an image, and the reference that it copies, where one is named.

    `label` is None where fbmem is undecided.
    """

    image: str
    label: Label | None
    reference: str | None = None


@dataclass(frozen=True)
class Cell:
    """One label against all others: how often people and fbmem give it, and how well they agree.

    `kappa` is Cohen's, None where both always say the same one thing; `recall` the share of people's that fbmem finds.
    """

    label: Label
    num_people: int
    num_given: int
    num_both: int
    kappa: float | None
    recall: Interval


@dataclass(frozen=True)
class Validation:
    """Agreement of people and fbmem on the images that both label.

    Attributes:
        confusion: By (people's label, fbmem's label or `undecided`) the number of images.
        kappa: Cohen's kappa over all labels; an undecided image counts as a disagreement.
        agreed: Exact 95 % interval of the share of equal labels.
        cells: Each label against all others.
        num_references: Copies by both of which people name the reference.
        num_same_reference: Of them, those for which fbmem names the same.
        unlabelled: Images of the file that fbmem has no label for.
    """

    num_images: int
    confusion: Mapping[tuple[str, str], int]
    kappa: float | None
    num_agreed: int
    agreed: Interval
    cells: tuple[Cell, ...]
    num_references: int
    num_same_reference: int
    unlabelled: tuple[str, ...]


def read_opinions(path: Path) -> list[Opinion]:
    """Labels by people from a CSV or JSON file.

    Raises:
        InputError: The file is missing, is neither, lacks a column, has an unknown label or region, or labels one
            image twice in different ways. The message names the row.
    """
    opinions: dict[str, Opinion] = {}
    for number, row in enumerate(_rows(path), start=1):
        opinion = _opinion(row, f"row {number} of {path}")
        if opinions.setdefault(opinion.image, opinion) != opinion:
            got = f"two for `{opinion.image}`"
            raise InputError("one label for each image", got, where=f"row {number} of {path}", cure="Decide on one.")
    if not opinions:
        raise InputError("labels of images", "none", where=path, cure=_CURE)
    return list(opinions.values())


def validate(people: Sequence[Opinion], given: Mapping[str, Opinion]) -> Validation:
    """Compare labels by people with those that fbmem gives.

    Args:
        people: One for each image.
        given: By image, fbmem's own.

    Raises:
        InputError: No image has both.

    >>> people = [Opinion("a", "VM"), Opinion("b", "NM"), Opinion("c", "FM")]
    >>> given = {"a": Opinion("a", "VM"), "b": Opinion("b", "NM"), "c": Opinion("c", "NM")}
    >>> result = validate(people, given)
    >>> result.num_agreed, round(result.kappa, 2)
    (2, 0.5)
    """
    pairs = [(opinion, given[opinion.image]) for opinion in people if opinion.image in given]
    if not pairs:
        names = ", ".join(f"`{name}`" for name in list(given)[:3])
        cure = f"Name images as the labels do: {names}."
        raise InputError(
            "images that fbmem has labelled", f"`{people[0].image}` and the like", where="image", cure=cure
        )
    first = [str(opinion.label) for opinion, _ in pairs]
    second = [own.label or UNDECIDED for _, own in pairs]
    confusion: dict[tuple[str, str], int] = {}
    for pair in zip(first, second, strict=True):
        confusion[pair] = confusion.get(pair, 0) + 1
    agreed = sum(a == b for a, b in zip(first, second, strict=True))
    named = [
        opinion.reference == own.reference
        for opinion, own in pairs
        if opinion.reference and opinion.label != "NM" and own.label not in (None, "NM")
    ]
    return Validation(
        num_images=len(pairs),
        confusion=confusion,
        kappa=_kappa(first, second),
        num_agreed=agreed,
        agreed=share_interval(agreed, len(pairs)),
        cells=tuple(_cell(label, first, second) for label in LABELS),
        num_references=len(named),
        num_same_reference=sum(named),
        unlabelled=tuple(opinion.image for opinion in people if opinion.image not in given),
    )


def _cell(label: Label, first: Sequence[str], second: Sequence[str]) -> Cell:
    people, given = np.array(first) == label, np.array(second) == label
    both = int((people & given).sum())
    return Cell(
        label, int(people.sum()), int(given.sum()), both, _kappa(people.tolist(), given.tolist()),
        share_interval(both, int(people.sum())),
    )  # fmt: skip


def _kappa(first: Sequence[Any], second: Sequence[Any]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return None
    return float(cohen_kappa_score(first, second))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError("a file of labels by people", "no such file", where=path, cure="Give a CSV or JSON file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(text.splitlines()))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError("CSV or JSON", f"{type(error).__name__}: {error}", where=path, cure=_CURE) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("a list of objects", f"a {type(rows).__name__}", where=path, cure=_CURE)
    return rows


def _opinion(row: Mapping[str, Any], where: str) -> Opinion:
    values = {name: str(row[name]).strip() for name in _COLUMNS if row.get(name) not in (None, "")}
    if "image" not in values:
        raise InputError("a column `image`", f"{', '.join(map(str, row)) or 'nothing'}", where=where, cure=_CURE)
    label, region = values.get("label"), values.get("region")
    if (label is None) == (region is None):
        got = "neither" if label is None else "both"
        raise InputError("either a label or a region", got, where=where, cure=_CURE)
    if label is not None and label.upper() not in LABELS:
        raise InputError(f"one of {', '.join(LABELS)}", f"`{label}`", where=where, cure="Correct it.")
    if region is not None and region.lower() not in _LABEL_OF_REGION:
        raise InputError(f"one of {', '.join(_LABEL_OF_REGION)}", f"`{region}`", where=where, cure="Correct it.")
    chosen = _LABEL_OF_REGION[region.lower()] if region is not None else label
    return Opinion(values["image"], chosen if region is not None else label.upper(), values.get("reference"))  # type: ignore[union-attr,arg-type]
