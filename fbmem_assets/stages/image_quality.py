"""Stage scores: what a mitigation does to images besides the memory, and its curve over strengths."""

from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import picture, table_asset, table_result
from fbmem_core.audit.results import BASELINE, MITIGATED, AuditedCheckpoint
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.store.images import open_image

if TYPE_CHECKING:
    from PIL import Image

    Images = dict[tuple[str, int], Image.Image]

STAGE = "scores"
MEMORIZED, NON_MEMORIZED = "memorized", "non-memorized"
_TWIN = "clean_twin"


@table_asset(table="image_quality", stage=STAGE, deps=["mitigation_scores", "labels", "mitigated_labels"])
def image_quality(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, prompts, metric): quality, alignment and diversity of images, side effects, the clean twin.

    The same prompts and seeds for every method. `side_effect` is how like non-memorized prompts' images stay to their
    unmitigated ones, `twin_similarity` how like images are to those of the clean twin (MS-SSIM; 1: the same). What
    cannot be measured has a reason in `status` and no value.
    """
    audit = store.open(context.partition_key)
    unmeasured: dict[str, dict[str, Any]] = {}  # nobody looks for the weights of such a metric again
    rows = []
    for prompts, images in _images(audit).items():
        for method, own in track(context, list(images.items()), what=f"quality, {prompts} prompts"):
            parts = [
                *_metrics(audit, own, unmeasured),
                *_comparisons(audit, own, images, is_memorized=prompts == MEMORIZED),
            ]
            rows += [{"method": method, "prompts": prompts, **part} for part in parts]
    audit.write("image_quality", rows)
    table = audit.read("image_quality")
    curves = {
        f"{metric}_curve": picture(_curve(audit, metric, prompts), f"memory left against {metric}")
        for metric, prompts in (
            ("side_effect", NON_MEMORIZED),
            ("twin_similarity", MEMORIZED),
            ("alignment", NON_MEMORIZED),
            ("clip", NON_MEMORIZED),
        )
        if len(table.filter((pl.col("metric") == metric) & (pl.col("prompts") == prompts)).drop_nulls("value"))
    }
    return table_result(audit, "image_quality", table, **curves)


def _images(audit: AuditedCheckpoint) -> "dict[str, dict[str, Images]]":
    """Images of the prompts and seeds that mitigations were tried on, by group of prompts and method."""
    non_memorized = set(audit.non_memorized_prompts)
    after = audit.read("generations", MITIGATED)
    before = audit.read("generations", BASELINE).join(
        after.select("prompt_id", "seed").unique(), on=["prompt_id", "seed"], how="semi", maintain_order="left"
    )
    groups: dict[str, dict[str, Images]] = {MEMORIZED: {}, NON_MEMORIZED: {}}
    columns = ["method", "prompt_id", "seed", "path"]
    for method, prompt_id, seed, path in pl.concat([before, after]).select(columns).iter_rows():
        group = groups[NON_MEMORIZED if prompt_id in non_memorized else MEMORIZED]
        group.setdefault(method, {})[prompt_id, seed] = open_image(audit.store, path)
    return groups


def _metrics(audit: AuditedCheckpoint, images: "Images", unmeasured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of the audit file."""
    from fbmem_core.diffusion.device import choose_device
    from fbmem_core.evaluation.quality import Clip, measure_quality

    texts = audit.prompts
    clip = Clip(audit.config.clusters.model, audit.config.clusters.weights)
    device = choose_device(audit.config.sampling.device)
    pictures, prompts = list(images.values()), [texts[prompt_id] for prompt_id, _ in images]
    rows = []
    for metric in audit.config.quality.metrics:
        if metric == "alignment":
            rows.append(_alignment(audit, pictures, prompts))
            continue
        row = unmeasured.get(metric) or vars(measure_quality(metric, pictures, prompts, clip=clip, device=device))
        if row["value"] is None:
            unmeasured[metric] = row
        rows.append(row)
    return rows


def _alignment(audit: AuditedCheckpoint, images: "list[Image.Image]", prompts: list[str]) -> dict[str, Any]:
    from fbmem_core.diffusion.checkpoint import find_checkpoint
    from fbmem_core.diffusion.loading import load_pipeline
    from fbmem_core.errors import InputError
    from fbmem_core.evaluation.alignment import prompt_alignment

    twin, sampling = audit.config.twin, audit.config.sampling
    try:
        judge = audit.pipeline
        if twin is not None:
            judge = load_pipeline(find_checkpoint(str(twin)), dtype=sampling.dtype, device=sampling.device)
        rivals = audit.calibration_prompts()
        return _row("alignment", prompt_alignment(judge, images, prompts, rivals), len(images))
    except InputError as error:
        return _row("alignment", [], len(images), why=str(error))


def _comparisons(
    audit: AuditedCheckpoint, images: "Images", by_method: "dict[str, Images]", *, is_memorized: bool
) -> list[dict[str, Any]]:
    """Diversity of a prompt's images, and their similarity to the unmitigated ones and to the clean twin's."""
    from fbmem_core.evaluation.quality import diversity, side_effect

    of_prompt: dict[str, list[Image.Image]] = {}
    for (prompt_id, _), image in images.items():
        of_prompt.setdefault(prompt_id, []).append(image)
    several = [own for own in of_prompt.values() if len(own) > 1]
    rows = [_row("diversity", [diversity(own) for own in several], len(images), why="one image a prompt")]
    if not is_memorized and UNMITIGATED in by_method:
        rows.append(_row("side_effect", list(side_effect(images, by_method[UNMITIGATED]).values()), len(images)))
    twins = [spec.title for spec in audit.config.mitigations.trials() if spec.method == _TWIN]
    if twins and twins[0] in by_method:
        rows.append(_row("twin_similarity", list(side_effect(images, by_method[twins[0]]).values()), len(images)))
    return rows


def _row(metric: str, values: list[float], num_images: int, *, why: str = "no images") -> dict[str, Any]:
    return {
        "metric": metric, "value": fmean(values) if values else None,
        "stddev": stdev(values) if len(values) > 1 else None, "num_images": num_images,
        "status": "measured" if values else f"not measured: {why}",
    }  # fmt: skip


def _curve(audit: AuditedCheckpoint, metric: str, prompts: str) -> str:
    """Share of the severity that is left against a metric: a line for each method over its strengths."""
    from fbmem_core.report.plots import line_plot

    quality = audit.read("image_quality").filter((pl.col("metric") == metric) & (pl.col("prompts") == prompts))
    values = dict(quality.drop_nulls("value").select("method", "value").iter_rows())
    scores = audit.read("mitigation_scores").filter((pl.col("weights") == "severity") & (pl.col("achievable") > 0))
    left = {row["method"]: 1 - row["score"] / row["achievable"] for row in scores.to_dicts()} | {UNMITIGATED: 1.0}
    families = dict(audit.read("mitigations").select("method", "family").iter_rows()) | {UNMITIGATED: UNMITIGATED}
    points: dict[str, list[tuple[float, float]]] = {}
    for method, family in families.items():
        if method in values and method in left:
            points.setdefault(family, []).append((values[method], left[method]))
    series = {family: tuple(zip(*sorted(own), strict=True)) for family, own in points.items()}
    title = f"Memory left against {metric} of {prompts} prompts"
    return line_plot(series, title=title, x_label=metric, label="share of severity left", style="o-")  # type: ignore[arg-type]
