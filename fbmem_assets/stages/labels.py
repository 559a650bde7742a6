"""Stage labels: what each generation copies, and how many references one prompt brings forth."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, all_there, table_check
from fbmem_assets.orchestration.provenance import frozen_settings
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.inputs.truth import read_truth
from fbmem_core.labels import SEVERITY, label_generation, label_pair, matches
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.store.images import open_image

STAGE = "labels"
_SHEET_PAIRS = 6
_UNDECIDED = {True: "its matte is undecided", False: "it shows nothing that could be recognised"}
_REGION = {"VM": "full", "FM": "foreground", "BM": "background"}
_IMAGE = ["method", "prompt_id", "seed"]
# what the shipped canary must show: the least share of generations of a kind that carry the true label
_TRUE_SHARES = {"verbatim": 0.95, "foreground": 0.8, "background": 0.8, "public": 0.95}
_TRUE_SHARE = 0.8  # of any other kind
_TRUE_REFERENCE_SHARE = 0.75  # and of the pictures planted behind one one-to-many prompt, over 20 seeds or more
_MANY_SEEDS = 20


def labels_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    @table_asset(
        table="labels",
        stage=arm.stage(STAGE),
        deps=[arm.name("similarities")],
        name=arm.name("labels"),
        shards=arm.shard,
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, region, rule): VM, FM, BM or NM, and where each region came from."""
        audit = store.open(context.partition_key)
        rows, undecided = _label(audit, arm)
        audit.write("labels", rows, shard=arm.shard)
        audit.write("rejected", undecided, shard=f"labels-{arm.shard}")
        if not arm.is_mitigated:
            audit.write("audit_settings", [frozen_settings(audit)])
        table = audit.read("labels", arm)
        strongest = _strongest(audit, table)
        return table_result(
            audit,
            "labels",
            table,
            **label_shares(audit.summary_labels(arm)),
            label_table=markdown_table(label_table(audit, arm).to_dicts()),
            matches=picture(_sheet(audit, table), "generated beside what it copies"),
            matches_shown=f"the strongest copy of {min(len(strongest), _SHEET_PAIRS)} of {len(strongest)} prompts",
        )

    @table_check(asset, blocking=True)
    def every_generation_is_labelled(audit: AuditedCheckpoint) -> Verdict:
        """Check that every generation has a row for every masking and rule."""
        per_image = len(arm.maskings(audit.config)) * len(audit.config.similarity.rule)
        expected = len(audit.read("generations", arm)) * per_image
        present = len(audit.read("labels", arm))
        return all_there("labels", expected=expected, present=present)

    return asset, every_generation_is_labelled


