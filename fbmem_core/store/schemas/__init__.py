"""The public tables. Analysts and checks rely on these names.

A table is one definition, in the module of its part of the audit; a column is one line of it.
"""

from __future__ import annotations

from fbmem_core.store.schemas import (
    changes,
    detectors,
    evidence,
    inputs,
    labels,
    mitigations,
    neurons,
    robustness,
    sscd,
    studies,
    thresholds,
)
from fbmem_core.store.schemas.table import Column, Table

TABLES: dict[str, Table] = {
    table.name: table
    for module in (
        inputs,
        labels,
        sscd,
        thresholds,
        robustness,
        detectors,
        neurons,
        mitigations,
        studies,
        changes,
        evidence,
    )
    for table in module.TABLES
}

__all__ = ["TABLES", "Column", "Table"]
