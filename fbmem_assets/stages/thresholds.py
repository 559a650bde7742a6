"""Stage thresholds: how similar pictures that copy nothing come out, and which threshold keeps a promised rate."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore, segmenter_of
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.neighbors import reference_planes
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.inputs.references import MIN_SIDE, read_references

if TYPE_CHECKING:
    from fbmem_core.evaluation.thresholds import Threshold
    from fbmem_core.labels import PairSimilarity
    from fbmem_core.retrieval.controls import Control
    from fbmem_core.retrieval.image_sets import ImageSet

STAGE = "thresholds"
ANY = "any"
_REGIONS = {ANY: "copy_similarity", **{name: f"{name}_similarity" for name in ("full", "foreground", "background")}}


@table_asset(table="control_similarities", stage=STAGE, deps=["similarities", "reference_masks"], kinds={"torch"})
def control_similarities(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per control and near reference: what pictures that copy nothing come to.

    References against each other, images of prompts that were declared as non-memorized beforehand (one a prompt; never
    chosen by their label), and held-out pictures, where the audit file names some.
    """
    audit = store.open(context.partition_key)
    for source, controls in (
        ("references", track(context, list(_of_references(audit)), what="controls")),
        ("non_memorized", _of_prompts(audit)),
        ("held_out", _of_pictures(audit)),
    ):
        rows = [row for control in controls for row in _rows(audit, source, control)]
        audit.write("control_similarities", rows, shard=source)
    table = audit.read("control_similarities")
    counts = table.group_by("source").agg(pl.col("control_id").n_unique().alias("controls"), pl.len().alias("pairs"))
    return table_result(audit, "control_similarities", table, controls=markdown_table(counts.sort("source").to_dicts()))


