"""Reviews of findings by people: a verdict each, kept beside the computed labels and never in their place."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from fbmem_core.errors import InputError
from fbmem_core.store.tables import Store, digest

VERDICTS = ("confirmed", "rejected", "unclear")
_NEEDED = ("prompt_id", "reviewer", "verdict")
_MAX_TEXT = 2000


def write_review(
    store: Store, checkpoint: str, *, prompt_id: str, reviewer: str, verdict: str, comment: str = ""
) -> None:
    """Keep one verdict; a later one of the same reviewer and prompt takes its place.

    Raises:
        InputError: The prompt was never audited, the verdict is none of the three, or there is no name.
    """
    reviewer, comment = " ".join(reviewer.split()), comment.strip()
    if verdict not in VERDICTS:
        raise InputError(f"a verdict ({', '.join(VERDICTS)})", f"`{verdict}`", cure="Choose one of them.")
    if not reviewer or len(reviewer) > 100:
        raise InputError("the name of a reviewer", f"`{reviewer[:20]}`", cure="Give one of at most 100 letters.")
    if len(comment) > _MAX_TEXT:
        raise InputError(f"a comment of at most {_MAX_TEXT} letters", len(comment), cure="Shorten it.")
    if prompt_id not in set(store.read("prompts", checkpoint)["prompt_id"]):
        raise InputError("the id of an audited prompt", f"`{prompt_id}`", where=checkpoint, cure="See findings.csv.")
    row = {
        "prompt_id": prompt_id, "reviewer": reviewer, "verdict": verdict, "comment": comment,
        "reviewed_at": datetime.now(UTC),
    }  # fmt: skip
    store.write("reviews", checkpoint, [row], shard=digest(prompt_id, reviewer))


def read_reviews(store: Store, checkpoint: str, path: Path) -> int:
    """Keep the verdicts of a CSV file with columns prompt_id, reviewer, verdict and, if wanted, comment.

    Rows without a verdict are passed over, so that the file may be `findings.csv` with columns added.

    Returns:
        How many were kept.

    Raises:
        InputError: A column is missing, or a row cannot be used; nothing is kept then.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("a CSV file of reviews", error, where=path, cure="Save it as CSV, UTF-8.") from None
    missing = [name for name in _NEEDED if not rows or name not in rows[0]]
    if missing:
        cure = "Add the columns prompt_id, reviewer and verdict to findings.csv."
        raise InputError(f"a column `{missing[0]}`", "none", where=path, cure=cure)
    given = [row for row in rows if (row["verdict"] or "").strip()]
    prompt_ids = set(store.read("prompts", checkpoint)["prompt_id"])
    for number, row in enumerate(given, start=1):
        if (
            row["verdict"].strip() not in VERDICTS
            or row["prompt_id"] not in prompt_ids
            or not (row["reviewer"] or "").strip()
        ):
            got = f"`{row['verdict']}` of `{row['reviewer']}` for `{row['prompt_id']}`"
            cure = f"Verdicts are {', '.join(VERDICTS)}; prompts are those of findings.csv."
            raise InputError(f"a usable review in row {number}", got, where=path, cure=cure)
    for row in given:
        write_review(
            store,
            checkpoint,
            prompt_id=row["prompt_id"],
            reviewer=row["reviewer"],
            verdict=row["verdict"].strip(),
            comment=row.get("comment") or "",
        )
    return len(given)


def summary_of_reviews(reviews: Sequence[Mapping[str, Any]], num_findings: int) -> str:
    """Number of reviewed findings, and their verdicts, in one sentence.

    >>> summary_of_reviews([], 3)
    '0 of 3 findings are reviewed'
    """
    reviewed = {row["prompt_id"] for row in reviews}
    text = f"{len(reviewed)} of {num_findings} findings are reviewed"
    counts = {verdict: len({row["prompt_id"] for row in reviews if row["verdict"] == verdict}) for verdict in VERDICTS}
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    return f"{text}: {', '.join(parts)}" if parts else text


def agreement_of_reviewers(reviews: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cohen's kappa of every two reviewers over the findings that both judged; None where it is not defined."""
    from sklearn.metrics import cohen_kappa_score

    by_reviewer: dict[str, dict[str, str]] = {}
    for row in reviews:
        by_reviewer.setdefault(row["reviewer"], {})[row["prompt_id"]] = row["verdict"]
    rows = []
    for first, second in combinations(sorted(by_reviewer), 2):
        both = sorted(by_reviewer[first].keys() & by_reviewer[second].keys())
        verdicts = [[by_reviewer[name][prompt_id] for prompt_id in both] for name in (first, second)]
        kinds = {verdict for of_reviewer in verdicts for verdict in of_reviewer}
        kappa = float(cohen_kappa_score(*verdicts)) if len(kinds) > 1 else None
        same = sum(a == b for a, b in zip(*verdicts, strict=True))
        rows.append({"one": first, "other": second, "num_findings": len(both), "num_same": same, "kappa": kappa})
    return rows
