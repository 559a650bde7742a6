"""Stage detectors: who is memorized, by every detector that needs no reference, under one protocol."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.families import halves_and_families
from fbmem_assets.stages.trials import mattes_of
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    import numpy as np

    from fbmem_core.evaluation.detectors import Detector
    from fbmem_core.evaluation.probe import Probe, Subject

STAGE = "detectors"
_VERSION = 1  # raise it when the same settings begin to give other scores
_MEASURED = "measured"
_NO_SCORES = {"auc": None, "auc_low": None, "auc_high": None, "tpr": None, "tpr_low": None, "tpr_high": None}


@table_asset(
    table="detectors", stage=STAGE, deps=["prompts", "generation_masks", "labels"], kinds={"torch", "scikitlearn"}
)
def detectors(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (detector, half): AUC, hits at 1 % false alarms, seconds.

    Memorized are the prompts with an image labelled VM, FM or BM, the others those whose images are all NM. Writes
    `detector_scores` and `detector_masks` too. A detector that cannot look into the model has a reason and no value.
    """
    audit = store.open(context.partition_key)
    status = {name: _measure(context, audit, name) for name in audit.config.detection.detectors}
    scores = audit.read("detector_scores").join(_design(audit), on="prompt_id")
    rows = [_row(name, half, part, status[name]) for name in status for half, part in _halves(scores, name)]
    audit.write("detectors", rows)
    table = audit.read("detectors")
    return table_result(
        audit,
        "detectors",
        table,
        roc=picture(_roc(scores), "ROC of the test prompts"),
        masks=markdown_table(audit.read("detector_masks").drop("checkpoint").to_dicts()),
    )


@table_check(detectors)
def every_prompt_is_scored(audit: AuditedCheckpoint) -> Verdict:
    """Check that every detector that can look into the model has scored every prompt."""
    measured = audit.read("detectors").filter(~pl.col("status").str.contains("Expected"))["detector"].unique()
    scored = audit.read("detector_scores").group_by("detector").len()
    counts = dict(scored.iter_rows())
    missing = {name: len(audit.prompts) - counts.get(name, 0) for name in measured}
    if not missing:
        return Verdict(None, "no detector can look into this model")
    sentence = f"{sum(map(bool, missing.values()))} of {len(missing)} detectors left prompts without a score"
    return Verdict(not any(missing.values()), sentence, {"prompts without a score": str(missing)})


def _measure(context: dg.AssetExecutionContext, audit: AuditedCheckpoint, name: str) -> str:
    """Score every prompt that is not scored yet; why that cannot be done, if it cannot."""
    from fbmem_core.errors import InputError
    from fbmem_core.evaluation.detectors import DETECTORS

    detector, shard = DETECTORS[name](), f"{name}-{digest(_VERSION, *_facts(audit))}"
    for table in ("detector_scores", "detector_masks"):
        audit.keep_shards(table, [shard], among=f"{name}-*")
    if shard in audit.shards("detector_scores") & audit.shards("detector_masks"):
        return _MEASURED
    try:
        rows, maps = _score_prompts(context, audit, detector)
    except InputError as error:
        return f"not measured: {error}"
    audit.write("detector_masks", _mask_rows(audit, name, maps), shard=shard)
    audit.write("detector_scores", rows, shard=shard)
    return _MEASURED


def _score_prompts(
    context: dg.AssetExecutionContext, audit: AuditedCheckpoint, detector: "Detector"
) -> "tuple[list[dict[str, Any]], dict[tuple[str, int], np.ndarray]]":
    """Rows of scores, and by image the maps of detectors that draw any."""
    from fbmem_core.evaluation.detectors import measure
    from fbmem_core.evaluation.probe import Subject

    settings, probe = audit.config.detection, _probe(audit)
    usual = audit.calibration_prompts()[: settings.num_calibration_prompts]
    detector.calibrate(probe, [Subject(probe.encode([text])) for text in usual])
    rows: list[dict[str, Any]] = []
    maps: dict[tuple[str, int], np.ndarray] = {}
    subjects = list(_subjects(audit, probe))
    for prompt_id, subject in track(context, subjects, what=f"detector {detector.name}", total=len(subjects)):
        result = measure(detector, probe, subject)
        rows.append({
            "detector": detector.name, "prompt_id": prompt_id, "score": result.score, "seconds": result.seconds,
            "num_seeds": len(probe.seeds),
        })  # fmt: skip
        drawn = detector.maps(probe, subject)
        if drawn is not None:
            maps |= {(prompt_id, seed): one.cpu().numpy() for seed, one in zip(probe.seeds, drawn, strict=True)}
    return rows, maps


def _probe(audit: AuditedCheckpoint) -> "Probe":
    from fbmem_core.diffusion.guidance import guidance_of
    from fbmem_core.evaluation.probe import Probe

    config, sampling = audit.config, audit.config.sampling
    return Probe(
        pipeline=audit.pipeline,
        seeds=range(sampling.seed, sampling.seed + config.detection.num_seeds),
        height=sampling.height,
        width=sampling.width,
        guidance=guidance_of(sampling),
        num_inference_steps=sampling.steps,
        num_agreement_steps=config.agreement.num_steps,
    )


def _subjects(audit: AuditedCheckpoint, probe: "Probe") -> "Iterator[tuple[str, Subject]]":
    """Subjects, one a prompt; with mattes where its images at all of the protocol's seeds have decided ones."""
    import torch

    from fbmem_core.evaluation.probe import Subject

    mattes = mattes_of(audit)
    for prompt_id, text in audit.prompts.items():
        own = mattes.get(prompt_id, {})
        decided = [own[seed] for seed in probe.seeds if seed in own]
        whole = torch.stack(decided) if len(decided) == len(probe.seeds) else None
        yield prompt_id, Subject(probe.encode([text]), whole)


