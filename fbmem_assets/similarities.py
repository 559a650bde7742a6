"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets import neighbors as neighbors_stage
from fbmem_assets.masks import generation_image_id
from fbmem_assets.partitions import checkpoint_partitions
from fbmem_assets.passes import BASELINE, Pass
from fbmem_assets.resources import AuditStore, track
from fbmem_assets.tables import table_asset, table_result
from fbmem_core.audit import CRITERIA

STAGE = "similarities"
_IMAGE = ["method", "prompt_id", "seed"]
_PAIR = [*_IMAGE, "region", "reference_id"]
_BLOCK = 64  # generations that are read together


def similarities_of(which: Pass) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    @table_asset(
        table="similarities",
        stage=which.stage(STAGE),
        deps=[which.name("neighbors")],
        kinds={"torch"},
        name=which.name("similarities"),
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, reference_id, region): full, foreground, background and average."""
        key, tables = context.partition_key, store.tables
        tables.write("similarities", key, _score_pairs(context, store, which), shard=which.shard)
        return table_result(store, "similarities", key, which.rows(store, "similarities", key))

    @dg.asset_check(asset=asset, partitions_def=checkpoint_partitions)
    def every_neighbor_is_scored(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
        """Every pair of `neighbors` has its row, with the value that ranked it."""
        key = context.partition_key
        scored = which.rows(store, "similarities", key)
        long = scored.unpivot(CRITERIA, index=_PAIR, variable_name="criterion", value_name="value")
        ranked = which.rows(store, "neighbors", key)
        joined = ranked.join(long, on=[*_PAIR, "criterion"], how="left")
        wrong = joined.filter(pl.col("value").is_null() | ((pl.col("value") - pl.col("similarity")).abs() > 1e-5))
        return dg.AssetCheckResult(
            passed=wrong.is_empty(), metadata={"neighbors": len(ranked), "differing": len(wrong)}
        )

    return asset, every_neighbor_is_scored


similarities, every_neighbor_is_scored = similarities_of(BASELINE)


def _score_pairs(context: dg.AssetExecutionContext, store: AuditStore, which: Pass) -> list[dict[str, Any]]:
    from fbmem_core.neighbors import pair_similarities

    key = context.partition_key
    references = neighbors_stage.reference_planes(store, key, which)
    pairs = which.rows(store, "neighbors", key).select(_PAIR).unique(maintain_order=True)
    scored: list[dict[str, Any]] = []
    blocks = list(which.rows(store, "generations", key).iter_slices(_BLOCK))
    for rows in track(context, blocks, what="scoring pairs"):
        images = neighbors_stage.generation_set(store, key, rows)
        fact_of = {generation_image_id(**fact): fact for fact in rows.select(_IMAGE).to_dicts()}
        of_block = pairs.join(rows.select(_IMAGE), on=_IMAGE)
        for (region,), of_region in of_block.group_by("region", maintain_order=True):
            wanted = [
                (generation_image_id(method, prompt_id, seed), reference_id)
                for method, prompt_id, seed, _, reference_id in of_region.iter_rows()
            ]
            planes = references[str(region)]
            for image_id, found in pair_similarities(images, planes, wanted, region=planes.region):
                scored += [
                    {**fact_of[image_id], "region": region, "reference_id": pair.reference_id}
                    | {criterion: getattr(pair, criterion) for criterion in CRITERIA}
                    for pair in found
                ]
    return scored
