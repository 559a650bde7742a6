"""Stage robustness: labels made again under disturbances of pictures, mattes and beta."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.neighbors import generation_set, reference_planes
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint, ImageKey
from fbmem_core.labels import label_generation
from fbmem_core.rules import Label

if TYPE_CHECKING:
    from fbmem_core.retrieval.image_sets import ImageSet
    from fbmem_core.retrieval.moved import MovedCopies
    from fbmem_core.retrieval.planes import Planes

STAGE = "robustness"


@table_asset(table="robustness", stage=STAGE, deps=["labels", "reference_masks"], kinds={"torch", "opencv"})
def robustness(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per disturbance: how many labels flip, of `robustness.num_images` images, labels in turn.

    `fragile_labels` names the images whose label flips under a small change of the mask.
    """
    audit = store.open(context.partition_key)
    rows = _chosen(audit)
    labels = _relabelled(context, audit, rows) if len(rows) else {}
    audit.write("robustness", _rates(labels))
    audit.write("fragile_labels", _fragile(rows, labels))
    table, fragile = audit.read("robustness"), audit.read("fragile_labels")
    return table_result(
        audit,
        "robustness",
        table,
        num_fragile=int(fragile["is_fragile"].sum()),
        fragile=markdown_table(fragile.filter("is_fragile").drop("checkpoint").to_dicts()),
        plot=picture(_plot(table), "labels that flip"),
    )


def _chosen(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Rows of `generations` with their label: the first of each label in turn, spread over prompts."""
    labels = audit.summary_labels().select(*ImageKey._fields, "label")
    order = pl.int_range(pl.len()).over("label", "prompt_id")
    turn = labels.sort(*ImageKey._fields).with_columns(of_prompt=order).sort("of_prompt", maintain_order=True)
    turn = turn.with_columns(turn=pl.int_range(pl.len()).over("label")).sort("turn", "label", maintain_order=True)
    chosen = turn.head(audit.config.robustness.num_images).drop("of_prompt", "turn")
    return chosen.join(audit.read("generations", BASELINE), on=list(ImageKey._fields), how="inner")


def _relabelled(
    context: dg.AssetExecutionContext, audit: AuditedCheckpoint, rows: pl.DataFrame
) -> dict[tuple[str, str, bool], list[Label | None]]:
    """Labels of the images by (disturbance, what it changes, whether it is small); first as they are."""
    import numpy as np

    from fbmem_core.evaluation.robustness import BETAS, DISTURBANCES, disturbed
    from fbmem_core.retrieval.image_sets import ImageSet
    from fbmem_core.retrieval.moved import MovedCopies

    settings = audit.config.similarity
    planes = reference_planes(audit, BASELINE)[settings.masking[0]]
    moved = MovedCopies(planes.images, settings.alignment) if planes.masking == "masked" else None
    images = generation_set(audit, rows)
    # by this very code, so that nothing but the disturbance differs
    labels: dict[tuple[str, str, bool], list[Label | None]] = {
        ("none", "", False): _labels(audit, images, planes, moved)
    }
    for disturbance in track(context, DISTURBANCES, what="labelling again"):
        pairs = list(disturbed(images.images, images.alphas, disturbance))
        changed = ImageSet(images.ids, np.stack([p for p, _ in pairs]), np.stack([a for _, a in pairs]), images.decided)
        key = (disturbance.name, disturbance.changes, disturbance.is_small)
        labels[key] = _labels(audit, changed, planes, moved)
    for beta, of_beta in zip(BETAS, _labels_by_beta(audit, images, planes, moved, BETAS), strict=True):
        labels[f"beta {beta:g}", "beta", False] = of_beta
    return labels


def _labels(
    audit: AuditedCheckpoint, images: "ImageSet", planes: "Planes", moved: "MovedCopies | None"
) -> list[Label | None]:
    return _labels_by_beta(audit, images, planes, moved, (audit.config.similarity.beta,))[0]


def _labels_by_beta(
    audit: AuditedCheckpoint, images: "ImageSet", planes: "Planes", moved: "MovedCopies | None", betas: Sequence[float]
) -> list[list[Label | None]]:
    """The label of each image with each beta, of one search."""
    from fbmem_core.retrieval.duplicates import foreground_fraction
    from fbmem_core.retrieval.search import search

    settings = audit.config.similarity
    searched = list(search(images, planes, settings, moved=moved))
    return [
        [
            label_generation(
                pairs,
                foreground_fraction=foreground_fraction(images, row),
                rule=settings.rule[0],
                tau=settings.tau,
                beta=beta,
            ).label
            for row, (_, _, pairs) in enumerate(searched)
        ]
        for beta in betas
    ]


def _rates(labels: dict[tuple[str, str, bool], list[Label | None]]) -> list[dict[str, Any]]:
    from fbmem_core.evaluation.robustness import flip_rate

    rows = []
    for (name, changes, is_small), after in labels.items():
        if name != "none":
            flips = flip_rate(labels["none", "", False], after)
            rows.append({
                "disturbance": name, "changes": changes, "is_small": is_small, "num_images": flips.num_images,
                "num_flips": flips.num_flips, "rate": flips.rate, "low": flips.interval.low,
                "high": flips.interval.high,
            })  # fmt: skip
    return rows


def _fragile(rows: pl.DataFrame, labels: dict[tuple[str, str, bool], list[Label | None]]) -> list[dict[str, Any]]:
    if not labels:
        return []
    before = labels["none", "", False]
    fragile = []
    for row, key in enumerate(rows.select(ImageKey._fields).iter_rows(named=True)):
        flips = {name: is_small for (name, _, is_small), after in labels.items() if after[row] != before[row]}
        fragile.append({**key, "label": before[row], "is_fragile": any(flips.values()), "flips": sorted(flips)})
    return fragile


def _plot(table: pl.DataFrame) -> str:
    from fbmem_core.report.plots import bar_plot

    shown = dict(table.select("disturbance", "rate").iter_rows())
    return bar_plot(shown, title="Labels that flip", label="share of images")
