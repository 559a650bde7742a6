"""Stage clusters: prompts of one meaning, which share what the model remembers."""

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_core.audit.results import AuditedCheckpoint

if TYPE_CHECKING:
    import numpy as np

STAGE = "clusters"
_EXAMPLES = 3


@table_asset(
    table="prompt_clusters",
    stage=STAGE,
    deps=["prompts"],
    kinds={"scikitlearn"},
)
def prompt_clusters(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt: its k-means cluster by the meaning of its text, and the distance to the cluster's center."""
    from fbmem_core.clustering import cluster_prompts

    audit = store.open(context.partition_key)
    prompts = audit.read("prompts")
    clusters = cluster_prompts(embeddings(audit), count=audit.config.clusters.count, seed=audit.config.clusters.seed)
    rows = [
        {"prompt_id": prompt_id, "cluster": cluster, "distance": distance, "encoder": audit.config.clusters.encoder}
        for prompt_id, cluster, distance in zip(
            prompts["prompt_id"], clusters.cluster.tolist(), clusters.distance.tolist(), strict=True
        )
    ]
    audit.write("prompt_clusters", rows)
    table = audit.read("prompt_clusters")
    return table_result(
        audit,
        "prompt_clusters",
        table,
        num_clusters=len(clusters.sizes),
        smallest=min(clusters.sizes),
        clusters=markdown_table(_examples(table, prompts)),
    )


def embeddings(audit: AuditedCheckpoint) -> "np.ndarray":
    """The text embedding of every prompt of the partition, [n, d], in the order of the table."""
    from fbmem_core.clustering import open_clip_embeddings, pipeline_embeddings
    from fbmem_core.diffusion.device import choose_device

    prompts = audit.read("prompts")["prompt"].to_list()
    settings = audit.config.clusters
    if settings.encoder == "pipeline":
        return pipeline_embeddings(audit.pipeline, prompts)
    return open_clip_embeddings(
        prompts, model=settings.model, weights=settings.weights, device=choose_device(audit.config.sampling.device)
    )


def _examples(table: pl.DataFrame, prompts: pl.DataFrame) -> list[dict[str, object]]:
    """The prompts nearest to each center."""
    named = table.join(prompts.select("prompt_id", "prompt"), on="prompt_id").sort("cluster", "distance")
    grouped = named.group_by("cluster", maintain_order=True)
    return grouped.agg(
        pl.len().alias("prompts"), pl.col("prompt").head(_EXAMPLES).str.join(" / ").alias("nearest to the center")
    ).to_dicts()
