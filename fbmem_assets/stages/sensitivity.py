"""Stage studies: how much the number of clusters matters, from their fit to the memory that is removed."""

from statistics import fmean
from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import picture, table_asset, table_result
from fbmem_assets.stages.clusters import embeddings
from fbmem_core.audit.results import AuditedCheckpoint

STAGE = "studies"


@table_asset(
    table="cluster_sensitivity",
    stage=STAGE,
    deps=["prompt_clusters", "neurons", "mitigation_scores"],
    kinds={"scikitlearn"},
)
def cluster_sensitivity(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per number of clusters: how well it fits, how stable it is, how large the unions are, what they remove.

    `score` is that of the `nemo_c` of the audit file with so many clusters and nothing but switched-off neurons; where
    the file has none it is null.
    """
    from fbmem_core.clustering import cluster_prompts, cluster_quality
    from fbmem_core.neurons.layers import union
    from fbmem_core.report.plots import line_plot

    audit = store.open(context.partition_key)
    settings = audit.config.clusters
    vectors = embeddings(audit)
    prompt_ids = audit.read("prompts")["prompt_id"].to_list()
    refined, total = audit.neurons(), len(audit.read("activation_statistics"))
    scores = audit.read("mitigation_scores").filter(pl.col("weights") == "severity")
    row_of = {row["method"]: row for row in scores.to_dicts()}
    scored = {n: row_of[name] for n, name in sorted(nemo_c_by_count(audit).items()) if name in row_of}
    rows: list[dict[str, Any]] = []
    for count in sorted({*settings.counts, settings.count, *scored}):
        quality = cluster_quality(vectors, count=count)
        cluster_of = cluster_prompts(vectors, count=count, seed=settings.seed).cluster
        members = [
            [refined[p] for p, c in zip(prompt_ids, cluster_of, strict=True) if c == cluster and p in refined]
            for cluster in set(cluster_of)
        ]
        sizes = [len(union(sets)) for sets in members if sets] or [0]
        rows.append({
            "count": count, "num_clusters": quality.num_clusters, "silhouette": quality.silhouette,
            "stability": quality.stability, "mean_union": fmean(sizes),
            "max_union": max(sizes), "max_union_share": max(sizes) / total,
            "score": scored.get(count, {}).get("score"),
        })  # fmt: skip
    audit.write("cluster_sensitivity", rows)
    counts = [row["count"] for row in rows]
    series = {name: (counts, [row[name] for row in rows]) for name in ("silhouette", "stability", "max_union_share")}
    shares = {"largest union, of all neurons": series.pop("max_union_share")}
    removed = {n: row["score"] / row["achievable"] for n, row in scored.items() if row["achievable"]}
    if removed:
        shares["memory removed, of what is achievable"] = (list(removed), list(removed.values()))
    plots = {
        "quality": (series, "silhouette, -1 to 1; stability: adjusted Rand index"),
        "shares": (shares, "share, 0 to 1"),
    }
    pictures = {
        name: picture(line_plot(of_plot, title="Number of clusters", x_label="clusters", label=label, style="o-"), name)
        for name, (of_plot, label) in plots.items()
    }
    table = audit.read("cluster_sensitivity")
    return table_result(audit, "cluster_sensitivity", table, **pictures)


def nemo_c_by_count(audit: AuditedCheckpoint) -> dict[int, str]:
    """The first `nemo_c` that switches its neurons off, by number of clusters."""
    titles: dict[int, str] = {}
    for spec in audit.config.mitigations.trials():
        if spec.method == "nemo_c" and not spec.options.get("factor"):
            titles.setdefault(spec.num_clusters or audit.config.clusters.count, spec.title)
    return titles
