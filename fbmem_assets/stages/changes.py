"""Stage audit_diff: what a checkpoint memorizes that the one before it did not."""

from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.partitions import partitions_of
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store

STAGE = "audit_diff"
_SHOWN = 30
_CHANGED = ("newly_memorized", "no_longer_memorized", "other_label", "added", "removed", "undecided")


@table_asset(table="prompt_labels", stage=STAGE, deps=["prompts", "labels"])
def prompt_labels(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt: its most frequent label, and how many of its images are copies.

    The table in which checkpoints, of one audit or of several, are compared prompt by prompt.
    """
    from fbmem_core.evaluation.changes import label_prompts

    audit = store.open(context.partition_key)
    labels = label_prompts(audit.summary_labels(), audit.read("prompts"))
    audit.write("prompt_labels", labels.to_dicts())
    table = audit.read("prompt_labels")
    return table_result(
        audit,
        "prompt_labels",
        table,
        num_memorized=table.filter(pl.col("label") != "NM").height,
        across_checkpoints=markdown_table(across_checkpoints(audit.store, table).head(_SHOWN).to_dicts()),
    )


@table_asset(table="audit_diff", stage=STAGE, deps=["prompt_labels"])
def audit_diff(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt of this checkpoint or the one before it of the same audit: its labels, and what changed.

    Prompts are matched by their text. The first checkpoint of an audit has no row.
    """
    from fbmem_core.evaluation.changes import compare_prompts

    audit = store.open(context.partition_key)
    before = previous_partition(audit)
    rows: list[dict[str, Any]] = []
    if before is not None:
        changes = compare_prompts(store.open(before).read("prompt_labels"), audit.read("prompt_labels"))
        rows = [{"previous": before, **row} for row in changes.to_dicts()]
    audit.write("audit_diff", rows)
    table = audit.read("audit_diff")
    changed = table.filter(pl.col("change").is_in(_CHANGED)).drop("checkpoint", "previous")
    counts = table["change"].value_counts(sort=True)
    return table_result(
        audit,
        "audit_diff",
        table,
        previous=before or "none",
        changes=markdown_table(counts.to_dicts()),
        changed_prompts=markdown_table(changed.head(_SHOWN).to_dicts()),
    )


@table_asset(table="memorization_rates", stage=STAGE, deps=["audit_diff"])
def memorization_rates(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per checkpoint: the share of images that are copies, and against the one before, over the same images."""
    from fbmem_core.evaluation.changes import measure_rise

    audit = store.open(context.partition_key)
    labels, before = audit.summary_labels(), previous_partition(audit)
    row: dict[str, Any] = dict.fromkeys(TABLES["memorization_rates"].columns)
    del row["checkpoint"]
    row["share"] = (labels["label"] != "NM").mean()
    if before is not None:
        earlier = store.open(before)
        rise = measure_rise(_images(earlier), _images(audit), units=_units(earlier, audit))
        row |= {"previous": before, **vars(rise), "differing_settings": _differing(earlier, audit)}
    audit.write("memorization_rates", [row])
    table = audit.read("memorization_rates")
    shown = {name: value for name, value in row.items() if isinstance(value, float)}
    return table_result(audit, "memorization_rates", table, **shown)


@table_check(memorization_rates)
def no_more_is_memorized(audit: AuditedCheckpoint) -> Verdict:
    """The share of copies did not rise by more than `diff.max_rise` at a significance of `diff.significance`.

    Only a warning where the two audits differ in a setting that labels depend on: then a rise may be of its making.
    """
    [row] = audit.read("memorization_rates").to_dicts()
    if not row["num_images"]:
        note = "this audit's first checkpoint" if row["previous"] is None else "no image in common"
        return Verdict(None, note, {"previous": row["previous"] or "none"})
    rise = row["share_after"] - row["share_before"]
    differing = row["differing_settings"]
    new = audit.read("audit_diff").filter(pl.col("change") == "newly_memorized")
    return Verdict(
        not (rise > audit.config.diff.max_rise and row["p_value"] <= audit.config.diff.significance),
        f"{rise:+.1%} of {row['num_images']} images since {row['previous']}, p = {row['p_value']:.3g}",
        {name: row[name] for name in ("previous", "share_before", "share_after", "p_value", "num_images")}
        | {"rise": rise, "differing_settings": ", ".join(differing) or "none"}
        | {"newly_memorized": ", ".join(new["prompt_id"].head(20)) or "none"},
        severity=dg.AssetCheckSeverity.WARN if differing else dg.AssetCheckSeverity.ERROR,
    )


def previous_partition(audit: AuditedCheckpoint) -> str | None:
    """The checkpoint of the same audit that was audited before this one was registered, if there is one."""
    registered = partitions_of(audit.store, audit.config.name)
    labelled = set(audit.store.partitions("prompt_labels"))
    earlier = registered[: registered.index(audit.partition)]
    return next((partition for partition in reversed(earlier) if partition in labelled), None)


def across_checkpoints(store: Store, table: pl.DataFrame) -> pl.DataFrame:
    """The prompts of `table` (rows of prompt_labels) that any checkpoint in the store memorizes, a column of labels
    for each checkpoint that was asked one of them."""
    wide = table.select("prompt").unique(maintain_order=True)
    for partition in store.partitions("prompt_labels"):
        rows = store.read("prompt_labels", partition).unique("prompt", maintain_order=True)
        labels = rows.select("prompt", pl.col("label").alias(partition))
        if rows["prompt"].is_in(wide["prompt"].implode()).any():
            wide = wide.join(labels, on="prompt", how="left", maintain_order="left")
    return wide.filter(pl.any_horizontal(pl.exclude("prompt").fill_null("NM") != "NM"))


def _images(audit: AuditedCheckpoint) -> pl.DataFrame:
    prompts = audit.read("prompts").select("prompt_id", "prompt")
    return audit.summary_labels().select("prompt_id", "seed", "label").join(prompts, on="prompt_id")


def _units(before: AuditedCheckpoint, after: AuditedCheckpoint) -> dict[str, str]:
    """Units by prompt_id of the checkpoint before: prompts that copy a common reference under either are one unit."""
    from fbmem_core.evaluation.intervals import label_units

    texts, names = (audit.read("prompts").select("prompt_id", "prompt") for audit in (after, before))
    named = texts.join(names, on="prompt", suffix="_before").select("prompt_id", "prompt_id_before")
    later = after.summary_labels().join(named, on="prompt_id").with_columns(prompt_id="prompt_id_before")
    return label_units(before.summary_labels(), later)


def _differing(*audits: AuditedCheckpoint) -> list[str]:
    """The settings that labels depend on and that are not the same in both audits."""
    first, second = (_settings(audit) for audit in audits)
    return sorted(name for name in first if first[name] != second[name])


def _settings(audit: AuditedCheckpoint) -> dict[str, Any]:
    settings = {"references": str(audit.config.references), "segmentation.model": audit.config.segmentation.model}
    sampling = audit.config.sampling.of_images()
    similarity = audit.config.similarity.model_dump(include={"size", "tau", "beta"})
    similarity |= {"masking": audit.config.similarity.masking[0], "rule": audit.config.similarity.rule[0]}
    settings |= {f"sampling.{name}": value for name, value in sampling.items()}
    return settings | {f"similarity.{name}": value for name, value in similarity.items()}
