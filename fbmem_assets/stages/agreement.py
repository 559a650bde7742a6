"""Stage seed_agreement: what the model remembers, seen without any reference image."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, shown, table_asset, table_result
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint, ImageKey
from fbmem_core.labels import SEVERITY
from fbmem_core.store.batches import Batches
from fbmem_core.store.images import open_image
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    import torch

STAGE = "seed_agreement"
_VERSION = 1  # raise it when the same settings begin to give other values
_SHEET_TILES = 48
_MIN_AUC = 0.9


@table_asset(
    table="seed_agreement",
    stage=STAGE,
    deps=["prompts", "generation_masks", "labels"],
    kinds={"torch"},
)
def seed_agreement(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt: how much its images agree at the first steps of sampling, inside and outside foregrounds.

    No reference is looked at; the labels only serve to say how well it predicts them.
    """
    from fbmem_core.diffusion.seed_agreement import predict_label
    from fbmem_core.report.pictures import contact_sheet

    audit = store.open(context.partition_key)
    pieces = _pieces(audit)
    batches = Batches(audit.store, audit.partition, ["seed_agreement"], prefix="prompts", owner=["prompt_id"])
    audit.keep_shards("seed_agreement", (), among="[0-9a-f]*")  # an earlier version's: a file a prompt, without prefix
    present, _ = batches.state(report=context.log.warning)
    missing = {piece: rows for piece, rows in pieces.items() if piece not in present}
    # first, so that a stopped run leaves no prompt twice
    batches.keep({piece: (rows["prompt_id"][0],) for piece, rows in pieces.items() if piece not in missing})
    tiles: list[tuple[str, Any]] = []
    for piece, rows in track(context, missing.items(), what="comparing seeds", total=len(missing)):
        agreement, num_seeds = _agreement(audit, rows)
        prompt_id = rows["prompt_id"][0]
        row = {
            "prompt_id": prompt_id, "inside": agreement.inside, "outside": agreement.outside,
            "predicted_label": predict_label(agreement, threshold=audit.config.agreement.threshold),
            "num_seeds": num_seeds,
        }  # fmt: skip
        batches.write({"seed_agreement": [row]}, [piece])
        if len(tiles) < _SHEET_TILES:
            tiles.append((prompt_id, _map_picture(agreement.agreement_map)))
    batches.merge()
    table = audit.read("seed_agreement")
    judged = _judged(audit)
    maps: dict[str, Any] = {}
    if tiles:
        maps["maps"] = picture(contact_sheet(tiles, columns=12), "agreement: dark none, bright full")
        maps["maps_show"] = shown(len(tiles), len(pieces), "prompts")
    return table_result(
        audit,
        "seed_agreement",
        table,
        **maps,
        **{f"auc_{name}": value for name, value in areas(judged).items() if value is not None},
        predictions=markdown_table(_confusion(judged)),
        scatter=picture(_scatter(judged), "agreement inside and outside"),
        roc=picture(_roc(judged), "ROC against the labels"),
    )


@table_check(seed_agreement, severity=dg.AssetCheckSeverity.WARN)
def seed_agreement_tells_memorized_prompts(audit: AuditedCheckpoint) -> Verdict:
    """Against the labels, the area under the ROC curve of `memorized or not` is at least 0.9."""
    values = areas(_judged(audit))
    auc = values["memorized"]
    if auc is None:
        return Verdict(None, "all prompts are memorized, or none is")
    facts = {name: "undefined" if value is None else value for name, value in values.items()}
    return Verdict(auc >= _MIN_AUC, f"area under the ROC curve {auc:.3f}, at least {_MIN_AUC} wanted", facts)


def areas(judged: pl.DataFrame) -> dict[str, float | None]:
    """Area under the ROC curve against the labels: memorized, foreground (VM, FM), background (VM, BM) or not."""
    from sklearn.metrics import roc_auc_score

    values: dict[str, float | None] = {}
    for name, (truth, score) in _questions(judged).items():
        values[name] = float(roc_auc_score(truth, score)) if len(set(truth)) == 2 else None
    return values


