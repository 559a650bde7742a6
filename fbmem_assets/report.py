"""Stage report: the DuckDB file that analysts open."""

import dagster as dg

from fbmem_assets.resources import AuditStore
from fbmem_assets.tables import markdown_table
from fbmem_core.store.schemas import TABLES

STAGE = "report"


@dg.asset(
    group_name=STAGE,
    deps=["one_to_many", "seed_agreement", "cluster_neuron_sets", "cluster_sensitivity", "memorization_rates"],
    kinds={"duckdb"},
)
def warehouse(store: AuditStore) -> dg.MaterializeResult:
    """One view per table, over every audited checkpoint: `fbmem.duckdb` beside the Parquet files."""
    import duckdb

    from fbmem_core.store.warehouse import build_warehouse

    path = build_warehouse(store.tables)
    with duckdb.connect(path, read_only=True) as connection:
        counts = [
            {
                "table": name,
                "rows": connection.sql(f'SELECT count(*) FROM "{name}"').fetchall()[0][0],
                "grain": table.grain,
            }
            for name, table in TABLES.items()
        ]
    return dg.MaterializeResult(
        metadata={"dagster/uri": dg.MetadataValue.path(str(path)), "tables": markdown_table(counts)}
    )
