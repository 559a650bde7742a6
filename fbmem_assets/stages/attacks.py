"""Stage attacks: after each mitigation, attacks that try to bring the memory back."""

from collections.abc import Sequence
from itertools import chain, cycle, zip_longest
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from PIL import Image

from fbmem_assets.orchestration.resources import AuditStore, segmenter_of, track
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_assets.stages.mitigations import Trial, trials_of
from fbmem_assets.stages.neighbors import reference_planes
from fbmem_core.audit.results import BASELINE, MITIGATED, AuditedCheckpoint
from fbmem_core.evaluation import Attack
from fbmem_core.labels import SEVERITY
from fbmem_core.similarity import SIMILARITIES
from fbmem_core.store.images import image_path, save_png
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fbmem_core.diffusion.sampling import Request

    Sampled = Iterator[tuple[Request, Image.Image]]

STAGE = "attacks"
_VERSION = 1  # raise it when the same settings begin to give other attacks
_REFERENCE = {"VM": "full_reference_id", "FM": "foreground_reference_id", "BM": "background_reference_id"}


@table_asset(table="attacks", stage=STAGE, deps=["labels", "mitigated_labels", "reference_masks"], kinds={"torch"})
def attacks(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, attack, prompt_id): whether a memory that was switched off can be brought back.

    `paraphrase`: the other prompts of the cluster, under what the method does for the attacked one. `adversarial`: a
    prompt embedding optimised towards the copied reference. `control`: towards one that no image of the audit is like,
    and only likeness to that counts: what the attack draws of it, it brings in itself. An attempt counts as returned
    if its label is at least as severe as the prompt's before the mitigation. An attack that has been made is kept.
    """
    audit = store.open(context.partition_key)
    settings, rows_of = audit.config.mitigations.model_dump(exclude={"methods"}), _attacked(audit)
    jobs = {
        f"{trial.shard}-{attack}-{digest(_VERSION, row, settings)}": (trial, attack, row)
        for trial in trials_of(audit).values()
        for attack in audit.config.mitigations.attacks
        for row in rows_of[attack]
    }
    whole = audit.shards("attacks", report=context.log.warning)
    missing = [shard for shard in jobs if shard not in whole]
    for shard in track(context, missing, what="attacking"):
        trial, attack, row = jobs[shard]
        audit.write("attacks", _attack(audit, trial, attack, row), shard=shard)
    audit.keep_shards("attacks", jobs)
    table = audit.read("attacks")
    shares = table.group_by("method", "attack", "label_before").agg(
        (pl.col("num_returned") > 0).mean().alias("prompts that return"),
        (pl.col("num_returned").sum() / pl.col("num_attempts").sum()).alias("attempts that return"),
        pl.len().alias("prompts"),
    )
    return table_result(
        audit,
        "attacks",
        table,
        shares=markdown_table(shares.sort("attack", "method", "label_before").to_dicts()),
    )


def _attacked(audit: AuditedCheckpoint) -> dict[Attack, list[dict[str, Any]]]:
    """By attack, memorized prompts with their most severe label and the reference that the attack aims at.

    That which the label names; for the control a strange one. Labels in turn, as many as asked.
    """
    num = audit.config.mitigations.num_attacked
    labels = audit.summary_labels(BASELINE).filter(pl.col("label").is_in(list(_REFERENCE)))
    worst: dict[str, dict[str, Any]] = {}
    for row in labels.sort("prompt_id", "seed").iter_rows(named=True):
        known = worst.get(row["prompt_id"])
        if known is None or SEVERITY[row["label"]] > SEVERITY[known["label"]]:
            reference = row[_REFERENCE[row["label"]]]
            worst[row["prompt_id"]] = {"prompt_id": row["prompt_id"], "label": row["label"], "reference": reference}
    by_label = [[row for row in worst.values() if row["label"] == label] for label in _REFERENCE]
    in_turn = [row for row in chain.from_iterable(zip_longest(*by_label)) if row is not None][:num]
    strange = [row | {"reference": name} for row, name in zip(in_turn, cycle(_strangers(audit)), strict=False)]
    return {"paraphrase": in_turn, "adversarial": in_turn, "control": strange}


def _strangers(audit: AuditedCheckpoint) -> list[str]:
    """The references that no image of the unmitigated model is like, the least like first."""
    tau = audit.config.similarity.tau
    likeness = (
        audit.read("similarities", BASELINE)
        .group_by("reference_id")
        .agg(pl.max_horizontal(pl.col(SIMILARITIES).max()).alias("most"))
    )
    every = audit.references.join(likeness, on="reference_id", how="left")
    strange = every.with_columns(pl.col("most").fill_null(0.0)).filter(pl.col("most") < tau)
    return strange.sort("most", "reference_id")["reference_id"].to_list()


def _attack(audit: AuditedCheckpoint, trial: Trial, attack: Attack, row: dict[str, Any]) -> list[dict[str, Any]]:
    """One row; none where the cluster has no other prompt."""
    sample = _paraphrased if attack == "paraphrase" else _adversarial
    images = [image for _, image in sample(audit, trial, row)]
    if not images:
        return []
    only = row["reference"] if attack == "control" else None
    found = _label(audit, images, f"{trial.spec.title}-{attack}-{row['prompt_id']}", only)
    mitigated = audit.summary_labels(MITIGATED).filter(
        (pl.col("method") == trial.spec.title) & (pl.col("prompt_id") == row["prompt_id"])
    )
    severe = SEVERITY[row["label"]]
    return [{
        "method": trial.spec.title, "attack": attack, "prompt_id": row["prompt_id"], "label_before": row["label"],
        "label_mitigated": _worst(mitigated["label"].to_list()), "label_attacked": _worst(found),
        "num_attempts": len(found), "num_returned": sum(SEVERITY[label or "NM"] >= severe for label in found),
    }]  # fmt: skip


def _paraphrased(audit: AuditedCheckpoint, trial: Trial, row: dict[str, Any]) -> "Sampled":
    from fbmem_core.evaluation.attacks import neighbor_requests
    from fbmem_core.mitigation.sampling import sample_mitigated

    known, settings = trial.evidence, audit.config.mitigations
    seeds = range(audit.config.sampling.seed, audit.config.sampling.seed + settings.attempts)
    some = neighbor_requests(known.prompts, known.clusters, row["prompt_id"], seeds)
    intervention = trial.method.intervention(row["prompt_id"])
    return sample_mitigated(known.pipeline, some, audit.config.sampling, {row["prompt_id"]: intervention})


def _adversarial(audit: AuditedCheckpoint, trial: Trial, row: dict[str, Any]) -> "Sampled":
    from dataclasses import replace

    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.evaluation.attacks import adversarial_embedding, starting_embeddings
    from fbmem_core.inputs.references import open_rgb
    from fbmem_core.mitigation.sampling import sample_mitigated

    known, sampling, prompt_id = trial.evidence, audit.config.sampling, row["prompt_id"]
    references = audit.read("reference_images")
    [path] = references.filter(pl.col("reference_id") == row["reference"])["path"]
    picture = open_rgb(path).resize((sampling.width, sampling.height), Image.Resampling.LANCZOS)
    intervention = trial.method.intervention(prompt_id)
    size = (sampling.height, sampling.width)
    some = [
        Request(prompt_id, known.prompts[prompt_id], sampling.seed + n)
        for n in range(audit.config.mitigations.attempts)
    ]
    for start in starting_embeddings(known.pipeline, known.prompts[prompt_id], size):
        found = adversarial_embedding(known.pipeline, picture, intervention, start=start)
        attacked = {prompt_id: replace(intervention, embeds=found)}
        yield from sample_mitigated(known.pipeline, some, sampling, attacked)


def _label(audit: AuditedCheckpoint, images: Sequence[Image.Image], name: str, only: str | None) -> list[str | None]:
    """The labels of these images against all references or a single one; the images are kept for people."""
    from fbmem_core.labels import label_generation
    from fbmem_core.retrieval.image_sets import load_image_set
    from fbmem_core.retrieval.neighbors import nearest_references, pair_similarities

    settings, items, fractions = audit.config.similarity, [], {}
    for number, image in enumerate(images):
        matte = segmenter_of(audit.config.segmentation.model).matte(image)
        path, matte_path = (
            image_path(f"attacks/{what}", audit.partition, f"{name}-{number}", digest(name, number))
            for what in ("image", "matte")
        )
        save_png(audit.store, path, image)
        if matte.alpha is not None:
            save_png(audit.store, matte_path, matte.to_image())
        fractions[str(number)] = None if matte.alpha is None else float((matte.alpha >= 0.5).mean())
        items.append(
            (str(number), audit.store.root / path, None if matte.alpha is None else audit.store.root / matte_path)
        )
    shown = load_image_set(items, size=settings.size)
    [planes] = reference_planes(audit, MITIGATED).values()
    nearest = nearest_references(shown, planes, masking=planes.masking, top_k=0, floor=settings.tau, tau=settings.tau)
    pairs = [(number, neighbor.reference_id) for number, some in nearest for neighbor in some]
    pairs = [pair for pair in pairs if only in (None, pair[1])]
    return [
        label_generation(
            found, foreground_fraction=fractions[number], rule=settings.rule[0], tau=settings.tau, beta=settings.beta
        ).label
        for number, found in pair_similarities(shown, planes, pairs, masking=planes.masking)
    ]


def _worst(labels: Sequence[str | None]) -> str | None:
    return max((label for label in labels if label is not None), key=SEVERITY.__getitem__, default=None)
