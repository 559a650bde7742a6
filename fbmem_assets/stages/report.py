"""Stage report: the DuckDB file that analysts open."""

import dagster as dg

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table
from fbmem_core.store.schemas import TABLES

STAGE = "report"


@dg.asset(
    group_name=STAGE,
    deps=[
        "one_to_many",
        "seed_agreement",
        "cluster_neuron_sets",
        "cluster_sensitivity",
        "detectors",
        "cluster_range",
        "domains",
        "foreground_traits",
        "checkpoint_consistency",
        "policy",
        "mitigated_one_to_many",
        "mitigation_scores",
        "image_quality",
        "attacks",
        "memorization_rates",
    ],
    kinds={"duckdb"},
)
def warehouse(store: AuditStore) -> dg.MaterializeResult:
    """One view per table, over every audited checkpoint: `fbmem.duckdb` beside the Parquet files."""
    from fbmem_core.store.warehouse import build_warehouse, query

    path = build_warehouse(store.tables)
    counts = query(
        store.tables, " UNION ALL ".join(f"SELECT '{t}' AS name, count(*) AS n FROM \"{t}\"" for t in TABLES)
    )
    num = dict(counts.iter_rows()) if counts is not None else {}
    rows = [{"table": name, "rows": num.get(name), "grain": table.grain} for name, table in TABLES.items()]
    return dg.MaterializeResult(
        metadata={"dagster/uri": dg.MetadataValue.path(str(path)), "tables": markdown_table(rows)}
    )
