"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

import math
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets import neighbors as neighbors_stage
from fbmem_assets.generations import UNMITIGATED
from fbmem_assets.partitions import checkpoint_partitions
from fbmem_assets.resources import AuditStore, track
from fbmem_assets.tables import table_asset, table_result
from fbmem_core.audit import CRITERIA

if TYPE_CHECKING:
    from fbmem_core.neighbors import ImageSet

STAGE = "similarities"
_PAIR = ["prompt_id", "seed", "region", "reference_id"]


@table_asset(table="similarities", stage=STAGE, deps=["neighbors"], kinds={"torch"})
def similarities(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, seed, reference_id, region): full, foreground, background and average similarity."""
    key, tables = context.partition_key, store.tables
    audit, _ = store.audit(key)
    references = neighbors_stage.reference_set(store, key)
    row_of = {name: row for row, name in enumerate(references.ids)}
    pairs = tables.read("neighbors", key).select(_PAIR).unique(maintain_order=True)
    prompts = list(neighbors_stage.generations_by_prompt(store, key))
    scored: list[dict[str, Any]] = []
    for prompt_id, rows in track(context, prompts, total=len(prompts), what="scoring pairs"):
        images = neighbors_stage.generation_set(store, key, rows)
        of_prompt = pairs.filter(pl.col("prompt_id") == prompt_id)
        for number, seed in enumerate(images.ids):
            for region in audit.similarity.region:
                of_image = of_prompt.filter((pl.col("seed") == int(seed)) & (pl.col("region") == region))
                chosen = references.select(sorted(row_of[name] for name in of_image["reference_id"]))
                keys = {"method": UNMITIGATED, "prompt_id": prompt_id, "seed": int(seed), "region": region}
                scored += [{**keys, **values} for values in _score(images.select([number]), chosen, region)]
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


def _score(image: "ImageSet", references: "ImageSet", region: str) -> list[dict[str, Any]]:
    from fbmem_core.neighbors import pair_similarities

    [(_, found)] = pair_similarities(image, references, region=region)  # type: ignore[arg-type]
    columns = {criterion: [_value(v) for v in getattr(found, criterion).tolist()] for criterion in CRITERIA}
    return [
        {"reference_id": name, **{criterion: columns[criterion][row] for criterion in CRITERIA}}
        for row, name in enumerate(references.ids)
    ]


def _value(similarity: float) -> float | None:
    return None if math.isnan(similarity) else similarity
