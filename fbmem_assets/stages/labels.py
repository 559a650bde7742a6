"""Stage labels: what each generation copies, and how many references one prompt brings forth."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.labels import SEVERITY, label_generation, label_pair, matches
from fbmem_core.store.images import open_image

STAGE = "labels"
_SHEET_TILES = 40
_IMAGE = ["method", "prompt_id", "seed"]
# what the shipped canary must show: the least share of generations of a kind that carry the true label
_TRUE_SHARES = {"verbatim": 0.95, "foreground": 0.8, "background": 0.8, "public": 0.95}
_TRUE_REFERENCE_SHARE = 0.75  # and of the pictures planted behind one one-to-many prompt, over 20 seeds or more
_MANY_SEEDS = 20


def labels_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    @table_asset(table="labels", stage=arm.stage(STAGE), deps=[arm.name("similarities")], name=arm.name("labels"))
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, region, rule): VM, FM, BM or NM, and where each region came from."""
        audit = store.open(context.partition_key)
        rows, undecided = _label(audit, arm)
        audit.write("labels", rows, shard=arm.shard)
        audit.write("rejected", undecided, shard=f"labels-{arm.shard}")
        table = audit.read("labels", arm)
        return table_result(
            audit,
            "labels",
            table,
            num_undecided=len(undecided),
            label_table=markdown_table(label_table(audit, arm).to_dicts()),
            matches=picture(_sheet(audit, table), "generations beside what they match"),
        )

    @dg.asset_check(asset=asset, partitions_def=checkpoint_partitions)
    def every_generation_is_labelled(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
        """Every generation has a row for every region definition and rule."""
        audit = store.open(context.partition_key)
        per_image = len(arm.maskings(audit.config)) * len(audit.config.similarity.rule)
        expected = len(audit.read("generations", arm)) * per_image
        found = len(audit.read("labels", arm))
        return dg.AssetCheckResult(passed=found == expected, metadata={"expected": expected, "found": found})

    return asset, every_generation_is_labelled


def one_to_many_of(arm: Arm) -> dg.AssetsDefinition:
    """The asset of one pass."""

    @table_asset(
        table="one_to_many", stage=arm.stage(STAGE), deps=[arm.name("similarities")], name=arm.name("one_to_many")
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id): how many distinct references its generations match, whole or in a region."""
        audit = store.open(context.partition_key)
        audit.write("one_to_many", count_references(audit, arm), shard=arm.shard)
        return table_result(audit, "one_to_many", audit.read("one_to_many", arm))

    return asset


labels, every_generation_is_labelled = labels_of(BASELINE)
one_to_many = one_to_many_of(BASELINE)


@dg.asset_check(asset=labels, partitions_def=checkpoint_partitions)
def labels_agree_with_truth(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Where the audit knows the truth: each kind of prompt has its true label often enough (`masked`, first rule)."""
    audit = store.open(context.partition_key)
    shares = true_label_shares(audit)
    if shares.is_empty():
        return dg.AssetCheckResult(passed=True, metadata={"truth": "the audit file names no table of true labels"})
    rule = audit.config.similarity.rule[0]
    masked = shares.filter((pl.col("masking") == "masked") & (pl.col("rule") == rule))
    short = [row for row in masked.to_dicts() if row["true_share"] < _TRUE_SHARES.get(row["kind"], 0)]
    return dg.AssetCheckResult(
        passed=not short and not masked.is_empty(), metadata={"shares": markdown_table(shares.to_dicts())}
    )


@dg.asset_check(asset=one_to_many, partitions_def=checkpoint_partitions)
def one_to_many_agrees_with_truth(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Where the audit knows the truth: a prompt behind which several pictures are planted brings most of them forth."""
    audit = store.open(context.partition_key)
    truth = _truth(audit)
    if truth is None:
        return dg.AssetCheckResult(passed=True, metadata={"truth": "the audit file names no table of true labels"})
    planted = truth.with_columns(pl.col("reference_ids").str.split(";").alias("planted")).drop("reference_ids")
    several = planted.filter(pl.col("planted").list.len() > 1)
    found = audit.read("one_to_many").filter(pl.col("num_generations") >= _MANY_SEEDS)
    rows = found.join(several, on="prompt_id").select(
        "prompt_id",
        "num_generations",
        pl.col("planted").list.len().alias("planted"),
        pl.col("planted").list.set_intersection("reference_ids").list.len().alias("found"),
    )
    short = rows.filter(pl.col("found") < _TRUE_REFERENCE_SHARE * pl.col("planted"))
    return dg.AssetCheckResult(passed=short.is_empty(), metadata={"prompts": markdown_table(rows.to_dicts())})


def _label(audit: AuditedCheckpoint, arm: Arm) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `labels`, and those of `rejected`."""
    settings = audit.config.similarity
    fractions = audit.foreground_fractions
    rows, undecided = [], []
    for image, masking, pairs in audit.pairs(arm):
        name = image.image_id
        for rule in settings.rule:
            label = label_generation(
                pairs, foreground_fraction=fractions[name], rule=rule, tau=settings.tau, beta=settings.beta
            )
            rows.append({**image._asdict(), "masking": masking, "rule": rule, **asdict(label)})
            if label.label is None:
                item = {"stage": STAGE, "item": f"{name} {masking} {rule}", "reason": "its matte is undecided"}
                undecided.append(item)
    return rows, undecided


def count_references(audit: AuditedCheckpoint, arm: Arm, images: pl.DataFrame | None = None) -> list[dict[str, Any]]:
    """The rows of `one_to_many`, over all images of the pass or over those of some (prompt_id, seed)."""
    settings = audit.config.similarity
    fractions = audit.foreground_fractions
    generated: Counter[tuple[str, str]] = Counter()
    matched: dict[tuple[str, str], set[str]] = {}
    chosen = None if images is None else set(images.select("prompt_id", "seed").iter_rows())
    for image, masking, pairs in audit.pairs(arm):
        if masking != settings.masking[0] or (chosen is not None and image[1:] not in chosen):
            continue
        fraction = fractions[image.image_id]
        generated[image[:2]] += 1
        found = matched.setdefault(image[:2], set())
        for pair in pairs:
            label = label_pair(
                pair, foreground_fraction=fraction, rule=settings.rule[0], tau=settings.tau, beta=settings.beta
            )
            if matches(label):
                found.add(pair.reference_id)
    return [
        {
            "method": method, "prompt_id": prompt_id, "num_generations": generated[method, prompt_id],
            "num_references": len(found), "reference_ids": sorted(found),
        }
        for (method, prompt_id), found in matched.items()
    ]  # fmt: skip


def label_table(audit: AuditedCheckpoint, arm: Arm = BASELINE) -> pl.DataFrame:
    """Generations per region, rule, (method,) kind of prompt and label; with a truth table also the true share."""
    kinds = audit.read("prompts").select("prompt_id", pl.col("kind").fill_null(""))
    table = audit.read("labels", arm).join(kinds, on="prompt_id", how="left")
    group = ["masking", "rule", *(["method"] if arm.is_mitigated else []), "kind"]
    counts = table.group_by(group).agg(
        *[(pl.col("label") == label).sum().alias(label) for label in SEVERITY],
        pl.col("label").is_null().sum().alias("undecided"),
    )
    shares = pl.DataFrame() if arm.is_mitigated else true_label_shares(audit)
    if not shares.is_empty():
        counts = counts.join(shares.drop("generations"), on=group, how="left")
    return counts.sort(group, descending=[True, *[False] * (len(group) - 1)])


def true_label_shares(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Share of generations with their prompt's true label, per region, rule and kind; empty without a truth table."""
    truth = _truth(audit)
    if truth is None:
        return pl.DataFrame()
    true_labels = truth.select("prompt_id", "kind", true_label="label")
    table = audit.read("labels", BASELINE).join(true_labels, on="prompt_id", how="inner")
    shares = table.group_by("masking", "rule", "kind", "true_label").agg(
        (pl.col("label") == pl.col("true_label")).fill_null(False).mean().alias("true_share"),
        pl.len().alias("generations"),
    )
    return shares.sort("masking", "rule", "kind", descending=[True, False, False])


def _truth(audit: AuditedCheckpoint) -> pl.DataFrame | None:
    return None if audit.config.truth is None else pl.read_csv(audit.config.truth, infer_schema=False)


def _first(audit: AuditedCheckpoint) -> pl.Expr:
    settings = audit.config.similarity
    return (pl.col("masking") == settings.masking[0]) & (pl.col("rule") == settings.rule[0])


def _sheet(audit: AuditedCheckpoint, table: pl.DataFrame) -> str:
    """Generations of the first masking and rule that match something, each beside its most similar reference."""
    from fbmem_core.report.pictures import contact_sheet, side_by_side

    paths = dict(audit.references.select("reference_id", "path").iter_rows())
    images = audit.read("generations").select(*_IMAGE, "path")
    found = table.filter(_first(audit) & pl.col("label").is_in(["VM", "FM", "BM"])).join(images, on=_IMAGE)
    few = found.filter(pl.int_range(pl.len()).over("method", "prompt_id") < 1).head(_SHEET_TILES)
    tiles = []
    for row in few.iter_rows(named=True):
        source = {"VM": "full", "FM": "foreground", "BM": "background"}[row["label"]]
        reference = open_rgb(paths[row[f"{source}_reference_id"]])
        pair = side_by_side(open_image(audit.store, row["path"]), reference)
        tiles.append((f"{row['label']} {row['prompt_id']}", pair))
    return contact_sheet(tiles, columns=8, tile=108)