def one_to_many_of(arm: Arm) -> dg.AssetsDefinition:
    """The asset of one pass."""

    @table_asset(
        table="one_to_many",
        stage=arm.stage(STAGE),
        deps=[arm.name("similarities")],
        name=arm.name("one_to_many"),
        shards=arm.shard,
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id): how many distinct references its generations match, whole or in a region.

        References that the measure itself takes for whole copies of each other count once: `reference_groups`.
        """
        audit = store.open(context.partition_key)
        rows = count_references(audit, arm)
        groups = reference_groups(audit, arm, rows)
        audit.write("reference_groups", groups, shard=arm.shard)
        merged = Counter((row["method"], row["prompt_id"]) for row in groups if row["group_id"] != row["reference_id"])
        for row in rows:
            row["num_references"] -= merged[row["method"], row["prompt_id"]]
        audit.write("one_to_many", rows, shard=arm.shard)
        return table_result(audit, "one_to_many", audit.read("one_to_many", arm), num_near_duplicates=merged.total())

    return asset


labels, every_generation_is_labelled = labels_of(BASELINE)
one_to_many = one_to_many_of(BASELINE)


@table_check(labels)
def labels_agree_with_truth(audit: AuditedCheckpoint) -> Verdict:
    """Check that each kind of prompt has its true label often enough, where there is a truth table."""
    if audit.config.truth is None:
        return Verdict(None, "the audit file names no table of true labels")
    shares = true_label_shares(audit)
    judged = shares.filter(_first(audit)).to_dicts()
    facts = {"shares": markdown_table(shares.to_dicts())}
    if not judged:
        return Verdict(False, "no image of a prompt of the truth file is labelled", facts)
    short = [
        f"{row['kind'] or 'all'}: {row['true_share']:.0%} are {row['true_label']}, {least:.0%} are wanted"
        for row in judged
        if row["true_share"] < (least := _TRUE_SHARES.get(row["kind"], _TRUE_SHARE))
    ]
    return Verdict(not short, "; ".join(short) or f"{len(judged)} kinds of prompts carry their true label", facts)


@table_check(one_to_many)
def one_to_many_agrees_with_truth(audit: AuditedCheckpoint) -> Verdict:
    """Check that a prompt behind which several pictures are planted, by the truth table, brings most of them forth."""
    truth = _truth(audit)
    if truth is None:
        return Verdict(None, "the audit file names no table of true labels")
    several = truth.rename({"reference_ids": "planted"}).filter(pl.col("planted").list.len() > 1)
    counted = audit.read("one_to_many").filter(pl.col("num_generations") >= _MANY_SEEDS)
    rows = counted.join(several, on="prompt_id").select(
        "prompt_id",
        "num_generations",
        pl.col("planted").list.len().alias("planted"),
        pl.col("planted").list.set_intersection("reference_ids").list.len().alias("found"),
    )
    if rows.is_empty():
        return Verdict(None, f"no prompt has several true references and {_MANY_SEEDS} images")
    short = rows.filter(pl.col("found") < _TRUE_REFERENCE_SHARE * pl.col("planted"))
    sentence = f"{len(rows) - len(short)} of {len(rows)} prompts bring {_TRUE_REFERENCE_SHARE:.0%} of their references"
    return Verdict(short.is_empty(), sentence, {"prompts": markdown_table(rows.to_dicts())})


def _label(audit: AuditedCheckpoint, arm: Arm) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `labels`, and those of `rejected`."""
    from fbmem_core.retrieval.search import searched

    settings = audit.config.similarity
    fractions = audit.foreground_fractions
    rows, undecided = [], []
    for image, masking, pairs in audit.pairs(arm):
        name = image.image_id
        for rule in settings.rule:
            label = label_generation(
                pairs, foreground_fraction=fractions[name], rule=rule, tau=settings.tau, beta=settings.beta
            )
            facts = {"masking": masking, "rule": rule, "searched": searched(settings, masking)}
            rows.append({**image._asdict(), **facts, **asdict(label)})
            if label.label is None:
                reason = _UNDECIDED[label.undecided == "matte"]
                undecided.append({"stage": STAGE, "item": f"{name} {masking} {rule}", "reason": reason})
    return rows, undecided


