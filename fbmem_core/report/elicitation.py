"""Ways in which copies were elicited, never added up: ordinary prompt, paraphrase, optimised embedding, its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.store.intervals import clopper_pearson

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]
WAYS = {
    "ordinary": (
        "ordinary prompt", "regurgitation", "The text alone, sampled as the settings say: any user can come upon it."
    ),
    "paraphrase": (
        "paraphrase", "extraction", "A neighbouring text, sampled alike: a user who looks for it can come upon it."
    ),
    "adversarial": (
        "optimised embedding", "reconstruction",
        "An embedding optimised towards the picture, which no text may reach: the weights can still draw it.",
    ),
    "control": (
        "its control", "control",
        "The same, towards pictures that the model never saw: what succeeds here is the strength of the attack alone.",
    ),
}  # fmt: skip
_MITIGATED = """
SELECT f.method, count(DISTINCT f.prompt_id) FILTER (f.is_copy) AS k, count(DISTINCT f.prompt_id) AS n
FROM mitigated_findings f JOIN prompt_findings p USING (checkpoint, prompt_id)
WHERE f.checkpoint = ? AND p.k > 0 AND f.label IS NOT NULL GROUP BY f.method ORDER BY f.method
"""
_ATTACKED = """
SELECT method, attack, num_returned AS k, num_units AS n, low, high FROM attack_shares WHERE checkpoint = ?
ORDER BY method, attack
"""


def elicitations(db: duckdb.DuckDBPyConnection, checkpoint: str, *, num_copied: int, num_prompts: int) -> list[Row]:
    """One row per model (as it is, or mitigated) and way: of how many units it brought a copy forth.

    Args:
        db: With the views of the store.
        checkpoint: Its partition.
        num_copied: Prompts of the audited model with a copy.
        num_prompts: All its prompts.

    Returns:
        Rows with `method`, `way`, `name`, `sense`, `means`, `unit`, `k`, `n` and the exact 95 % interval `low`, `high`.
        Units of ordinary prompts are prompts; those of attacks are prompts too, those of one copied thing together.
    """
    rows = [_row(UNMITIGATED, "ordinary", "prompts", (num_copied, num_prompts))]
    mitigated = {method: (k, n) for method, k, n in db.execute(_MITIGATED, [checkpoint]).fetchall()}
    attacked = db.execute(_ATTACKED, [checkpoint]).fetchall()
    for method, counts in mitigated.items():
        rows.append(_row(method, "ordinary", "prompts that copied before", counts))
        rows += [
            _row(method, way, "copied things", (k, n)) | {"low": low, "high": high}
            for name, way, k, n, low, high in attacked
            if name == method
        ]
    return rows


def _row(method: str, way: str, unit: str, counts: tuple[int, int]) -> Row:
    low, high = clopper_pearson(*counts) if counts[1] else (0.0, 1.0)
    name, sense, means = WAYS[way]
    return {"method": method, "way": way, "name": name, "sense": sense, "means": means, "unit": unit, "k": counts[0],
            "n": counts[1], "low": low, "high": high}  # fmt: skip
