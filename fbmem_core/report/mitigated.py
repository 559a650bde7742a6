"""Mitigations in a report: the grid of prompts by method, and the plot of memory left against its price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fbmem_core.labels import SEVERITY
from fbmem_core.mitigation import UNMITIGATED

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]
MAX_GRID = 60  # prompts; the others are in the tables
_CELLS = """
SELECT prompt_id, any_value(prompt) AS prompt, method, count(*) FILTER (is_copy) AS k, count(label) AS n,
  list(DISTINCT label) FILTER (is_copy) AS labels
FROM mitigated_findings WHERE checkpoint = ? AND list_contains(?, prompt_id) GROUP BY prompt_id, method
"""
_BEFORE = """
SELECT prompt_id, count(*) FILTER (is_copy) AS k, count(label) AS n FROM findings f
WHERE checkpoint = ? AND list_contains(?, prompt_id) AND EXISTS (FROM mitigated_findings m
  WHERE m.checkpoint = f.checkpoint AND m.prompt_id = f.prompt_id AND m.seed = f.seed) GROUP BY prompt_id
"""


def mitigation_grid(
    db: duckdb.DuckDBPyConnection, checkpoint: str, findings: Sequence[Row], methods: Sequence[str]
) -> list[Row]:
    """Copies of each prompt under each method, over the same seeds, `none` first.

    Args:
        db: With the views of the store.
        checkpoint: Its partition.
        findings: Rows of `prompt_findings` with copies, worst first; the first `MAX_GRID` are shown.
        methods: Names, in the order in which they are shown.

    Returns:
        A row per prompt that a mitigation was tried on: `prompt_id`, `prompt`, and `cells`, for each method its `k`
        copies of `n` labelled images and the severest `label`; None where it was not tried.
    """
    chosen = [row["prompt_id"] for row in findings]
    cells: dict[tuple[str, str], Row] = {}
    for prompt_id, _, method, k, n, labels in db.execute(_CELLS, [checkpoint, chosen]).fetchall():
        worst = max(labels or [], key=SEVERITY.__getitem__, default="NM" if n else None)
        cells[prompt_id, method] = {"k": k, "n": n, "label": worst}
    for prompt_id, k, n in db.execute(_BEFORE, [checkpoint, chosen]).fetchall():
        best = next(row["best_label"] for row in findings if row["prompt_id"] == prompt_id)
        cells[prompt_id, UNMITIGATED] = {"k": k, "n": n, "label": best if k else "NM" if n else None}
    tried = {prompt_id for prompt_id, method in cells if method != UNMITIGATED}
    shown = [row for row in findings if row["prompt_id"] in tried][:MAX_GRID]
    return [
        {"prompt_id": row["prompt_id"], "prompt": row["prompt"],
         "cells": [cells.get((row["prompt_id"], method)) for method in methods]}
        for row in shown
    ]  # fmt: skip


def pareto(mitigations: Sequence[Row]) -> list[Row]:
    """Points of memory left against side effect, in [0, 1] each, with the interval of the memory that is left.

    Args:
        mitigations: Rows of the method table: `method`, `score`, `low`, `high`, `achievable`, `side_effect`.

    Returns:
        A row per method whose side effect was measured: `method`, `side_effect` (1: other prompts' images are
        untouched), `left` with `left_low` and `left_high` (share of the severity that is left), and `is_best`: no other
        method leaves less and touches other images less.

    >>> rows = [dict(method="a", score=1.5, low=1.0, high=2.0, achievable=2.0, side_effect=0.9)]
    >>> [(p["left"], p["left_low"], p["left_high"], p["is_best"]) for p in pareto(rows)]
    [(0.25, 0.0, 0.5, True)]
    """
    points = []
    for row in mitigations:
        if row.get("side_effect") is None or row.get("score") is None or not row.get("achievable"):
            continue
        left, high, low = (_left(row[name], row["achievable"]) for name in ("score", "low", "high"))
        points.append({"method": row["method"], "side_effect": min(max(row["side_effect"], 0.0), 1.0), "left": left,
                       "left_low": low, "left_high": high})  # fmt: skip
    for point in points:
        point["is_best"] = not any(_is_better(rival, point) for rival in points)
    return points


def _left(score: float | None, achievable: float) -> float | None:
    return None if score is None else min(max(1 - score / achievable, 0.0), 1.0)


def _is_better(rival: Row, point: Row) -> bool:
    as_good = rival["left"] <= point["left"] and rival["side_effect"] >= point["side_effect"]
    return bool(as_good and (rival["left"], rival["side_effect"]) != (point["left"], point["side_effect"]))
