"""Stage clusters: prompts of one meaning, which share what the model remembers."""

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result

if TYPE_CHECKING:
    import numpy as np

STAGE = "clusters"
_EXAMPLES = 3


@table_asset(table="prompt_clusters", stage=STAGE, deps=["prompt_set"], kinds={"scikitlearn"})
def prompt_clusters(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt: its k-means cluster by the meaning of its text, and the distance to the cluster's center."""
    from fbmem_core.clustering import cluster_prompts

    key, tables = context.partition_key, store.tables
    audit, _ = store.audit(key)
    prompts = tables.read("prompts", key)
    found = cluster_prompts(embeddings(store, key), count=audit.clusters.count, seed=audit.clusters.seed)
    rows = [
        {"prompt_id": prompt_id, "cluster": cluster, "distance": distance, "encoder": audit.clusters.encoder}
        for prompt_id, cluster, distance in zip(
            prompts["prompt_id"], found.cluster.tolist(), found.distance.tolist(), strict=True
        )
    ]
    tables.write("prompt_clusters", key, rows)
    table = tables.read("prompt_clusters", key)
    return table_result(
        store,
        "prompt_clusters",
        key,
        table,
        num_clusters=len(found.sizes),
        smallest=min(found.sizes),
        clusters=markdown_table(_examples(table, prompts)),
    )


def embeddings(store: AuditStore, key: str) -> "np.ndarray":
    """The text embedding of every prompt of the partition, [n, d], in the order of the table."""
    from fbmem_core.clustering import open_clip_embeddings, pipeline_embeddings
    from fbmem_core.diffusion.device import choose_device

    audit, _ = store.audit(key)
    prompts = store.tables.read("prompts", key)["prompt"].to_list()
    settings = audit.clusters
    if settings.encoder == "pipeline":
        return pipeline_embeddings(store.pipeline(key), prompts)
    return open_clip_embeddings(
        prompts, model=settings.model, weights=settings.weights, device=choose_device(audit.sampling.device)
    )


def _examples(table: pl.DataFrame, prompts: pl.DataFrame) -> list[dict[str, object]]:
    """The prompts nearest to each center."""
    named = table.join(prompts.select("prompt_id", "prompt"), on="prompt_id").sort("cluster", "distance")
    grouped = named.group_by("cluster", maintain_order=True)
    return grouped.agg(
        pl.len().alias("prompts"), pl.col("prompt").head(_EXAMPLES).str.join(" / ").alias("nearest to the center")
    ).to_dicts()
