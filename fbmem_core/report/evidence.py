"""Contents of a report: every number of it, read from the store, before any page is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from fbmem_core.errors import InputError
from fbmem_core.labels import SEVERITY
from fbmem_core.report import measured
from fbmem_core.report.elicitation import elicitations
from fbmem_core.report.headline import headline
from fbmem_core.report.mitigated import mitigation_grid, pareto
from fbmem_core.report.settings_table import differing_settings
from fbmem_core.store.tables import Store
from fbmem_core.store.warehouse import connect

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]
LABELS = ("VM", "FM", "BM", "NM")
NEAR = 0.2  # by how much a near miss may be below tau
_MAX_ROWS = 200  # of any list on the page
_TAUS = (0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True)
class Evidence:
    """Everything that the report of one audited checkpoint says, but for its pictures.

    Attributes:
        audit: The row of the view `audits`.
        settings: The whole audit, as the labels were made with.
        counts: Images by label, `undecided` among them.
        headline: Sentences and numbers of the first screen.
        findings: One row per prompt with a copy, worst first: `prompt_findings` and the best image's `findings`.
        images: By prompt_id, its images in the order of seeds (rows of `findings`).
        references: Rows of `reference_findings`, most copied first.
        near: Images that are no copy, but almost; nearest first.
        undecided: Images without a label.
        rejected: What the stages left out.
        similarities: By label, how similar the images are.
        thresholds: Labels by threshold.
        controls: What pictures that copy nothing come to, by kind: rows of the table `thresholds`.
        places: By prompt_id, the copied regions of its best image.
        duplicates: Pairs of references that are near-duplicates of each other.
        robustness: By disturbance, how many labels flip.
        disagreements: Images on which the label and SSCD do not agree.
        checks: Rows of `checks`.
        records: Rows of `records`, in the order in which they began.
        reviews: Rows of `reviews`.
        agreement: Rows of `seed_agreement` beside the prompt's label.
        elicited: By model (as it is, or mitigated) and way, how often a copy was brought forth; see `elicitations`.
        mitigations: One row per method.
        grid: By prompt, its copies under each method of `mitigations`.
        pareto: By method, memory left against its price.
        changes: Against the checkpoint before it or another one.
        truncated: By list, how many rows it has beyond those that are shown.
    """

    checkpoint: str
    audit: Row
    settings: Row
    counts: dict[str, int]
    headline: Row
    findings: list[Row]
    images: dict[str, list[Row]]
    references: list[Row]
    near: list[Row]
    undecided: list[Row]
    rejected: list[Row]
    similarities: dict[str, list[float]]
    thresholds: list[Row]
    controls: list[Row]
    places: dict[str, list[Row]]
    duplicates: list[Row]
    robustness: list[Row]
    disagreements: list[Row]
    checks: list[Row]
    records: list[Row]
    reviews: list[Row]
    agreement: list[Row]
    elicited: list[Row]
    mitigations: list[Row]
    grid: list[Row]
    pareto: list[Row]
    changes: Row
    truncated: dict[str, int] = field(default_factory=dict)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def gather(store: Store, checkpoint: str, *, compare: str | None = None, mitigations: Sequence[Row] = ()) -> Evidence:
    """Read the evidence of one audited checkpoint.

    Args:
        store: Where the audit lies.
        checkpoint: Its partition.
        compare: Another partition, in the place of the checkpoint before it.
        mitigations: One row per method, where mitigations were tried.

    Raises:
        InputError: The checkpoint has no labels.
    """
    with connect(store, "prompt_findings") as db:
        audits = _rows(db, "SELECT * FROM audits WHERE checkpoint = ?", checkpoint)
        if not audits:
            cure = "Run `fbmem audit` first."
            raise InputError("an audited checkpoint with labels", f"`{checkpoint}`", where=store.root, cure=cure)
        prompts = _rows(db, "SELECT * FROM prompt_findings WHERE checkpoint = ?", checkpoint)
        copied = sorted((row for row in prompts if row["k"]), key=_badness, reverse=True)
        images = _images(db, checkpoint, [row["prompt_id"] for row in copied[:_MAX_ROWS]])
        counts = dict.fromkeys((*LABELS, "undecided"), 0) | {
            row["label"] or "undecided": row["num"]
            for row in _rows(
                db, "SELECT label, count(*) AS num FROM findings WHERE checkpoint = ? GROUP BY label", checkpoint
            )
        }
        references = _rows(
            db,
            "SELECT * FROM reference_findings WHERE checkpoint = ? ORDER BY num_images DESC, best_similarity DESC, 2",
            checkpoint,
        )
        near = _rows(
            db,
            f"SELECT * FROM findings WHERE checkpoint = ? AND label = 'NM' AND margin >= -{NEAR} ORDER BY margin DESC",
            checkpoint,
        )
        undecided = _rows(
            db, "SELECT * FROM findings WHERE checkpoint = ? AND label IS NULL ORDER BY prompt_id, seed", checkpoint
        )
        rejected = _rows(db, "SELECT * FROM rejected WHERE checkpoint = ? ORDER BY ALL", checkpoint)
        lists = {
            "findings": copied,
            "references": references,
            "near": near,
            "undecided": undecided,
            "rejected": rejected,
            "duplicates": measured.near_duplicates(db, checkpoint),
            "disagreements": measured.disagreements(db, checkpoint),
        }
        heading = headline(prompts, counts, audits[0])
        return Evidence(
            checkpoint=checkpoint,
            audit=audits[0],
            settings=json.loads(audits[0]["settings"]),
            counts=counts,
            headline=heading,
            findings=[row | {"best": _best(row, images)} for row in copied[:_MAX_ROWS]],
            images=images,
            references=references[:_MAX_ROWS],
            near=near[:_MAX_ROWS],
            undecided=undecided[:_MAX_ROWS],
            rejected=rejected[:_MAX_ROWS],
            similarities=_similarities(db, checkpoint),
            thresholds=_thresholds(db, checkpoint, audits[0]),
            controls=measured.controls(db, checkpoint),
            places=measured.copied_places(db, checkpoint, [_best(row, images) for row in copied[:_MAX_ROWS]]),
            duplicates=lists["duplicates"][:_MAX_ROWS],
            robustness=measured.robustness(db, checkpoint),
            disagreements=lists["disagreements"][:_MAX_ROWS],
            checks=_rows(db, "SELECT * FROM checks WHERE checkpoint = ? ORDER BY checked_at", checkpoint),
            records=_rows(db, "SELECT * FROM records WHERE checkpoint = ? ORDER BY started_at", checkpoint),
            reviews=_rows(db, "SELECT * FROM reviews WHERE checkpoint = ? ORDER BY prompt_id, reviewer", checkpoint),
            agreement=_agreement(db, checkpoint),
            elicited=elicitations(
                db, checkpoint, num_copied=heading["num_prompts_copied"], num_prompts=heading["num_prompts"]
            ),
            mitigations=list(mitigations),
            grid=mitigation_grid(db, checkpoint, copied, [row["method"] for row in mitigations]),
            pareto=pareto(mitigations),
            changes=_changes(db, checkpoint, compare),
            truncated={name: len(rows) - _MAX_ROWS for name, rows in lists.items() if len(rows) > _MAX_ROWS},
        )


def _badness(row: Row) -> tuple[float, float, float]:
    return SEVERITY[row["best_label"]], row["share"] or 0.0, row["best_similarity"] or 0.0


def _rows(db: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> list[Row]:
    done = db.execute(sql, list(values))
    names = [column[0] for column in done.description or ()]
    return [dict(zip(names, row, strict=True)) for row in done.fetchall()]


def _images(db: duckdb.DuckDBPyConnection, checkpoint: str, prompt_ids: list[str]) -> dict[str, list[Row]]:
    sql = "SELECT * FROM findings WHERE checkpoint = ? AND list_contains(?, prompt_id) ORDER BY prompt_id, seed"
    images: dict[str, list[Row]] = {prompt_id: [] for prompt_id in prompt_ids}
    for row in _rows(db, sql, checkpoint, prompt_ids) if prompt_ids else []:
        images[row["prompt_id"]].append(row | {"runner_up_id": None, "runner_up_similarity": None})
    for row in _runners_up(db, checkpoint, prompt_ids) if prompt_ids else []:
        for image in images[row["prompt_id"]]:
            if image["seed"] == row["seed"]:
                image |= {"runner_up_id": row["reference_id"], "runner_up_similarity": row["similarity"]}
    return images


def _runners_up(db: duckdb.DuckDBPyConnection, checkpoint: str, prompt_ids: list[str]) -> list[Row]:
    """References that come next, one for each image, by the region that the finding names."""
    return _rows(
        db,
        """
        SELECT f.prompt_id, f.seed, arg_max(n.reference_id, n.similarity) AS reference_id,
          max(n.similarity) AS similarity
        FROM findings f JOIN audit_settings a USING (checkpoint) JOIN neighbors n ON n.checkpoint = f.checkpoint
          AND n.method = 'none' AND n.prompt_id = f.prompt_id AND n.seed = f.seed AND n.masking = a.masking
          AND n.region = f.region AND n.reference_id <> f.reference_id
        WHERE f.checkpoint = ? AND list_contains(?, f.prompt_id) GROUP BY f.prompt_id, f.seed
        """,
        checkpoint,
        prompt_ids,
    )


def _best(row: Row, images: dict[str, list[Row]]) -> Row:
    return next(image for image in images[row["prompt_id"]] if image["seed"] == row["best_seed"])


def _similarities(db: duckdb.DuckDBPyConnection, checkpoint: str) -> dict[str, list[float]]:
    """Numbers of images by label, in each of twenty bins of similarity from 0 to 1."""
    sql = (
        "SELECT coalesce(label, 'undecided'), similarity FROM findings WHERE checkpoint = ? AND similarity IS NOT NULL"
    )
    values: dict[str, list[float]] = {}
    for label, similarity in db.execute(sql, [checkpoint]).fetchall():
        values.setdefault(label, []).append(similarity)
    return {
        label: np.histogram(similarities, bins=20, range=(0, 1))[0].tolist() for label, similarities in values.items()
    }


def _thresholds(db: duckdb.DuckDBPyConnection, checkpoint: str, audit: Row) -> list[Row]:
    """Numbers of images with a copied region at other values of tau: the whole, the foreground or the background."""
    sql = """
        SELECT count(*) FILTER (full_similarity >= $tau) AS whole,
          count(*) FILTER (foreground_similarity >= $tau AND foreground_fraction > $beta) AS foreground,
          count(*) FILTER (background_similarity >= $tau AND foreground_fraction < 1 - $beta) AS background
        FROM findings WHERE checkpoint = $checkpoint
    """
    rows = []
    for tau in sorted({*_TAUS, audit["tau"]}):
        values = {"tau": tau, "beta": audit["beta"], "checkpoint": checkpoint}
        [counts] = db.execute(sql, values).fetchall()
        rows.append({"tau": tau, "whole": counts[0], "foreground": counts[1], "background": counts[2]})
    return rows


def _agreement(db: duckdb.DuckDBPyConnection, checkpoint: str) -> list[Row]:
    sql = """
        SELECT s.prompt_id, s.inside, s.outside, s.predicted_label, p.k, p.n, p.best_label
        FROM seed_agreement s JOIN prompt_findings p USING (checkpoint, prompt_id)
        WHERE checkpoint = ? ORDER BY s.prompt_id
    """
    return _rows(db, sql, checkpoint)


def _changes(db: duckdb.DuckDBPyConnection, checkpoint: str, compare: str | None) -> Row:
    """Prompts that changed, against the checkpoint before it, or another one by the same prompts' texts."""
    if compare is None:
        rows = _rows(db, "SELECT * FROM audit_diff WHERE checkpoint = ? AND change <> 'same'", checkpoint)
        rates = _rows(db, "SELECT * FROM memorization_rates WHERE checkpoint = ? AND previous IS NOT NULL", checkpoint)
        previous = rates[0]["previous"] if rates else None
        differing = [] if previous is None else _differing(db, previous, checkpoint)
        return {"previous": previous, "rows": rows, "rate": rates[0] if rates else None, "differing": differing}
    if not _rows(db, "SELECT 1 FROM audits WHERE checkpoint = ?", compare):
        raise InputError("an audited checkpoint to compare with", f"`{compare}`", cure="Give a partition of the store.")
    rows = _rows(db, _COMPARED, compare, checkpoint)
    return {
        "previous": compare,
        "rows": [row for row in rows if row["label_before"] != row["label_after"]],
        "rate": None,
        "differing": _differing(db, compare, checkpoint),
    }