@table_asset(table="thresholds", stage=STAGE, deps=["control_similarities"], kinds={"scipy"})
def thresholds(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per kind of controls, region and number of references: the threshold of the promised rate.

    Beside it stands the fixed threshold of the audit file, with how many controls and generations reach each.
    """
    audit = store.open(context.partition_key)
    audit.write("thresholds", _threshold_rows(audit))
    table = audit.read("thresholds")
    return table_result(
        audit,
        "thresholds",
        table,
        headline=headline(table),
        plot=picture(_plot(table), "threshold by number of references"),
        thresholds=markdown_table(_of_all_references(table).to_dicts()),
    )


@table_check(thresholds, severity=dg.AssetCheckSeverity.WARN)
def the_fixed_threshold_keeps_the_rate(audit: AuditedCheckpoint) -> Verdict:
    """Pictures that copy nothing reach the fixed threshold no more often than the rate of the audit file."""
    rows = _of_all_references(audit.read("thresholds")).filter(region=ANY)
    judged = rows.filter(pl.col("is_headline"))
    if judged.is_empty():
        return Verdict(None, headline(audit.read("thresholds")))
    row = judged.row(0, named=True)
    rate = audit.config.thresholds.rate
    sentence = (
        f"{row['fixed_num_above']} of {row['num_controls']} controls reach {row['fixed_threshold']:.2f}: "
        f"{row['fixed_rate_low']:.1%} to {row['fixed_rate_high']:.1%}, where {rate:.1%} is the rate"
    )
    return Verdict(row["fixed_rate_low"] <= rate, sentence)


def headline(table: pl.DataFrame) -> str:
    """A sentence on the calibrated threshold, or why there is none; for the end of an audit."""
    rows = _of_all_references(table).filter(region=ANY)
    chosen = rows.filter(pl.col("is_headline")).to_dicts()
    if not chosen:
        from fbmem_core.evaluation.thresholds import SOURCES

        without = sorted(rows.drop_nulls("reason").to_dicts(), key=lambda row: SOURCES.index(row["source"]))
        reasons = "; ".join(f"{row['source']}: {row['reason']}" for row in without)
        return f"no calibrated threshold ({reasons or 'there are no controls'})"
    row = chosen[0]
    return (
        f"threshold {row['threshold']:.3f} (95 % interval {row['low']:.3f} to {row['high']:.3f}) keeps at most "
        f"{row['promised_rate']:.1%} false copies by {row['num_controls']} controls ({row['source']}) against "
        f"{row['num_references']} references: {row['num_copies']} images reach it; the fixed "
        f"{row['fixed_threshold']:.2f}: {row['fixed_num_copies']} images, {row['fixed_num_above']} controls "
        f"({row['fixed_rate_low']:.1%} to {row['fixed_rate_high']:.1%})"
    )


def _of_references(audit: AuditedCheckpoint) -> "Iterator[Control]":
    from fbmem_core.retrieval.controls import reference_controls
    from fbmem_core.retrieval.moved import MovedCopies

    settings, num = audit.config.similarity, audit.config.thresholds.num_controls
    if num == 0 or len(audit.references) < 2:
        return
    planes = reference_planes(audit, BASELINE)[settings.masking[0]]
    moved = MovedCopies(planes.images, settings.alignment) if planes.masking == "masked" else None
    yield from reference_controls(planes, settings, num_controls=num, moved=moved)


def _of_prompts(audit: AuditedCheckpoint) -> "Iterator[Control]":
    """The first image of each prompt that was declared as non-memorized."""
    from fbmem_core.retrieval.controls import Control

    chosen, fractions = _non_memorized(audit), audit.foreground_fractions
    first: dict[str, int] = {}
    for prompt_id, seed in audit.read("generations", BASELINE).select("prompt_id", "seed").sort("seed").iter_rows():
        first.setdefault(prompt_id, seed)
    for image, masking, pairs in audit.pairs():
        is_first = image.prompt_id in chosen and image.seed == first[image.prompt_id]
        if is_first and masking == audit.config.similarity.masking[0]:
            by_reference: dict[str, list[PairSimilarity]] = {}
            for pair in pairs:
                by_reference.setdefault(pair.reference_id, []).append(pair)
            yield Control(image.image_id, fractions[image.image_id], by_reference)


def _non_memorized(audit: AuditedCheckpoint) -> set[str]:
    """The prompts that the audit file declares: by their kind, or by a text of `neurons.non_memorized_prompts`."""
    from fbmem_core.inputs.prompts import read_prompts

    kinds, file = audit.config.thresholds.non_memorized_kinds, audit.config.neurons.non_memorized_prompts
    texts = [] if file is None else [prompt.prompt for prompt in read_prompts(file)[0]]
    rows = audit.read("prompts").filter(pl.col("kind").is_in(kinds) | pl.col("prompt").is_in(texts))
    return set(rows["prompt_id"])


def _of_pictures(audit: AuditedCheckpoint) -> "Iterator[Control]":
    from fbmem_core.retrieval.controls import picture_controls
    from fbmem_core.retrieval.moved import MovedCopies

    folder, settings = audit.config.thresholds.held_out, audit.config.similarity
    if folder is None or audit.references.is_empty():
        return
    images = _held_out(audit, folder)
    planes = reference_planes(audit, BASELINE)[settings.masking[0]]
    moved = MovedCopies(planes.images, settings.alignment) if planes.masking == "masked" else None
    yield from picture_controls(images, planes, settings, moved=moved)


def _held_out(audit: AuditedCheckpoint, folder: Path) -> "ImageSet":
    """The held-out pictures with mattes by the audit's segmenter; unusable files become rows of `rejected`."""
    from fbmem_core.retrieval.image_sets import load_image_set

    segmenter = segmenter_of(audit.config.segmentation.model)
    entries = list(read_references(folder))
    usable = [e for e in entries if e.status == "ok" and min(e.width or 0, e.height or 0) >= MIN_SIDE]
    reasons = {e.path: e.reason or f"smaller than {MIN_SIDE} px" for e in entries if e not in usable}
    rejected = [{"stage": STAGE, "item": item, "reason": reason} for item, reason in reasons.items()]
    audit.write("rejected", rejected, shard="thresholds-held_out")
    items: list[tuple[str, Path | str, Path | None]] = []
    with TemporaryDirectory(prefix="fbmem-") as scratch:
        for number, entry in enumerate(usable):
            matte = segmenter.matte(open_rgb(entry.address))
            path = None if matte.alpha is None else Path(scratch) / f"{number}.png"
            if path is not None:
                matte.to_image().save(path)
            items.append((entry.reference_id, entry.address, path))
        return load_image_set(items, size=audit.config.similarity.size)


def _rows(audit: AuditedCheckpoint, source: str, control: "Control") -> Iterator[dict[str, Any]]:
    from fbmem_core.evaluation.thresholds import copy_similarity

    settings = audit.config.similarity
    for reference_id, pairs in control.pairs.items():
        value = copy_similarity(
            pairs, foreground_fraction=control.foreground_fraction, rule=settings.rule[0], beta=settings.beta
        )
        regions = {
            f"{region}_similarity": max((v for pair in pairs if (v := getattr(pair, region)) is not None), default=None)
            for region in ("full", "foreground", "background")
        }
        is_near_duplicate = reference_id in control.near_duplicates
        yield {
            "source": source, "control_id": control.control_id, "reference_id": reference_id,
            "copy_similarity": value, **regions, "is_near_duplicate": is_near_duplicate,
        }  # fmt: skip


def _threshold_rows(audit: AuditedCheckpoint) -> list[dict[str, Any]]:
    from fbmem_core.evaluation.thresholds import SOURCES, by_number_of_references

    table, references = audit.read("control_similarities"), audit.references["reference_id"].to_list()
    reached = _copies(audit)
    rows: list[dict[str, Any]] = []
    for source in SOURCES:
        of_source = table.filter(source=source)
        for region, column in _REGIONS.items():
            scores: dict[str, dict[str, float]] = {name: {} for name in of_source["control_id"]}
            counted = of_source.filter(~pl.col("is_near_duplicate") & pl.col(column).is_not_null())
            for control, reference, value in counted.select("control_id", "reference_id", column).iter_rows():
                scores[control][reference] = value
            for size, values in by_number_of_references(scores, references).items() if scores else ():
                copies = reached if region == ANY and size == len(references) else None
                rows.append(_row(audit, (source, region, size), values, copies))
    whole = [row for row in rows if row["num_references"] == len(references) and row["region"] == ANY]
    best = next((row for row in whole if row["threshold"] is not None), None)
    return [{**row, "is_headline": row is best} for row in rows]


def _row(
    audit: AuditedCheckpoint, key: tuple[str, str, int], scores: list[float], copies: list[float] | None
) -> dict[str, Any]:
    from fbmem_core.evaluation.thresholds import calibrated, fixed

    settings = audit.config.similarity
    threshold: Threshold = calibrated(scores, rate=audit.config.thresholds.rate, floor=settings.lowest)
    given = fixed(scores, settings.tau)
    value = threshold.value
    return {
        **dict(zip(("source", "region", "num_references"), key, strict=True)),
        "threshold": value, "low": threshold.low, "high": threshold.high, "promised_rate": threshold.promised_rate,
        "num_controls": threshold.num_controls, "num_above": threshold.num_above,
        "rate_low": threshold.rate.low, "rate_high": threshold.rate.high,
        "fixed_threshold": settings.tau, "fixed_num_above": given.num_above,
        "fixed_rate_low": given.rate.low, "fixed_rate_high": given.rate.high,
        "num_copies": None if copies is None or value is None else sum(copy >= value for copy in copies),
        "fixed_num_copies": None if copies is None else sum(copy >= settings.tau for copy in copies),
        "reason": threshold.reason,
    }  # fmt: skip


def _copies(audit: AuditedCheckpoint) -> list[float]:
    """The copy similarity of each generation, by the audit's first masking and rule."""
    from fbmem_core.evaluation.thresholds import copy_similarity

    settings, fractions = audit.config.similarity, audit.foreground_fractions
    return [
        copy_similarity(pairs, foreground_fraction=fractions[image.image_id], rule=settings.rule[0], beta=settings.beta)
        for image, masking, pairs in audit.pairs()
        if masking == settings.masking[0]
    ]


def _of_all_references(table: pl.DataFrame) -> pl.DataFrame:
    most = pl.col("num_references").max().over("source")
    return table.filter(pl.col("num_references") == most).drop("checkpoint")


def _plot(table: pl.DataFrame) -> str:
    from fbmem_core.report.plots import line_plot

    series: dict[str, tuple[list[float], list[float | None]]] = {}
    for rows in table.filter(region=ANY).sort("num_references").partition_by("source", as_dict=True).values():
        source = rows["source"][0]
        for name in ("threshold", "low", "high"):
            series[f"{source}: {name}"] = (rows["num_references"].to_list(), rows[name].to_list())
        series["fixed"] = (rows["num_references"].to_list(), rows["fixed_threshold"].to_list())
    return line_plot(
        series, title="Threshold of the promised rate", x_label="references", label="similarity", style="o-"
    )
