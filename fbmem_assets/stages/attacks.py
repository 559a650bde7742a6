"""Stage attacks: after each mitigation, attacks that try to bring the memory back."""

from collections.abc import Sequence
from itertools import chain, cycle, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from PIL import Image

from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore, segmenter_of
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_assets.stages.clusters import embeddings
from fbmem_assets.stages.neighbors import reference_planes
from fbmem_assets.stages.trials import Trial, trials_of
from fbmem_core.audit.results import BASELINE, MITIGATED, AuditedCheckpoint
from fbmem_core.errors import InputError
from fbmem_core.evaluation import Attack
from fbmem_core.evaluation.intervals import REFERENCE_OF, label_units
from fbmem_core.evaluation.shares import attack_shares
from fbmem_core.inputs.entries import picture_suffixes
from fbmem_core.labels import SEVERITY
from fbmem_core.store.images import UNUSABLE, image_path, save_png
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.retrieval.planes import Planes

    Sampled = Iterator[tuple[Request, Image.Image]]

STAGE = "attacks"
_VERSION = 4  # raise it when the same settings begin to give other attacks


@table_asset(table="attacks", stage=STAGE, deps=["labels", "mitigated_labels", "reference_masks"], kinds={"torch"})
def attacks(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, attack, prompt_id): whether a memory that was switched off can be brought back.

    `paraphrase`: the nearest other prompts of the cluster, under what the method does for the attacked one.
    `adversarial`: a prompt embedding optimised towards the copied reference. `control`: towards a held-out picture,
    which the model never saw: what the attack draws of it, it brings in itself. Only likeness to the attacked prompt's
    own references counts, or to that picture: an attempt is returned if its label against them is at least as severe
    as the prompt's before the mitigation. An attack that has been made is kept. Writes `attack_shares` too.
    """
    audit = store.open(context.partition_key)
    settings, rows_of = _settings(audit), _attacked(audit)
    jobs = {
        f"{trial.shard}-{attack}-{digest(_VERSION, row, settings)}": (trial, attack, row)
        for trial in trials_of(audit).values()
        if trial.spec.strength is None and not trial.spec.draw
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
    shares = attack_shares(table.to_dicts(), label_units(audit.summary_labels()))
    audit.write("attack_shares", shares)
    return table_result(audit, "attacks", table, shares=markdown_table(shares))


def _settings(audit: AuditedCheckpoint) -> dict[str, Any]:
    """All settings on which an attack and its labels depend, besides the mitigation."""
    config = audit.config
    return {
        "mitigations": config.mitigations.model_dump(mode="json", exclude={"methods"}),
        "sampling": config.sampling.model_dump(mode="json", exclude={"batch_size", "device"}),
        "similarity": config.similarity.model_dump(mode="json", exclude={"device"}),
        "segmentation": config.segmentation.model_dump(mode="json"),
    }


def _attacked(audit: AuditedCheckpoint) -> dict[Attack, list[dict[str, Any]]]:
    """Memorized prompts by attack, with their most severe label, the picture that is aimed at, and what counts.

    Aimed at is the reference that the label names, or a held-out picture; `own` are the ids of the pictures of which a
    likeness counts. Labels in turn, as many as asked.
    """
    num = audit.config.mitigations.num_attacked
    labels = audit.summary_labels(BASELINE).filter(pl.col("label").is_in(list(REFERENCE_OF)))
    worst: dict[str, dict[str, Any]] = {}
    own: dict[str, set[str]] = {}
    for row in labels.sort("prompt_id", "seed").iter_rows(named=True):
        prompt_id, label, reference = row["prompt_id"], row["label"], row[REFERENCE_OF[row["label"]]]
        own.setdefault(prompt_id, set()).add(reference)
        if prompt_id not in worst or SEVERITY[label] > SEVERITY[worst[prompt_id]["label"]]:
            worst[prompt_id] = {"prompt_id": prompt_id, "label": label, "reference": reference}
    for prompt_id, target in worst.items():
        target["own"] = sorted(own[prompt_id])
    by_label = [[row for row in worst.values() if row["label"] == label] for label in REFERENCE_OF]
    in_turn = [row for row in chain.from_iterable(zip_longest(*by_label)) if row is not None][:num]
    held_out = [
        row | {"reference": path.name, "own": [path.name]}
        for row, path in zip(in_turn, cycle(_held_out(audit)), strict=False)
    ]
    return {"paraphrase": in_turn, "adversarial": in_turn, "control": held_out}


def _held_out(audit: AuditedCheckpoint) -> list[Path]:
    """The pictures that the model never saw, by name; none unless the control is asked for."""
    folder = audit.config.mitigations.held_out
    if folder is None or "control" not in audit.config.mitigations.attacks:
        return []
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in picture_suffixes())
    if not pictures:
        raise InputError("pictures that the model never saw", "none", where=folder, cure="Put some there.")
    return pictures


def _attack(audit: AuditedCheckpoint, trial: Trial, attack: Attack, row: dict[str, Any]) -> list[dict[str, Any]]:
    """One row; none where the cluster has no other prompt."""
    sample = _paraphrased if attack == "paraphrase" else _adversarial
    # what holds no picture shows nothing, neither a return nor its absence
    images = [image for _, image in sample(audit, trial, row) if UNUSABLE not in image.info]
    if not images:
        return []
    planes = _held_out_planes(audit) if attack == "control" else reference_planes(audit, MITIGATED)
    labels = _label(audit, images, f"{trial.spec.title}-{attack}-{row['prompt_id']}", planes, row["own"])
    mitigated = audit.summary_labels(MITIGATED).filter(
        (pl.col("method") == trial.spec.title) & (pl.col("prompt_id") == row["prompt_id"])
    )
    severe = SEVERITY[row["label"]]
    return [{
        "method": trial.spec.title, "attack": attack, "prompt_id": row["prompt_id"], "label_before": row["label"],
        "label_mitigated": _worst(mitigated["label"].to_list()), "label_attacked": _worst(labels),
        "num_attempts": len(labels), "num_returned": sum(SEVERITY[label or "NM"] >= severe for label in labels),
    }]  # fmt: skip


def _paraphrased(audit: AuditedCheckpoint, trial: Trial, row: dict[str, Any]) -> "Sampled":
    from fbmem_core.evaluation.attacks import neighbor_requests
    from fbmem_core.mitigation.sampling import sample_mitigated

    evidence, settings = trial.evidence, audit.config.mitigations
    seeds = range(audit.config.sampling.seed, audit.config.sampling.seed + settings.attempts)
    requests = neighbor_requests(
        evidence.prompts,
        evidence.clusters,
        row["prompt_id"],
        seeds,
        vectors=dict(zip(audit.prompts, embeddings(audit), strict=True)),
        num_neighbors=settings.num_neighbors,
    )
    intervention = trial.method.intervention(row["prompt_id"])
    return sample_mitigated(evidence.pipeline, requests, audit.config.sampling, {row["prompt_id"]: intervention})


def _adversarial(audit: AuditedCheckpoint, trial: Trial, row: dict[str, Any]) -> "Sampled":
    from dataclasses import replace

    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.evaluation.attacks import adversarial_embedding, starting_embeddings
    from fbmem_core.inputs.pictures import open_rgb
    from fbmem_core.mitigation.sampling import sample_mitigated

    evidence, sampling, prompt_id = trial.evidence, audit.config.sampling, row["prompt_id"]
    paths: dict[str, str | Path] = {path.name: path for path in _held_out(audit)}
    paths |= dict(audit.references.select("reference_id", "path").iter_rows())
    picture = open_rgb(paths[row["reference"]]).resize((sampling.width, sampling.height), Image.Resampling.LANCZOS)
    intervention = trial.method.intervention(prompt_id)
    size = (sampling.height, sampling.width)
    requests = [
        Request(prompt_id, evidence.prompts[prompt_id], sampling.seed + n)
        for n in range(audit.config.mitigations.attempts)
    ]
    for start in starting_embeddings(evidence.pipeline, evidence.prompts[prompt_id], size):
        embedding = adversarial_embedding(
            evidence.pipeline, picture, intervention, start=start, prompt=evidence.prompts[prompt_id]
        )
        attacked = {prompt_id: replace(intervention, embeds=embedding)}
        yield from sample_mitigated(evidence.pipeline, requests, sampling, attacked)


def _held_out_planes(audit: AuditedCheckpoint) -> "dict[str, Planes]":
    """The held-out pictures as references are compared."""
    from fbmem_core.retrieval.image_sets import load_image_set
    from fbmem_core.retrieval.planes import Planes

    settings = audit.config.similarity
    items = [_with_matte(audit, path, f"held-out-{path.stem}") for path in _held_out(audit)]
    images = load_image_set([(path.name, path, matte) for path, matte in items], size=settings.size)
    return {region: Planes(images, region) for region in MITIGATED.maskings(audit.config)}


def _with_matte(audit: AuditedCheckpoint, path: Path, name: str) -> tuple[Path, Path | None]:
    """An image and the file of its matte in the store; None where undecided."""
    from fbmem_core.inputs.pictures import open_rgb

    matte = segmenter_of(audit.config.segmentation.model).matte(open_rgb(path))
    if matte.alpha is None:
        return path, None
    file = image_path("attacks/matte", audit.partition, name, digest(name))
    save_png(audit.store, file, matte.to_image())
    return path, audit.store.root / file


def _label(
    audit: AuditedCheckpoint,
    images: Sequence[Image.Image],
    name: str,
    planes: "dict[str, Planes]",
    own: Sequence[str],
) -> list[str | None]:
    """The labels of these images against the references that count; the images are kept for people."""
    from fbmem_core.retrieval.image_sets import load_image_set
    from fbmem_core.retrieval.search import label_images

    settings, items = audit.config.similarity, []
    for number, image in enumerate(images):
        path = image_path("attacks/image", audit.partition, f"{name}-{number}", digest(name, number))
        save_png(audit.store, path, image)
        items.append((str(number), *_with_matte(audit, audit.store.root / path, f"{name}-{number}")))
    [compared] = planes.values()
    attacked = label_images(load_image_set(items, size=settings.size), compared, settings, own=own)
    return [image.label.label for image in attacked]


def _worst(labels: Sequence[str | None]) -> str | None:
    return max((label for label in labels if label is not None), key=SEVERITY.__getitem__, default=None)
