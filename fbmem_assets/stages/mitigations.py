"""Stage mitigations: the same prompts and seeds sampled again with the memory switched off, and labelled again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from fbmem_assets.orchestration.checks import Verdict, all_there, table_check
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE, Part
from fbmem_assets.orchestration.tables import markdown_table, table_asset
from fbmem_assets.stages import copied_regions as copied_regions_stage
from fbmem_assets.stages import generations as generations_stage
from fbmem_assets.stages import labels as labels_stage
from fbmem_assets.stages import masks as masks_stage
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_assets.stages import similarities as similarities_stage
from fbmem_assets.stages.trials import Trial, requests, trials_of
from fbmem_core.audit.results import MITIGATED, AuditedCheckpoint

if TYPE_CHECKING:
    from PIL import Image

    from fbmem_assets.stages.generations import PlannedImage
    from fbmem_core.diffusion.sampling import Request

STAGE = "mitigations"


def _sample_part(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    audit = store.open(context.partition_key)
    trials = trials_of(audit)
    generations = _planned_images(audit, trials, part)

    def sample(name: str, images: "Sequence[Request]") -> "Iterator[tuple[Request, Image.Image]]":
        for trial in trials.values():  # a method that cannot be used is refused before any work is done
            trial.method_type.check(audit.pipeline)
        return trials[name].sample(images)

    generations_stage.sample_missing(context, store, generations, sample)


@table_asset(
    table="generations",
    stage=STAGE,
    deps=["labels", "prompt_clusters", "neurons"],
    kinds={"torch"},
    name="mitigated_generations",
    shards=MITIGATED.shard,
    work=_sample_part,
)
def mitigated_generations(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, prompt_id, seed): what is sampled with each mitigation of the audit file, seeds as before.

    Memorized prompts are sampled under what the method does for them; non-memorized ones, whose images are all
    labelled NM, with the mitigation on for all prompts at once, so that its side effects show.
    """
    audit = store.open(context.partition_key)
    trials = trials_of(audit)
    result = generations_stage.write_generations(audit, MITIGATED, _planned_images(audit, trials, WHOLE))
    for trial in trials.values():
        trial.write_rows()
    for table in ("mitigations", "mitigated_neurons"):
        audit.keep_shards(table, [trial.shard for trial in trials.values()])
    rows = audit.read("mitigations").drop("checkpoint").to_dicts()
    return dg.MaterializeResult(
        data_version=result.data_version, metadata={**(result.metadata or {}), "mitigations": markdown_table(rows)}
    )


@table_check(mitigated_generations)
def every_prompt_was_mitigated(audit: AuditedCheckpoint) -> Verdict:
    """Check that every mitigation has an image for each prompt and seed that it is tried on."""
    names, images = audit.method_names, requests(audit)
    expected = {(name, request.prompt_id, request.seed) for name in names for request in images}
    sampled = set(audit.read("generations", MITIGATED).select("method", "prompt_id", "seed").iter_rows())
    differing = str(sorted(expected ^ sampled)[:20])
    return all_there("mitigated images", expected=len(expected), present=len(sampled), differing=differing)


mitigated_generation_masks, every_mitigated_generation_has_a_mask = masks_stage.generation_masks_of(MITIGATED)
mitigated_neighbors, every_mitigated_generation_has_neighbors = neighbors_stage.neighbors_of(MITIGATED)
mitigated_similarities, every_mitigated_neighbor_is_scored = similarities_stage.similarities_of(MITIGATED)
mitigated_labels, every_mitigated_generation_is_labelled = labels_stage.labels_of(MITIGATED)
mitigated_one_to_many = labels_stage.one_to_many_of(MITIGATED)
mitigated_copied_regions, every_mitigated_copy_has_its_regions = copied_regions_stage.copied_regions_of(MITIGATED)


def _planned_images(audit: AuditedCheckpoint, trials: "Mapping[str, Trial]", part: Part) -> "list[PlannedImage]":
    from fbmem_core.diffusion.sampling import content_key

    images = requests(audit)
    prompt_ids = set(part.of(list(dict.fromkeys(request.prompt_id for request in images))))
    return [
        (name, request, content_key(audit.checkpoint.fingerprint, trial.key, request, audit.config.sampling))
        for name, trial in trials.items()
        for request in images
        if request.prompt_id in prompt_ids
    ]
