"""Studies of the paper's open questions."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT
from fbmem_core.store.schemas.table import INTEGER, REAL, TEXT, Column, Table

STUDIES = Table(
    "studies",
    "One row per study and quantity: its value with an interval, and what it says in a sentence.",
    key=("checkpoint", "study", "subject", "quantity"),
    columns=(
        CHECKPOINT,
        Column("study", TEXT, "cluster_range, domains, foreground_probe, consistency or policy"),
        Column("subject", TEXT, "what it is measured on: a method, a domain, another checkpoint, a tag"),
        Column("quantity", TEXT, "what is measured"),
        Column("value", REAL, "of the quantity; null: it cannot be measured"),
        Column("low", REAL, "lower end of its 95 % interval; null: there is none"),
        Column("high", REAL, "upper end"),
        Column("num", INTEGER, "independent cases behind it"),
        Column("sentence", TEXT, "what it says"),
    ),
)
TABLES = (STUDIES,)