def reference_groups(audit: AuditedCheckpoint, arm: Arm, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `reference_groups`: of each prompt that matches several references, which are near-duplicates."""
    from fbmem_assets.stages.neighbors import reference_planes
    from fbmem_core.retrieval.duplicates import near_duplicates

    several = [row for row in rows if len(row["reference_ids"]) > 1]
    if not several:
        return []
    settings = audit.config.similarity
    planes = reference_planes(audit, arm)[settings.masking[0]]
    group_of = near_duplicates(planes, settings, [row["reference_ids"] for row in several])
    groups = []
    for row in several:
        first: dict[str, str] = {}  # of this prompt: a group may have its first reference elsewhere
        for name in row["reference_ids"]:
            group_id = first.setdefault(group_of[name], name)
            key = {"method": row["method"], "prompt_id": row["prompt_id"]}
            groups.append({**key, "reference_id": name, "group_id": group_id})
    return groups


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
        references = matched.setdefault(image[:2], set())
        for pair in pairs:
            label = label_pair(
                pair, foreground_fraction=fraction, rule=settings.rule[0], tau=settings.tau, beta=settings.beta
            )
            if matches(label):
                references.add(pair.reference_id)
    return [
        {
            "method": method, "prompt_id": prompt_id, "num_generations": generated[method, prompt_id],
            "num_references": len(references), "reference_ids": sorted(references),
        }
        for (method, prompt_id), references in matched.items()
    ]  # fmt: skip


def label_table(audit: AuditedCheckpoint, arm: Arm = BASELINE) -> pl.DataFrame:
    """Generations per masking, rule, (method,) kind of prompt and label; with a truth table also the true share.

    `undecided`: without a label. `partly_undecided`: with one, though one of their regions shows nothing.
    """
    table = audit.read("labels", arm).join(_kinds(audit), on="prompt_id", how="left")
    group = ["masking", "rule", *(["method"] if arm.is_mitigated else []), "kind"]
    counts = table.group_by(group).agg(
        *[(pl.col("label") == label).sum().alias(label) for label in SEVERITY],
        pl.col("label").is_null().sum().alias("undecided"),
        (pl.col("label").is_not_null() & pl.col("undecided").is_not_null()).sum().alias("partly_undecided"),
    )
    shares = pl.DataFrame() if arm.is_mitigated else true_label_shares(audit)
    if not shares.is_empty():
        counts = counts.join(shares.drop("generations"), on=group, how="left")
    return counts.sort(group, descending=[True, *[False] * (len(group) - 1)])


def _kinds(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Kinds of prompts: those of the truth file, by which true shares are counted, else those of the prompt file."""
    kinds, truth = audit.read("prompts").select("prompt_id", "kind"), _truth(audit)
    if truth is not None:
        kinds = kinds.join(truth.select("prompt_id", true_kind="kind"), on="prompt_id", how="left")
        is_named = pl.col("true_kind").fill_null("") != ""
        kinds = kinds.select("prompt_id", kind=pl.when(is_named).then("true_kind").otherwise("kind"))
    return kinds.with_columns(pl.col("kind").fill_null(""))


def true_label_shares(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Share of generations with their prompt's true label, per region, rule and kind; empty without a truth table."""
    truth = _truth(audit)
    if truth is None:
        return pl.DataFrame()
    true_labels = truth.select("prompt_id", true_label="label").join(_kinds(audit), on="prompt_id")
    table = audit.read("labels", BASELINE).join(true_labels, on="prompt_id", how="inner")
    shares = table.group_by("masking", "rule", "kind", "true_label").agg(
        (pl.col("label") == pl.col("true_label")).fill_null(False).mean().alias("true_share"),
        pl.len().alias("generations"),
    )
    return shares.sort("masking", "rule", "kind", descending=[True, False, False])


def _truth(audit: AuditedCheckpoint) -> pl.DataFrame | None:
    return None if audit.config.truth is None else read_truth(audit.config.truth)


def label_shares(labels: pl.DataFrame) -> dict[str, float]:
    """The share of each label among images, which Dagster plots over checkpoints."""
    names = {"VM": "vm", "FM": "fm", "BM": "bm", "NM": "nm"}
    total = max(len(labels), 1)
    shares = {f"share_{name}": labels.filter(label=label).height / total for label, name in names.items()}
    copied = shares["share_vm"] + shares["share_fm"] + shares["share_bm"]
    return shares | {"share_copied": copied, "num_undecided": labels["label"].null_count(), "num_images": len(labels)}


def _first(audit: AuditedCheckpoint) -> pl.Expr:
    settings = audit.config.similarity
    return (pl.col("masking") == settings.masking[0]) & (pl.col("rule") == settings.rule[0])


def _strongest(audit: AuditedCheckpoint, table: pl.DataFrame) -> pl.DataFrame:
    """Copies, of each prompt and method the most similar one in the region that is copied, most similar first."""
    similarity = pl.coalesce(
        pl.when(pl.col("label") == label).then(pl.col(f"{region}_similarity")) for label, region in _REGION.items()
    )
    copies = table.filter(_first(audit) & pl.col("label").is_in(list(_REGION))).with_columns(similarity=similarity)
    return copies.sort("similarity", descending=True).unique(["method", "prompt_id"], keep="first", maintain_order=True)


def _sheet(audit: AuditedCheckpoint, table: pl.DataFrame) -> str:
    """The strongest copies, each beside its reference, with what it is and how similar."""
    from fbmem_core.report.pictures import pair_sheet

    paths = dict(audit.references.select("reference_id", "path").iter_rows())
    images = audit.read("generations").select(*_IMAGE, "path")
    rows = _strongest(audit, table).head(_SHEET_PAIRS).join(images, on=_IMAGE, maintain_order="left")
    pairs = []
    for row in rows.iter_rows(named=True):
        reference = row[f"{_REGION[row['label']]}_reference_id"]
        method = "" if row["method"] == UNMITIGATED else f"{row['method']} "
        caption = f"{row['label']} {row['similarity']:.2f} {method}{row['prompt_id']} seed {row['seed']} | {reference}"
        pairs.append((caption, open_image(audit.store, row["path"]), open_rgb(paths[reference])))
    return pair_sheet(pairs)