def _facts(audit: AuditedCheckpoint) -> list[Any]:
    """All that scores and masks depend on."""
    config = audit.config
    masks = audit.read("masks", shard="generation*").select("image_id", "path").sort("image_id")
    return [
        audit.checkpoint.fingerprint,
        audit.prompts,
        audit.summary_labels().select("prompt_id", "seed", "label").rows(),
        masks.rows(),
        audit.calibration_prompts()[: config.detection.num_calibration_prompts],
        config.detection.model_dump(exclude={"detectors"}),
        config.agreement.model_dump(include={"num_steps", "num_seeds"}),
        config.sampling.model_dump(exclude={"batch_size", "device"}),
    ]


def _design(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Design by prompt: whether it is memorized, its half, and the group that it is independent by."""
    labels = audit.summary_labels()
    memorized = labels.group_by("prompt_id").agg(
        (pl.col("label") != "NM").any().alias("is_memorized"), pl.col("label").is_null().all().alias("is_undecided")
    )
    kept = memorized.filter(~pl.col("is_undecided")).drop("is_undecided").drop_nulls()
    return kept.join(halves_and_families(audit), on="prompt_id", how="left").sort("prompt_id")


def _halves(scores: pl.DataFrame, name: str) -> list[tuple[str, pl.DataFrame]]:
    own = scores.filter(pl.col("detector") == name)
    return [(half, own.filter(pl.col("half") == half)) for half in sorted(scores["half"].unique())] or [("test", own)]


def _row(name: str, half: str, scores: pl.DataFrame, status: str) -> dict[str, Any]:
    from fbmem_core.errors import InputError
    from fbmem_core.evaluation.detection import detection

    row: dict[str, Any] = {"detector": name, "half": half, "seconds": scores["seconds"].mean(), "status": status}
    num_memorized = int(scores["is_memorized"].sum())
    counts = {"num_memorized": num_memorized, "num_non_memorized": len(scores) - num_memorized}
    try:
        result = detection(scores["score"].to_list(), scores["is_memorized"].to_list(), scores["family"].to_list())
    except InputError as error:
        why = status if status != _MEASURED else f"not measured: {error}"
        return row | _NO_SCORES | counts | {"status": why}
    return row | vars(result)


def _mask_rows(audit: AuditedCheckpoint, name: str, maps: "dict[tuple[str, int], np.ndarray]") -> list[dict[str, Any]]:
    """IoU by label, of test images at the quantile that development images choose."""
    import numpy as np

    from fbmem_core.evaluation.detection import best_threshold, intersection_over_union, mask_of, mean_interval

    design = {row["prompt_id"]: row for row in _design(audit).iter_rows(named=True)}
    truths = _copied_regions(audit, maps)
    rows = []
    for label in ("FM", "BM"):
        images = [image for image, (of_image, _) in truths.items() if of_image == label and image[0] in design]
        halves = {half: [image for image in images if design[image[0]]["half"] == half] for half in _HALVES}
        test = halves["test"] or halves["development"]
        if not test:
            continue
        chosen_on = halves["development"] or test
        quantile = best_threshold([maps[i] for i in chosen_on], [truths[i][1] for i in chosen_on])
        ious = [intersection_over_union(mask_of(maps[i], quantile), truths[i][1]) for i in test]
        low, high = mean_interval(ious, [design[i[0]]["family"] for i in test])
        rows.append({
            "detector": name, "label": label, "quantile": quantile, "iou": float(np.mean(ious)), "low": low,
            "high": high, "iou_of_all": float(np.mean([truths[i][1].mean() for i in test])), "num_images": len(test),
            "is_held_out": bool(halves["test"] and halves["development"]),
        })  # fmt: skip
    return rows


_HALVES = ("development", "test")


def _copied_regions(
    audit: AuditedCheckpoint, images: "Sequence[tuple[str, int]] | dict[tuple[str, int], np.ndarray]"
) -> "dict[tuple[str, int], tuple[str, np.ndarray]]":
    """Labels of images and masks of where it is a copy, at the size of the maps; of images labelled FM or BM."""
    import torch
    from torch.nn import functional as F

    mattes = mattes_of(audit)
    labels = audit.summary_labels().filter(pl.col("label").is_in(["FM", "BM"]))
    regions = {}
    for prompt_id, seed, label in labels.select("prompt_id", "seed", "label").iter_rows():
        matte = mattes.get(prompt_id, {}).get(seed)
        if (prompt_id, seed) not in images or matte is None:
            continue
        size = images[prompt_id, seed].shape  # type: ignore[call-overload]
        foreground = F.adaptive_avg_pool2d(torch.as_tensor(matte)[None].float(), size)[0, 0].numpy() >= 0.5
        regions[prompt_id, seed] = label, foreground if label == "FM" else ~foreground
    return regions


def _roc(scores: pl.DataFrame) -> str:
    from sklearn.metrics import roc_curve

    from fbmem_core.report.plots import line_plot

    curves = {}
    for (name,), rows in scores.filter(half="test").group_by("detector", maintain_order=True):
        if rows["is_memorized"].n_unique() == 2:
            false_positives, true_positives, _ = roc_curve(rows["is_memorized"].to_list(), rows["score"].to_list())
            curves[str(name)] = (false_positives.tolist(), true_positives.tolist())
    return line_plot(
        curves,
        title="Detectors without references",
        x_label="share of false positives",
        label="share of true positives",
    )
