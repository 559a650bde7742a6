"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets import neighbors as neighbors_stage
from fbmem_assets.generations import UNMITIGATED
from fbmem_assets.masks import generation_image_id
from fbmem_assets.partitions import checkpoint_partitions
from fbmem_assets.resources import AuditStore, track
from fbmem_assets.tables import table_asset, table_result
from fbmem_core.audit import CRITERIA

STAGE = "similarities"
_PAIR = ["prompt_id", "seed", "region", "reference_id"]
_BLOCK = 64  # generations that are read together


@table_asset(table="similarities", stage=STAGE, deps=["neighbors"], kinds={"torch"})
def similarities(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, seed, reference_id, region): full, foreground, background and average similarity."""
    from fbmem_core.neighbors import pair_similarities

    key, tables = context.partition_key, store.tables
    references = neighbors_stage.reference_planes(store, key)
    pairs = tables.read("neighbors", key).select("method", *_PAIR).unique(maintain_order=True)
    generations = tables.read("generations", key, shard=UNMITIGATED)
    scored: list[dict[str, Any]] = []
    for rows in track(context, list(generations.iter_slices(_BLOCK)), what="scoring pairs"):
        images = neighbors_stage.generation_set(store, key, rows)
        facts = rows.select("method", "prompt_id", "seed").to_dicts()
        fact_of = {generation_image_id(**fact): fact for fact in facts}
        of_block = pairs.join(rows.select("method", "prompt_id", "seed"), on=["method", "prompt_id", "seed"])
        for (region,), of_region in of_block.group_by("region", maintain_order=True):
            wanted = [
                (generation_image_id(method, prompt_id, seed), reference_id)
                for method, prompt_id, seed, _, reference_id in of_region.iter_rows()
            ]
            for image_id, found in pair_similarities(images, references[region], wanted, region=region):
                scored += [
                    {**fact_of[image_id], "region": region, "reference_id": pair.reference_id}
                    | {criterion: getattr(pair, criterion) for criterion in CRITERIA}
                    for pair in found
                ]
    tables.write("similarities", key, scored)
    return table_result(store, "similarities", key, tables.read("similarities", key))


@dg.asset_check(asset=similarities, partitions_def=checkpoint_partitions)
def every_neighbor_is_scored(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Every pair of `neighbors` has its row, with the value that ranked it."""
    key, tables = context.partition_key, store.tables
    scored = tables.read("similarities", key)
    long = scored.unpivot(CRITERIA, index=[*_PAIR, "method"], variable_name="criterion", value_name="value")
    ranked = tables.read("neighbors", key)
    joined = ranked.join(long, on=[*_PAIR, "method", "criterion"], how="left")
    wrong = joined.filter(pl.col("value").is_null() | ((pl.col("value") - pl.col("similarity")).abs() > 1e-5))
    return dg.AssetCheckResult(passed=wrong.is_empty(), metadata={"neighbors": len(ranked), "differing": len(wrong)})