def _differing(db: duckdb.DuckDBPyConnection, before: str, after: str) -> list[Row]:
    sql = "SELECT checkpoint, settings FROM audit_settings WHERE checkpoint IN (?, ?)"
    settings = {row["checkpoint"]: json.loads(row["settings"]) for row in _rows(db, sql, before, after)}
    return differing_settings(settings.get(before, {}), settings.get(after, {}))


_COMPARED = """
WITH before AS (SELECT * FROM prompt_findings WHERE checkpoint = ?), after AS (
  SELECT * FROM prompt_findings WHERE checkpoint = ?)
SELECT coalesce(a.prompt_id, b.prompt_id) AS prompt_id, coalesce(a.prompt, b.prompt) AS prompt,
  CASE WHEN b.prompt IS NULL THEN 'added' WHEN a.prompt IS NULL THEN 'removed' WHEN a.k > 0 AND b.k = 0
    THEN 'newly_memorized' WHEN a.k = 0 AND b.k > 0 THEN 'no_longer_memorized' ELSE 'other_label' END AS change,
  CASE WHEN b.k > 0 THEN b.best_label WHEN b.n > 0 THEN 'NM' END AS label_before,
  CASE WHEN a.k > 0 THEN a.best_label WHEN a.n > 0 THEN 'NM' END AS label_after
FROM after a FULL JOIN before b ON a.prompt = b.prompt ORDER BY change, 1
"""
