"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.arms import BASELINE, Arm
from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore, track
from fbmem_assets.orchestration.tables import table_asset, table_result
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_assets.stages.masks import generation_image_id
from fbmem_core.similarity import REGIONS

STAGE = "similarities"
_IMAGE = ["method", "prompt_id", "seed"]
_PAIR = [*_IMAGE, "masking", "reference_id"]


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
        """One row per (method, prompt_id, seed, reference_id, region): full, foreground, background and average."""
        key = context.partition_key
        _score_missing(context, store, arm)
        return table_result(store, "similarities", key, arm.rows(store, "similarities", key))

    @dg.asset_check(asset=asset, partitions_def=checkpoint_partitions)
    def every_neighbor_is_scored(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
        """Every pair of `neighbors` has its row, with the value that ranked it."""
        key = context.partition_key
        scored = arm.rows(store, "similarities", key)
        by_region = scored.rename({f"{region}_similarity": region for region in REGIONS})
        long = by_region.unpivot(REGIONS, index=_PAIR, variable_name="region", value_name="value")
        ranked = arm.rows(store, "neighbors", key)
        joined = ranked.join(long, on=[*_PAIR, "region"], how="left")
        wrong = joined.filter(pl.col("value").is_null() | ((pl.col("value") - pl.col("similarity")).abs() > 1e-5))
        return dg.AssetCheckResult(
            passed=wrong.is_empty(), metadata={"neighbors": len(ranked), "differing": len(wrong)}
        )

    return asset, every_neighbor_is_scored


similarities, every_neighbor_is_scored = similarities_of(BASELINE)


def _score_missing(context: dg.AssetExecutionContext, store: AuditStore, arm: Arm) -> None:
    """`neighbors` writes the similarities of what it compares; here only those that were lost since are made again."""
    from fbmem_core.retrieval.neighbors import pair_similarities

    key, tables = context.partition_key, store.tables
    shards = [shard for shard in tables.shards("neighbors", key) if shard.startswith(f"{arm.shard}-")]
    whole = tables.shards("similarities", key, report=context.log.warning)
    missing = [shard for shard in shards if shard not in whole]
    references = neighbors_stage.reference_planes(store, key, arm) if missing else {}
    for shard in track(context, missing, what="scoring pairs"):
        pairs = tables.read("neighbors", key, shard=shard).select(_PAIR).unique(maintain_order=True)
        rows = arm.rows(store, "generations", key).join(pairs, on=_IMAGE, how="semi")
        images, scored = neighbors_stage.generation_set(store, key, rows), []
        fact_of = {generation_image_id(**fact): fact for fact in rows.select(_IMAGE).to_dicts()}
        for masking, planes in references.items():
            of_region = pairs.filter(masking=masking)
            wanted = [(generation_image_id(*row[:3]), row[4]) for row in of_region.iter_rows()]
            for image_id, found in pair_similarities(images, planes, wanted, masking=planes.masking):
                scored += [{**fact_of[image_id], **row} for row in neighbors_stage.pair_rows(masking, found)]
        tables.write("similarities", key, scored, shard=shard)