def _pieces(audit: AuditedCheckpoint) -> dict[str, pl.DataFrame]:
    """The generations of each prompt that take part, under a name that changes with everything that matters."""
    masks = audit.read("masks", shard="generation*")
    usable = dict(masks.filter(pl.col("path").is_not_null()).select("image_id", "path").iter_rows())
    texts = dict(audit.read("prompts").select("prompt_id", "prompt").iter_rows())
    sampling = audit.config.sampling.of_images()
    pieces = {}
    generations = audit.read("generations", BASELINE).with_columns(
        pl.struct("method", "prompt_id", "seed")
        .map_elements(lambda row: usable.get(ImageKey(**row).image_id), return_dtype=pl.String)
        .alias("matte")
    )
    for rows in generations.drop_nulls("matte").partition_by("prompt_id", maintain_order=True):
        chosen = rows.head(audit.config.agreement.num_seeds).with_columns(
            pl.lit(texts[rows["prompt_id"][0]]).alias("prompt")
        )
        if len(chosen) >= 2:
            settings = audit.config.agreement.model_dump()
            facts = chosen.select("prompt_id", "prompt", "seed", "matte").rows()
            pieces[digest(_VERSION, audit.checkpoint.fingerprint, sampling, settings, facts)] = chosen
    return pieces


def _agreement(audit: AuditedCheckpoint, rows: pl.DataFrame) -> Any:
    import numpy as np
    import torch

    from fbmem_core.diffusion.guidance import guidance_of
    from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts, encode_unconditional
    from fbmem_core.diffusion.seed_agreement import predict_clean_latents, seed_agreement

    sampling = audit.config.sampling
    size: dict[str, Any] = {"height": sampling.height, "width": sampling.width}
    pipeline = audit.pipeline
    guidance = guidance_of(sampling)
    empty = encode_unconditional(pipeline, guidance.negative_prompt, **size)
    prompt = encode_prompts(pipeline, [rows["prompt"][0]], **size)
    latents = predict_clean_latents(
        pipeline,
        FirstStep(pipeline, rows["seed"].to_list(), **size).latents,
        (empty, prompt),
        guidance=guidance,
        num_inference_steps=sampling.steps,
        num_steps=min(audit.config.agreement.num_steps, sampling.steps),
    )[-1]
    mattes = []
    for path in rows["matte"]:
        mattes.append(np.asarray(open_image(audit.store, path).convert("L"), dtype=np.float32) / 255)
    alphas = torch.from_numpy(np.stack(mattes))[:, None].to(latents.device)
    return seed_agreement(latents, alphas), len(rows)


def _judged(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Agreement beside each prompt's most frequent label, by the first masking and rule, if it has one."""
    from fbmem_core.evaluation.changes import label_prompts

    labels = label_prompts(audit.summary_labels(), audit.read("prompts"))
    most = labels.drop_nulls("label").select("prompt_id", "label")
    return audit.read("seed_agreement").join(most, on="prompt_id").sort("prompt_id")


def _questions(judged: pl.DataFrame) -> dict[str, tuple[list[bool], list[float]]]:
    inside, outside = (judged[name].fill_null(-1.0) for name in ("inside", "outside"))
    best = judged.select(pl.max_horizontal("inside", "outside").fill_null(-1.0)).to_series()
    label = judged["label"]
    return {
        "memorized": ((label != "NM").to_list(), best.to_list()),
        "foreground": (label.is_in(["VM", "FM"]).to_list(), inside.to_list()),
        "background": (label.is_in(["VM", "BM"]).to_list(), outside.to_list()),
    }


def _confusion(judged: pl.DataFrame) -> list[dict[str, Any]]:
    """Prompts by label (rows) and predicted label."""
    predicted = [(pl.col("predicted_label") == label).sum().alias(f"predicted {label}") for label in SEVERITY]
    return judged.group_by("label").agg(*predicted).sort("label").to_dicts()


def _scatter(judged: pl.DataFrame) -> str:
    from fbmem_core.report.plots import line_plot

    groups = {
        label: (rows["inside"].fill_null(0).to_list(), rows["outside"].fill_null(0).to_list())
        for (label,), rows in judged.sort("label").group_by("label", maintain_order=True)
    }
    return line_plot(
        groups,
        title="Seed agreement by label",
        x_label="mean cosine inside the mask",
        label="mean cosine outside",
        style="o",
    )


def _roc(judged: pl.DataFrame) -> str:
    from sklearn.metrics import roc_curve

    from fbmem_core.report.plots import line_plot

    curves = {}
    for name, (truth, score) in _questions(judged).items():
        if len(set(truth)) == 2:
            false_positives, true_positives, _ = roc_curve(truth, score)
            curves[name] = (false_positives.tolist(), true_positives.tolist())
    return line_plot(
        curves, title="ROC against the labels", x_label="share of false positives", label="share of true positives"
    )


def _map_picture(agreement_map: "torch.Tensor") -> Any:
    import numpy as np
    from PIL import Image

    grey = (agreement_map.clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
    return Image.fromarray(grey).resize((72, 72), Image.Resampling.NEAREST)
