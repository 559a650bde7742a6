"""Measurements behind findings: the copied regions of each, and what pictures that copy nothing come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]
_PLACES = """
SELECT * FROM copied_regions WHERE checkpoint = ? AND method = 'none' AND list_contains(?, prompt_id)
"""
_CONTROLS = """
SELECT * FROM thresholds t WHERE checkpoint = ? AND region = 'any' AND num_references = (
  SELECT max(num_references) FROM thresholds u WHERE u.checkpoint = t.checkpoint AND u.source = t.source)
ORDER BY is_headline DESC, source
"""
_DUPLICATES = """
SELECT least(control_id, reference_id) AS reference_id, greatest(control_id, reference_id) AS twin_reference_id,
  max(full_similarity) AS similarity
FROM control_similarities WHERE checkpoint = ? AND source = 'references' AND is_near_duplicate
GROUP BY ALL ORDER BY ALL
"""
_ROBUSTNESS = "SELECT * FROM robustness WHERE checkpoint = ? ORDER BY changes, disturbance"
_DISAGREEMENTS = """
SELECT * FROM disagreements WHERE checkpoint = ? AND method = 'none'
ORDER BY kind, greatest(similarity, sscd_similarity) DESC, prompt_id, seed
"""


def copied_places(db: duckdb.DuckDBPyConnection, checkpoint: str, images: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of `copied_regions` of these images, each against the reference that it copies, as it was compared.

    Args:
        db: With the views of the store.
        checkpoint: Its partition.
        images: Rows of `findings`, one a prompt.

    Returns:
        By prompt_id the rows of the image's regions, all with one `map_path`; prompts without any are missing.
    """
    of_pair: dict[tuple[str, int, str], dict[str, list[Row]]] = {}
    for row in _rows(db, _PLACES, checkpoint, [image["prompt_id"] for image in images]):
        key = row["prompt_id"], row["seed"], row["reference_id"]
        of_pair.setdefault(key, {}).setdefault(row["transform"], []).append(row)
    places = {}
    for image in images:
        by_transform = of_pair.get((image["prompt_id"], image["seed"], image["reference_id"]), {})
        if by_transform:
            first = next(iter(by_transform.values()))
            places[image["prompt_id"]] = by_transform.get(image["transform"], first)
    return places


def controls(db: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Row]:
    """Rows of `thresholds` over all references, one per kind of controls, that of the headline first."""
    return _rows(db, _CONTROLS, checkpoint)


def near_duplicates(db: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Row]:
    """Pairs of references that are whole copies of each other: `reference_id`, `twin_reference_id`, `similarity`."""
    return _rows(db, _DUPLICATES, checkpoint)


def robustness(db: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Row]:
    """Rows of `robustness`: by disturbance, how many labels flip."""
    return _rows(db, _ROBUSTNESS, checkpoint)


def disagreements(db: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Row]:
    """Rows of `disagreements` of the model as it is: where the label and SSCD do not agree."""
    return _rows(db, _DISAGREEMENTS, checkpoint)


def _rows(db: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> list[Row]:
    done = db.execute(sql, list(values))
    names = [column[0] for column in done.description or ()]
    return [dict(zip(names, row, strict=True)) for row in done.fetchall()]
