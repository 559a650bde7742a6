"""Cards of a report: each finding with its pictures, its seeds, its regions and its references."""

from __future__ import annotations

from typing import Any

from fbmem_core.report.evidence import Evidence
from fbmem_core.report.panels import THUMBNAIL, Panels

Row = dict[str, Any]
MAX_CARDS = 150
_MAX_SEEDS = 24
_NEAR_THRESHOLD = 0.05
_PICTURES = (
    "generation", "reference", "as_compared", "copies", "difference", "foreground", "reference_foreground",
    "background", "reference_background",
)  # fmt: skip


def cards_of(evidence: Evidence, panels: Panels | None) -> list[Row]:
    """Findings, worst first, each with what its card shows.

    The pairs of all cards come before the other pictures of any, so that what has no place is the least needed.

    Args:
        evidence: What `gather` gives.
        panels: Pictures; None for a report without any.
    """
    cards = [_facts(row, evidence) for row in evidence.findings[:MAX_CARDS]]
    if panels is None:
        return cards
    for card in cards:
        best = card["best"]
        card["pictures"] |= {
            "generation": panels.generation(best), "reference": panels.reference(best["reference_path"]),
        }  # fmt: skip
    for card in cards:
        _add_details(card, panels, evidence.places.get(card["prompt_id"], []))
    for card in cards:
        for image in card["seeds"]:
            image["picture"] = panels.generation(image, side=THUMBNAIL)
    return cards


def _facts(row: Row, evidence: Evidence) -> Row:
    best, images = row["best"], evidence.images[row["prompt_id"]]
    counts: dict[str, int] = {}
    for image in images:
        if image["is_copy"]:
            counts[image["reference_id"]] = counts.get(image["reference_id"], 0) + 1
    regions = [
        {"name": name, "similarity": best[f"{name}_similarity"], "reference_id": best[f"{name}_reference_id"]}
        for name in ("full", "foreground", "background")
    ]
    return row | {
        "pictures": dict.fromkeys(_PICTURES), "places": [], "regions": regions, "anchor": row["prompt_id"],
        "seeds": [image | {"picture": None} for image in images[:_MAX_SEEDS]],
        "num_more_seeds": max(0, len(images) - _MAX_SEEDS), "reference_pictures": [],
        "reference_counts": sorted(counts.items(), key=lambda item: -item[1]),
        "is_near_threshold": abs(best["margin"] or 1.0) < _NEAR_THRESHOLD,
        "change": _change_of(row["prompt_id"], evidence),
        "reviews": [review for review in evidence.reviews if review["prompt_id"] == row["prompt_id"]],
        "sql": f"select * from findings where checkpoint = '{evidence.checkpoint}' and prompt_id = "
        f"'{str(row['prompt_id']).replace(chr(39), chr(39) * 2)}'",
        "reproduce": f"fbmem reproduce {row['prompt_id']}/{best['seed']} --partition {evidence.checkpoint}",
    }  # fmt: skip


def _add_details(card: Row, panels: Panels, places: list[Row]) -> None:
    best = card["best"]
    card["pictures"] |= {
        "difference": panels.difference(best),
        "foreground": panels.foreground(best),
        "reference_foreground": panels.reference_foreground(best),
        "background": panels.background(best),
        "reference_background": panels.reference_background(best),
        "as_compared": panels.as_compared(best),
    }
    kept = panels.file(places[0]["map_path"]) if places else None
    card["pictures"]["copies"], card["places"] = (kept, places) if kept is not None else panels.copies(best)
    if len(card["reference_counts"]) > 1:
        paths = {image["reference_id"]: image["reference_path"] for image in card["seeds"]}
        names = [name for name, _ in card["reference_counts"] if name in paths]
        card["reference_pictures"] = [panels.reference(paths[name], side=THUMBNAIL) for name in names]


def _change_of(prompt_id: str, evidence: Evidence) -> str:
    return next((row["change"] for row in evidence.changes["rows"] if row["prompt_id"] == prompt_id), "")
