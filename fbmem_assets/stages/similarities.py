"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE
from fbmem_assets.orchestration.tables import table_asset, table_result
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_core.audit.results import BASELINE, Arm
from fbmem_core.similarity import REGIONS

STAGE = "similarities"
_IMAGE = ["method", "prompt_id", "seed"]
_PAIR = [*_IMAGE, "masking", "reference_id", "transform"]


def similarities_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    @table_asset(
        table="similarities",
        stage=arm.stage(STAGE),
        deps=[arm.name("neighbors")],
        kinds={"torch"},
        name=arm.name("similarities"),
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, reference_id, masking, transform): similarities by region."""
        audit = store.open(context.partition_key)
        _score_missing(context, store, arm)
        return table_result(audit, "similarities", audit.read("similarities", arm))

    @dg.asset_check(asset=asset, partitions_def=checkpoint_partitions)
    def every_neighbor_is_scored(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
        """Every pair of `neighbors` has its row, with the value that ranked it."""
        audit = store.open(context.partition_key)
        scored = audit.read("similarities", arm)
        by_region = scored.rename({f"{region}_similarity": region for region in REGIONS})
        long = by_region.unpivot(REGIONS, index=_PAIR, variable_name="region", value_name="value")
        ranked = audit.read("neighbors", arm)
        joined = ranked.join(long, on=[*_PAIR, "region"], how="left")
        wrong = joined.filter(pl.col("value").is_null() | ((pl.col("value") - pl.col("similarity")).abs() > 1e-5))
        return dg.AssetCheckResult(
            passed=wrong.is_empty(), metadata={"neighbors": len(ranked), "differing": len(wrong)}
        )

    return asset, every_neighbor_is_scored


similarities, every_neighbor_is_scored = similarities_of(BASELINE)


def _score_missing(context: dg.AssetExecutionContext, store: AuditStore, arm: Arm) -> None:
    """`neighbors` writes the similarities of what it compares; here only those that were lost since are made again."""
    audit = store.open(context.partition_key)
    shards = {shard for shard in audit.shards("neighbors") if shard.startswith(f"{arm.shard}-")}
    if shards - audit.shards("similarities", report=context.log.warning):
        neighbors_stage.compare_missing(context, store, arm, WHOLE)
