"""Stage audit_diff: what a checkpoint memorizes that the one before it did not."""

from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.partitions import checkpoint_partitions, partitions_of
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_assets.stages.labels import summary_labels
from fbmem_core.audit.config import Audit
from fbmem_core.store.schemas import TABLES

STAGE = "audit_diff"
_SHOWN = 30
_CHANGED = ("newly_memorized", "no_longer_memorized", "other_label", "added", "removed", "undecided")


@table_asset(table="prompt_labels", stage=STAGE, deps=["prompt_set", "labels"])
def prompt_labels(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt: its most frequent label, and how many of its images are copies.

    The table in which checkpoints, of one audit or of several, are compared prompt by prompt.
    """
    from fbmem_core.evaluation.changes import label_prompts

    key, tables = context.partition_key, store.tables
    found = label_prompts(summary_labels(store, key), tables.read("prompts", key))
    tables.write("prompt_labels", key, found.to_dicts())
    table = tables.read("prompt_labels", key)
    return table_result(
        store,
        "prompt_labels",
        key,
        table,
        num_memorized=table.filter(pl.col("label") != "NM").height,
        across_checkpoints=markdown_table(across_checkpoints(store, table).head(_SHOWN).to_dicts()),
    )


@table_asset(table="audit_diff", stage=STAGE, deps=["prompt_labels"])
def audit_diff(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt of this checkpoint or the one before it of the same audit: its labels, and what changed.

    Prompts are matched by their text. The first checkpoint of an audit has no row.
    """
    from fbmem_core.evaluation.changes import compare_prompts

    key, tables = context.partition_key, store.tables
    before = previous_partition(store, key)
    rows: list[dict[str, Any]] = []
    if before is not None:
        changes = compare_prompts(tables.read("prompt_labels", before), tables.read("prompt_labels", key))
        rows = [{"previous": before, **row} for row in changes.to_dicts()]
    tables.write("audit_diff", key, rows)
    table = tables.read("audit_diff", key)
    changed = table.filter(pl.col("change").is_in(_CHANGED)).drop("checkpoint", "previous")
    counts = table["change"].value_counts(sort=True)
    return table_result(
        store,
        "audit_diff",
        key,
        table,
        previous=before or "none",
        changes=markdown_table(counts.to_dicts()),
        changed_prompts=markdown_table(changed.head(_SHOWN).to_dicts()),
    )


@table_asset(table="memorization_rates", stage=STAGE, deps=["audit_diff"])
def memorization_rates(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per checkpoint: the share of images that are copies, and against the one before, over the same images."""
    from fbmem_core.evaluation.changes import measure_rise

    key, tables = context.partition_key, store.tables
    labels, before = summary_labels(store, key), previous_partition(store, key)
    row: dict[str, Any] = dict.fromkeys(TABLES["memorization_rates"].columns)
    del row["checkpoint"]
    row["share"] = (labels["label"] != "NM").mean()
    if before is not None:
        rise = measure_rise(_images(store, before), _images(store, key), units=_units(store, before, key))
        row |= {"previous": before, **vars(rise), "differing_settings": _differing(store, before, key)}
    tables.write("memorization_rates", key, [row])
    table = tables.read("memorization_rates", key)
    shown = {name: value for name, value in row.items() if isinstance(value, float)}
    return table_result(store, "memorization_rates", key, table, **shown)


@dg.asset_check(asset=memorization_rates, partitions_def=checkpoint_partitions)
def no_more_is_memorized(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """The share of copies did not rise by more than `diff.max_rise` at a significance of `diff.significance`.

    Only a warning where the two audits differ in a setting that labels depend on: then a rise may be of its making.
    """
    key = context.partition_key
    audit, _ = store.audit(key)
    [row] = store.tables.read("memorization_rates", key).to_dicts()
    if not row["num_images"]:
        note = "this audit's first checkpoint" if row["previous"] is None else "no image in common"
        return dg.AssetCheckResult(passed=True, metadata={"previous": row["previous"] or "none", "note": note})
    rise = row["share_after"] - row["share_before"]
    differing = row["differing_settings"]
    new = store.tables.read("audit_diff", key).filter(pl.col("change") == "newly_memorized")
    return dg.AssetCheckResult(
        passed=not (rise > audit.diff.max_rise and row["p_value"] <= audit.diff.significance),
        severity=dg.AssetCheckSeverity.WARN if differing else dg.AssetCheckSeverity.ERROR,
        metadata={name: row[name] for name in ("previous", "share_before", "share_after", "p_value", "num_images")}
        | {"rise": rise, "differing_settings": ", ".join(differing) or "none"}
        | {"newly_memorized": ", ".join(new["prompt_id"].head(20)) or "none"},
    )


def previous_partition(store: AuditStore, key: str) -> str | None:
    """The checkpoint of the same audit that was audited before this one was registered, if there is one."""
    audit, _ = store.audit(key)
    known = partitions_of(store.tables, audit.name)
    labelled = set(store.tables.partitions("prompt_labels"))
    return next((other for other in reversed(known[: known.index(key)]) if other in labelled), None)


def across_checkpoints(store: AuditStore, table: pl.DataFrame) -> pl.DataFrame:
    """The prompts of `table` (rows of prompt_labels) that any checkpoint in the store memorizes, a column of labels
    for each checkpoint that was asked one of them."""
    wide = table.select("prompt").unique(maintain_order=True)
    for key in store.tables.partitions("prompt_labels"):
        rows = store.tables.read("prompt_labels", key).unique("prompt", maintain_order=True)
        labels = rows.select("prompt", pl.col("label").alias(key))
        if rows["prompt"].is_in(wide["prompt"].implode()).any():
            wide = wide.join(labels, on="prompt", how="left", maintain_order="left")
    return wide.filter(pl.any_horizontal(pl.exclude("prompt").fill_null("NM") != "NM"))


def _images(store: AuditStore, key: str) -> pl.DataFrame:
    prompts = store.tables.read("prompts", key).select("prompt_id", "prompt")
    return summary_labels(store, key).select("prompt_id", "seed", "label").join(prompts, on="prompt_id")


def _units(store: AuditStore, before: str, key: str) -> dict[str, str]:
    """By prompt_id of the checkpoint before: prompts that copy a common reference under either are one unit."""
    from fbmem_core.evaluation.intervals import label_units

    texts, names = (store.tables.read("prompts", name).select("prompt_id", "prompt") for name in (key, before))
    named = texts.join(names, on="prompt", suffix="_before").select("prompt_id", "prompt_id_before")
    later = summary_labels(store, key).join(named, on="prompt_id").with_columns(prompt_id="prompt_id_before")
    return label_units(summary_labels(store, before), later)


def _differing(store: AuditStore, *keys: str) -> list[str]:
    """The settings that labels depend on and that are not the same in both audits."""
    one, other = (_settings(store.audit(key)[0]) for key in keys)
    return sorted(name for name in one if one[name] != other[name])


def _settings(audit: Audit) -> dict[str, Any]:
    found = {"references": str(audit.references), "segmentation.model": audit.segmentation.model}
    sampling = audit.sampling.model_dump(include={"steps", "guidance_scale", "height", "width", "dtype"})
    similarity = audit.similarity.model_dump(include={"size", "tau", "beta"})
    similarity |= {"masking": audit.similarity.masking[0], "rule": audit.similarity.rule[0]}
    found |= {f"sampling.{name}": value for name, value in sampling.items()}
    return found | {f"similarity.{name}": value for name, value in similarity.items()}
