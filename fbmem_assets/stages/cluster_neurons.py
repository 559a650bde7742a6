"""Stage neurons: the unions of the memorization neurons of each cluster's prompts."""

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.neurons import layer_name, read_statistics
from fbmem_core.audit.results import AuditedCheckpoint

STAGE = "neurons"
_WARN_SHARE = 0.13  # 750 of 5,760: beyond it NeMo never measured what is left of the images' quality


@table_asset(table="cluster_neurons", stage=STAGE, deps=["prompt_clusters", "neurons"])
def cluster_neurons(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (cluster, layer, neuron): the union of the refined neurons of the cluster's memorized prompts."""
    audit = store.open(context.partition_key)
    clusters = audit.read("prompt_clusters").select("prompt_id", "cluster")
    refined = audit.read("neurons").filter(pl.col("stage") == "refined")
    united = refined.join(clusters, on="prompt_id").group_by("cluster", "layer", "neuron")
    audit.write("cluster_neurons", united.agg(pl.len().alias("num_prompts")).to_dicts())
    table = audit.read("cluster_neurons")
    total = len(audit.read("activation_statistics"))
    shares = table.group_by("cluster").len("neurons").with_columns((pl.col("neurons") / total).alias("share"))
    largest = float(shares["share"].max() or 0.0)  # type: ignore[arg-type]
    return table_result(
        audit,
        "cluster_neurons",
        table,
        num_clusters=len(shares),
        largest_share=largest,
        shares=markdown_table(shares.sort("cluster").to_dicts()),
        heat_map=picture(_cluster_plot(audit, table), "neurons by cluster and layer"),
    )


@table_check(cluster_neurons, severity=dg.AssetCheckSeverity.WARN)
def unions_are_small(audit: AuditedCheckpoint) -> Verdict:
    """No cluster switches off more than 13 % of all neurons: beyond that NeMo never measured the images' quality."""
    total = max(1, len(audit.read("activation_statistics")))
    sizes = audit.read("cluster_neurons").group_by("cluster").len("neurons").sort("cluster")
    large = sizes.filter(pl.col("neurons") > _WARN_SHARE * total)
    if sizes.is_empty():
        return Verdict(None, "no cluster has neurons")
    return Verdict(
        large.is_empty(),
        f"{len(large)} of {len(sizes)} clusters switch off more than {_WARN_SHARE:.0%} of {total} neurons",
        {"neurons of all clusters": total, "too large": markdown_table(large.to_dicts())},
    )


def _cluster_plot(audit: AuditedCheckpoint, table: pl.DataFrame) -> str:
    import numpy as np

    from fbmem_core.report.plots import heat_map

    layers = read_statistics(audit).layers
    clusters = sorted(set(audit.read("prompt_clusters")["cluster"]))
    counts = np.zeros((len(clusters), len(layers)))
    for cluster, layer, num in table.group_by("cluster", "layer").len().iter_rows():
        counts[clusters.index(cluster), layers.index(layer)] = num
    return heat_map(
        counts,
        rows=[f"cluster {cluster}" for cluster in clusters],
        columns=[layer_name(layer) for layer in layers],
        title="Neurons switched off",
        label="neurons",
    )
