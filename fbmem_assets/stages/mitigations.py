"""Stage mitigations: the same prompts and seeds sampled again with the memory switched off, and labelled again."""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE, Part
from fbmem_assets.orchestration.tables import markdown_table, table_asset
from fbmem_assets.stages import generations as generations_stage
from fbmem_assets.stages import labels as labels_stage
from fbmem_assets.stages import masks as masks_stage
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_assets.stages import similarities as similarities_stage
from fbmem_assets.stages.clusters import embeddings
from fbmem_core.audit.config import MitigationConfig
from fbmem_core.audit.results import BASELINE, MITIGATED, AuditedCheckpoint, ImageKey
from fbmem_core.mitigation import METHODS
from fbmem_core.neurons.layers import NeuronSet
from fbmem_core.store.images import open_image
from fbmem_core.store.tables import Store, digest

if TYPE_CHECKING:
    from PIL import Image

    from fbmem_assets.stages.generations import Wanted
    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.mitigation.method import Evidence, Intervention, Method

STAGE = "mitigations"


def _sample_part(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    audit = store.open(context.partition_key)
    trials = trials_of(audit)
    wanted = _wanted(audit, trials, part)
    generations_stage.sample_missing(context, store, wanted, lambda name, some: trials[name].sample(some))


@table_asset(
    table="generations",
    stage=STAGE,
    deps=["labels", "prompt_clusters", "neuron_sets"],
    kinds={"torch"},
    name="mitigated_generations",
    work=_sample_part,
)
def mitigated_generations(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (method, prompt_id, seed): what is sampled with each mitigation of the audit file, seeds as before.

    Memorized prompts are sampled under what the method does for them; non-memorized ones, whose images are all
    labelled NM, with the mitigation on for all prompts at once, so that its side effects show.
    """
    audit = store.open(context.partition_key)
    trials = trials_of(audit)
    result = generations_stage.write_generations(audit, MITIGATED, _wanted(audit, trials, WHOLE))
    for trial in trials.values():
        trial.write_rows()
    for table in ("mitigations", "mitigated_neurons"):
        audit.keep_shards(table, [trial.shard for trial in trials.values()])
    rows = audit.read("mitigations").drop("checkpoint").to_dicts()
    return dg.MaterializeResult(
        data_version=result.data_version, metadata={**(result.metadata or {}), "mitigations": markdown_table(rows)}
    )


@dg.asset_check(asset=mitigated_generations, partitions_def=checkpoint_partitions)
def every_prompt_was_mitigated(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Every mitigation has an image for each prompt and seed that it is tried on."""
    audit = store.open(context.partition_key)
    names, asked = audit.method_names, requests(audit)
    expected = {(name, request.prompt_id, request.seed) for name in names for request in asked}
    found = set(audit.read("generations", MITIGATED).select("method", "prompt_id", "seed").iter_rows())
    lost = sorted(expected ^ found)
    return dg.AssetCheckResult(
        passed=not lost, metadata={"expected": len(expected), "found": len(found), "differing": str(lost[:20])}
    )


mitigated_generation_masks, every_mitigated_generation_has_a_mask = masks_stage.generation_masks_of(MITIGATED)
mitigated_neighbors, every_mitigated_generation_has_neighbors = neighbors_stage.neighbors_of(MITIGATED)
mitigated_similarities, every_mitigated_neighbor_is_scored = similarities_stage.similarities_of(MITIGATED)
mitigated_labels, every_mitigated_generation_is_labelled = labels_stage.labels_of(MITIGATED)
mitigated_one_to_many = labels_stage.one_to_many_of(MITIGATED)


def requests(audit: AuditedCheckpoint) -> "list[Request]":
    """What is sampled under each method: the first seeds of every prompt, memorized ones first."""
    num = audit.config.mitigations.samples_per_prompt
    non_memorized = set(audit.non_memorized_prompts)
    every = generations_stage.requests(audit, audit.read("prompts"))
    some = [r for r in every if num is None or r.seed < audit.config.sampling.seed + num]
    return sorted(some, key=lambda request: request.prompt_id in non_memorized)


def _wanted(audit: AuditedCheckpoint, trials: "Mapping[str, Trial]", part: Part) -> "list[Wanted]":
    from fbmem_core.diffusion.sampling import content_key

    asked = requests(audit)
    prompt_ids = set(part.of(list(dict.fromkeys(request.prompt_id for request in asked))))
    return [
        (name, request, content_key(audit.checkpoint.fingerprint, trial.key, request, audit.config.sampling))
        for name, trial in trials.items()
        for request in asked
        if request.prompt_id in prompt_ids
    ]


def trials_of(audit: AuditedCheckpoint) -> "dict[str, Trial]":
    """By name, every mitigation of the audit file. What the audit knows is read once for all, when it is needed."""
    labels = audit.summary_labels().select("prompt_id", "seed", "label")
    facts = [
        labels.rows(),  # not their similarities: the last digits of those may differ from run to run
        audit.read("neurons").filter(stage="refined").select("prompt_id", "layer", "neuron").rows(),
        audit.read("prompt_clusters").select("prompt_id", "cluster").rows(),
    ]
    non_memorized, evidence = frozenset(audit.non_memorized_prompts), cache(lambda: evidence_of(audit))
    trials = {}
    for spec in audit.config.mitigations.methods:
        shard = digest(METHODS[spec.method].version, spec.model_dump(exclude={"name"}), *facts)
        trials[spec.title] = Trial(audit, spec, shard, non_memorized, evidence)
    return trials


class Trial:
    """One mitigation of an audit. Its method is made when it is first needed: that loads the pipeline.

    `key` changes with all that the method's images depend on besides the prompt; `evidence` gives what the audit knows.
    """

    def __init__(
        self,
        audit: AuditedCheckpoint,
        spec: MitigationConfig,
        key: str,
        non_memorized: frozenset[str],
        evidence: "Callable[[], Evidence]",
    ) -> None:
        self.audit, self.spec = audit, spec
        self.non_memorized, self._evidence = non_memorized, evidence
        self.key, self.shard = f"{spec.title}:{key}", f"{spec.title}-{key}"

    def sample(self, some: "Sequence[Request]") -> "Iterator[tuple[Request, Image.Image]]":
        """Sample under the method."""
        from fbmem_core.mitigation.sampling import sample_mitigated

        return sample_mitigated(self.audit.pipeline, some, self.audit.config.sampling, _Interventions(self))

    def intervention(self, prompt_id: str) -> "Intervention":
        """What is changed while this prompt is sampled."""
        ask = self.method.everywhere if prompt_id in self.non_memorized else self.method.intervention
        return ask(prompt_id)

    def write_rows(self) -> None:
        """What the method is and what it switches off, unless that is there."""
        if self.shard in self.audit.shards("mitigations"):
            return
        rows = [
            {"method": self.spec.title, "prompt_id": prompt_id, "layer": layer, "neuron": neuron, "factor": value}
            for prompt_id in self.evidence.prompts
            for layer, factors in self.method.intervention(prompt_id).factors.items()
            for neuron, value in enumerate(factors.tolist())
            if value != 1
        ]
        self.audit.write("mitigated_neurons", rows, shard=self.shard)
        row = {
            "method": self.spec.title, "kind": self.spec.method,
            "options": json.dumps(self.method.options | {"num_clusters": self.spec.num_clusters}),
            "num_changed": self.method.num_neurons, "share": self.method.share,
        }  # fmt: skip
        self.audit.write("mitigations", [row], shard=self.shard)

    @cached_property
    def method(self) -> "Method":
        """The method with all that it may know."""
        return METHODS[self.spec.method](self.evidence, **self.spec.options)

    @cached_property
    def evidence(self) -> "Evidence":
        """What the audit knows, with this mitigation's own clusters and searches."""
        evidence, num = self._evidence(), self.spec.num_clusters
        if num is not None:
            from fbmem_core.clustering import cluster_prompts

            vectors, seed = embeddings(self.audit), self.audit.config.clusters.seed
            cluster = cluster_prompts(vectors, count=num, seed=seed).cluster.tolist()
            evidence = replace(evidence, clusters=dict(zip(evidence.prompts, cluster, strict=True)))
        folder = f"searches/{self.audit.partition}/{self.shard}"
        return replace(evidence, found=_Searches(self.audit.store, folder))


def evidence_of(audit: AuditedCheckpoint) -> "Evidence":
    """What an audit knows when it mitigates."""
    from fbmem_core.mitigation.method import Evidence
    from fbmem_core.neurons.layers import value_layers

    pipeline, sampling, settings = audit.pipeline, audit.config.sampling, audit.config.neurons
    labels = audit.summary_labels().filter(pl.col("label").is_in(["VM", "FM", "BM"]))
    return Evidence(
        pipeline=pipeline,
        prompts=dict(audit.read("prompts").select("prompt_id", "prompt").iter_rows()),
        memorized=frozenset(labels["prompt_id"]),
        neurons=audit.neurons(),
        clusters=dict(audit.read("prompt_clusters").select("prompt_id", "cluster").iter_rows()),
        layers=value_layers(pipeline.unet, settings.layers),
        non_memorized=audit.calibration_prompts(),
        height=sampling.height,
        width=sampling.width,
        seeds=range(sampling.seed, sampling.seed + settings.num_seeds),
        num_steps=settings.num_steps,
        mattes=_mattes(audit),
        guidance_scale=sampling.guidance_scale,
        num_inference_steps=sampling.steps,
    )


def _mattes(audit: AuditedCheckpoint) -> dict[str, dict[int, Any]]:
    """By prompt_id and seed, of the first seeds whose matte is decided."""
    import numpy as np
    import torch

    num = audit.config.agreement.num_seeds
    masks = audit.read("masks", shard=f"generation-{BASELINE.shard}").drop_nulls("path")
    path_of = dict(masks.select("image_id", "path").iter_rows())
    found: dict[str, dict[int, Any]] = {}
    images = audit.read("generations", BASELINE).select("method", "prompt_id", "seed")
    for method, prompt_id, seed in images.iter_rows():
        path = path_of.get(ImageKey(method, prompt_id, seed).image_id)
        of_prompt = found.setdefault(prompt_id, {})
        if path is not None and len(of_prompt) < num:
            matte = np.asarray(open_image(audit.store, path), dtype=np.float32) / 255
            of_prompt[seed] = torch.from_numpy(matte)[None]
    return found


class _Interventions(Mapping[str, "Intervention"]):
    """By prompt_id, each made when its images are sampled."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __getitem__(self, prompt_id: str) -> "Intervention":
        return self._trial.intervention(prompt_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._trial.evidence.prompts)

    def __len__(self) -> int:
        return len(self._trial.evidence.prompts)


class _Searches(MutableMapping[str, NeuronSet]):
    """Neurons that were found, kept in a folder of the store: one file for each search."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def __getitem__(self, name: str) -> NeuronSet:
        try:
            return NeuronSet.of(json.loads((self._store.root / self._path(name)).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, neurons: NeuronSet) -> None:
        content = json.dumps({layer: sorted(some) for layer, some in neurons.indices.items()})
        self._store.write_bytes(self._path(name), content.encode())

    def __delitem__(self, name: str) -> None:
        (self._store.root / self._path(name)).unlink()

    def __iter__(self) -> Iterator[str]:
        raise TypeError("searches are looked up by name")

    def __len__(self) -> int:
        return len(list((self._store.root / self._folder).glob("*.json")))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{digest(name)}.json"
