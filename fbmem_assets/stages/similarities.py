"""Stage similarities: the exact values of every pair that is a neighbor by any criterion."""

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import table_asset, table_result
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint, ImageKey
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
        shards=f"{arm.shard}*",
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, reference_id, region): full, foreground, background and average."""
        audit = store.open(context.partition_key)
        _score_missing(context, store, arm)
        return table_result(audit, "similarities", audit.read("similarities", arm))

    @table_check(asset)
    def every_neighbor_is_scored(audit: AuditedCheckpoint) -> Verdict:
        """Every pair of `neighbors` has its row, with the value that ranked it."""
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
    from fbmem_core.retrieval.neighbors import pair_similarities

    audit = store.open(context.partition_key)
    shards = [shard for shard in audit.shards("neighbors") if shard.startswith(f"{arm.shard}-")]
    whole = audit.shards("similarities", report=context.log.warning)
    missing = [shard for shard in shards if shard not in whole]
    references = neighbors_stage.reference_planes(audit, arm) if missing else {}
    for shard in track(context, missing, what="scoring pairs"):
        pairs = audit.read("neighbors", shard=shard).select(_PAIR).unique(maintain_order=True)
        rows = audit.read("generations", arm).join(pairs, on=_IMAGE, how="semi")
        images, scored = neighbors_stage.generation_set(audit, rows), []
        fact_of = {ImageKey(**fact).image_id: fact for fact in rows.select(_IMAGE).to_dicts()}
        for masking, planes in references.items():
            of_region = pairs.filter(masking=masking)
            wanted = [(ImageKey(*row[:3]).image_id, row[4]) for row in of_region.iter_rows()]
            for image_id, found in pair_similarities(images, planes, wanted, masking=planes.masking):
                scored += [{**fact_of[image_id], **row} for row in neighbors_stage.pair_rows(masking, found)]
        audit.write("similarities", scored, shard=shard)
