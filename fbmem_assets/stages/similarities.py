"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE
from fbmem_assets.orchestration.tables import table_asset, table_result
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint
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
        shards=f"{arm.shard}*",
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, reference_id, masking, transform): similarities by region."""
        audit = store.open(context.partition_key)
        _score_missing(context, store, arm)
        return table_result(audit, "similarities", audit.read("similarities", arm))

    @table_check(asset)
    def every_neighbor_is_scored(audit: AuditedCheckpoint) -> Verdict:
        """Check that every pair of `neighbors` has its row, with the value that ranked it."""
        scored = audit.read("similarities", arm)
        by_region = scored.rename({f"{region}_similarity": region for region in REGIONS})
        long = by_region.unpivot(REGIONS, index=_PAIR, variable_name="region", value_name="value")
        ranked = audit.read("neighbors", arm)
        joined = ranked.join(long, on=[*_PAIR, "region"], how="left")
        wrong = joined.filter(pl.col("value").is_null() | ((pl.col("value") - pl.col("similarity")).abs() > 1e-5))
        if ranked.is_empty():
            return Verdict(None, "there are no neighbors")
        sentence = f"{len(wrong)} of {len(ranked)} neighbors differ from their similarity"
        return Verdict(wrong.is_empty(), sentence, {"neighbors": len(ranked), "differing": len(wrong)})

    return asset, every_neighbor_is_scored


similarities, every_neighbor_is_scored = similarities_of(BASELINE)


def _score_missing(context: dg.AssetExecutionContext, store: AuditStore, arm: Arm) -> None:
    """`neighbors` writes the similarities of what it compares; here only those that were lost since are made again."""
    audit = store.open(context.partition_key)
    shards = {shard for shard in audit.shards("neighbors") if shard.startswith(f"{arm.shard}-")}
    if shards - audit.shards("similarities", report=context.log.warning):
        neighbors_stage.compare_missing(context, store, arm, WHOLE)
