"""Stage mitigations: the same prompts and seeds sampled again with the memory switched off, and labelled again."""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.arms import BASELINE, MITIGATED
from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE, Part
from fbmem_assets.orchestration.tables import markdown_table, table_asset
from fbmem_assets.stages import generations as generations_stage
from fbmem_assets.stages import labels as labels_stage
from fbmem_assets.stages import masks as masks_stage
from fbmem_assets.stages import neighbors as neighbors_stage
from fbmem_assets.stages import neurons as neurons_stage
from fbmem_assets.stages import similarities as similarities_stage
from fbmem_assets.stages.clusters import embeddings
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.settings import TrialSpec
from fbmem_core.neurons.layers import NeuronSet
from fbmem_core.store.images import open_image
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from PIL import Image

    from fbmem_assets.stages.generations import Wanted
    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.mitigation.method import Evidence, Intervention, Method

STAGE = "mitigations"


def _sample_part(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    trials = trials_of(store, context.partition_key)
    wanted = _wanted(store, context.partition_key, trials, part)

    def sample(name: str, requests: "Sequence[Request]") -> "Iterator[tuple[Request, Image.Image]]":
        for trial in trials.values():  # a method that cannot be used is refused before any work is done
            trial.method_type.check(store.pipeline(context.partition_key))
        return trials[name].sample(requests)

    generations_stage.sample_missing(context, store, wanted, sample)


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
    key = context.partition_key
    trials = trials_of(store, key)
    result = generations_stage.write_generations(store, key, MITIGATED, _wanted(store, key, trials, WHOLE))
    for trial in trials.values():
        trial.write_rows()
    for table in ("mitigations", "mitigated_neurons"):
        store.tables.keep_shards(table, key, [trial.shard for trial in trials.values()])
    rows = store.tables.read("mitigations", key).drop("checkpoint").to_dicts()
    return dg.MaterializeResult(
        data_version=result.data_version, metadata={**(result.metadata or {}), "mitigations": markdown_table(rows)}
    )


@dg.asset_check(asset=mitigated_generations, partitions_def=checkpoint_partitions)
def every_prompt_was_mitigated(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Every mitigation has an image for each prompt and seed that it is tried on."""
    key = context.partition_key
    images = requests(store, key)
    expected = {(name, image.prompt_id, image.seed) for name in method_names(store, key) for image in images}
    sampled = set(MITIGATED.rows(store, "generations", key).select("method", "prompt_id", "seed").iter_rows())
    differing = sorted(expected ^ sampled)
    return dg.AssetCheckResult(
        passed=not differing,
        metadata={"expected": len(expected), "found": len(sampled), "differing": str(differing[:20])},
    )


mitigated_generation_masks, every_mitigated_generation_has_a_mask = masks_stage.generation_masks_of(MITIGATED)
mitigated_neighbors, every_mitigated_generation_has_neighbors = neighbors_stage.neighbors_of(MITIGATED)
mitigated_similarities, every_mitigated_neighbor_is_scored = similarities_stage.similarities_of(MITIGATED)
mitigated_labels, every_mitigated_generation_is_labelled = labels_stage.labels_of(MITIGATED)
mitigated_one_to_many = labels_stage.one_to_many_of(MITIGATED)


def requests(store: AuditStore, key: str) -> "list[Request]":
    """What is sampled under each method: the first seeds of every prompt, memorized ones first."""
    audit, _ = store.audit(key)
    num = audit.mitigations.samples_per_prompt
    non_memorized = set(neurons_stage.non_memorized_prompts(store, key))
    images = generations_stage.requests(audit, store.tables.read("prompts", key))
    first = [image for image in images if num is None or image.seed < audit.sampling.seed + num]
    return sorted(first, key=lambda image: image.prompt_id in non_memorized)


def _wanted(store: AuditStore, key: str, trials: "Mapping[str, Trial]", part: Part) -> "list[Wanted]":
    from fbmem_core.diffusion.sampling import content_key

    audit, checkpoint = store.audit(key)
    images = requests(store, key)
    prompt_ids = set(part.of(list(dict.fromkeys(image.prompt_id for image in images))))
    return [
        (name, image, content_key(checkpoint.fingerprint, trial.key, image, audit.sampling))
        for name, trial in trials.items()
        for image in images
        if image.prompt_id in prompt_ids
    ]


def method_names(store: AuditStore, key: str) -> list[str]:
    """The mitigations of the audit file at every strength and draw, in its order."""
    return [spec.title for spec in store.audit(key)[0].mitigations.trials()]


def trials_of(store: AuditStore, key: str) -> "dict[str, Trial]":
    """By title, every mitigation of the audit file. What the audit knows is read once for all, when it is needed."""
    facts, evidence = digest(*_facts(store, key)), cache(lambda: evidence_of(store, key))
    non_memorized = frozenset(neurons_stage.non_memorized_prompts(store, key))
    trials: dict[str, Trial] = {}
    for spec in store.audit(key)[0].mitigations.trials():
        trials[spec.title] = Trial(store, key, spec, facts, non_memorized, evidence, trials)
    return trials


def _facts(store: AuditStore, key: str) -> list[Any]:
    """All that a mitigation may depend on besides the model, the prompt and its own options."""
    audit, _ = store.audit(key)
    tables = store.tables
    labels = labels_stage.summary_labels(store, key).select("prompt_id", "seed", "label")
    masks = tables.read("masks", key, shard=f"generation-{BASELINE.shard}")
    return [
        labels.rows(),  # not their similarities: the last digits of those may differ from run to run
        tables.read("neurons", key).filter(stage="refined").select("prompt_id", "layer", "neuron").rows(),
        tables.read("prompt_clusters", key).select("prompt_id", "cluster").rows(),
        masks.select("image_id", "path", "segmenter").sort("image_id").rows(),
        neurons_stage.calibration_prompts(store, key),
        audit.agreement.num_seeds,
        audit.mitigations.samples_per_prompt,
        audit.sampling.model_dump(exclude={"batch_size", "device"}),
        audit.neurons.model_dump(include={"layers", "num_seeds", "num_steps"}),
        None if audit.twin is None else find_checkpoint(str(audit.twin)).fingerprint,
    ]


class Trial:
    """One mitigation of an audit. Its method is made when it is first needed: that loads the pipeline.

    `key` changes with all that the method's images depend on besides the prompt; `facts` is a digest of what the audit
    knows, `evidence` gives that itself; `others` are the audit's mitigations by title.
    """

    def __init__(
        self,
        store: AuditStore,
        partition: str,
        spec: TrialSpec,
        facts: str,
        non_memorized: frozenset[str],
        evidence: "Callable[[], Evidence]",
        others: "Mapping[str, Trial]",
    ) -> None:
        self.store, self.partition, self.spec, self.non_memorized = store, partition, spec, non_memorized
        self._facts, self._evidence, self._others = facts, evidence, others
        self.key, self.shard = f"{spec.title}:{self._digest}", f"{spec.title}-{self._digest}"

    @property
    def method_type(self) -> "type[Method]":
        """Class of its method."""
        return METHODS[self.spec.method]

    @cached_property
    def _digest(self) -> str:
        rival = self._others.get(str(self.spec.options.get("like", "")))
        settings = [self.spec.method, self.spec.options, self.spec.num_clusters]
        return digest(self.method_type.version, settings, self._facts, rival._digest if rival else "")

    @property
    def _searches(self) -> str:
        """Folder of what its searches give, which strengths of one method share where they only scale neurons."""
        options = {name: value for name, value in self.spec.options.items() if name != "factor"}
        settings = [self.spec.method, options, self.spec.num_clusters]
        return f"searches/{self.partition}/{digest(self.method_type.version, settings, self._facts)}"

    def sample(self, images: "Sequence[Request]") -> "Iterator[tuple[Request, Image.Image]]":
        """Sample under the method."""
        from fbmem_core.mitigation.sampling import sample_mitigated

        audit, _ = self.store.audit(self.partition)
        return sample_mitigated(self.store.pipeline(self.partition), images, audit.sampling, _Interventions(self))

    def intervention(self, prompt_id: str) -> "Intervention":
        """What is changed while this prompt is sampled."""
        ask = self.method.everywhere if prompt_id in self.non_memorized else self.method.intervention
        return ask(prompt_id)

    def write_rows(self) -> None:
        """What the method is and what it switches off, unless that is there."""
        tables = self.store.tables
        if self.shard in tables.shards("mitigations", self.partition):
            return
        rows = [
            {"method": self.spec.title, "prompt_id": prompt_id, "layer": layer, "neuron": neuron, "factor": value}
            for prompt_id in self.evidence.prompts
            for layer, factors in self.method.intervention(prompt_id).factors.items()
            for neuron, value in enumerate(factors.tolist())
            if value != 1
        ]
        tables.write("mitigated_neurons", self.partition, rows, shard=self.shard)
        row = {
            "method": self.spec.title, "kind": self.spec.method,
            "family": self.spec.config.title, "strength": self.spec.strength, "draw": self.spec.draw,
            "options": json.dumps(self.method.options.model_dump() | {"num_clusters": self.spec.num_clusters}),
            "num_changed": self.method.num_neurons, "share": self.method.share,
        }  # fmt: skip
        tables.write("mitigations", self.partition, [row], shard=self.shard)

    @cached_property
    def method(self) -> "Method":
        """The method with all that it may know."""
        return self.method_type(self.evidence, **self.spec.options)

    @cached_property
    def evidence(self) -> "Evidence":
        """What the audit knows, with this mitigation's own clusters and searches."""
        evidence, num = self._evidence(), self.spec.num_clusters
        if num is not None:
            from fbmem_core.clustering import cluster_prompts

            audit, _ = self.store.audit(self.partition)
            vectors = embeddings(self.store, self.partition)
            clusters = cluster_prompts(vectors, count=num, seed=audit.clusters.seed).cluster.tolist()
            evidence = replace(evidence, clusters=dict(zip(evidence.prompts, clusters, strict=True)))
        return replace(evidence, searches=_Searches(self.store, self._searches), rival=self._rival)

    def _rival(self, title: str) -> "Method":
        if title in self._others:
            return self._others[title].method
        if title not in METHODS:
            cure = "Change `like`."
            raise InputError("a mitigation of the audit", f"`{title}`", where=f"`{self.spec.title}`", cure=cure)
        return METHODS[title](self.evidence)


def evidence_of(store: AuditStore, key: str) -> "Evidence":
    """What an audit knows when it mitigates."""
    from fbmem_core.diffusion.guidance import guidance_of
    from fbmem_core.mitigation.method import Evidence
    from fbmem_core.neurons.layers import value_layers

    audit, _ = store.audit(key)
    pipeline, sampling, settings = store.pipeline(key), audit.sampling, audit.neurons
    labels = labels_stage.summary_labels(store, key).filter(pl.col("label").is_in(["VM", "FM", "BM"]))
    return Evidence(
        pipeline=pipeline,
        prompts=dict(store.tables.read("prompts", key).select("prompt_id", "prompt").iter_rows()),
        memorized=frozenset(labels["prompt_id"]),
        neurons=neurons_stage.read_neurons(store, key),
        clusters=dict(store.tables.read("prompt_clusters", key).select("prompt_id", "cluster").iter_rows()),
        layers=value_layers(pipeline, settings.layers),
        non_memorized=neurons_stage.calibration_prompts(store, key),
        height=sampling.height,
        width=sampling.width,
        seeds=range(sampling.seed, sampling.seed + settings.num_seeds),
        num_steps=settings.num_steps,
        mattes=mattes_of(store, key),
        image_seeds=_image_seeds(store, key),
        twin=audit.twin,
        guidance=guidance_of(sampling),
        num_inference_steps=sampling.steps,
    )


def _image_seeds(store: AuditStore, key: str) -> dict[str, list[int]]:
    """By prompt_id, of the images that are sampled under each mitigation."""
    seeds: dict[str, list[int]] = {}
    for image in requests(store, key):
        seeds.setdefault(image.prompt_id, []).append(image.seed)
    return seeds


def mattes_of(store: AuditStore, key: str) -> dict[str, dict[int, Any]]:
    """By prompt_id and seed, of the first seeds whose matte is decided."""
    import numpy as np
    import torch

    tables, num = store.tables, store.audit(key)[0].agreement.num_seeds
    masks = tables.read("masks", key, shard=f"generation-{BASELINE.shard}").drop_nulls("path")
    path_of = dict(masks.select("image_id", "path").iter_rows())
    mattes: dict[str, dict[int, Any]] = {}
    images = BASELINE.rows(store, "generations", key).select("method", "prompt_id", "seed")
    for method, prompt_id, seed in images.iter_rows():
        path = path_of.get(masks_stage.generation_image_id(method, prompt_id, seed))
        of_prompt = mattes.setdefault(prompt_id, {})
        if path is not None and len(of_prompt) < num:
            matte = np.asarray(open_image(tables, path), dtype=np.float32) / 255
            of_prompt[seed] = torch.from_numpy(matte)[None]
    return mattes


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
    """Results of searches, kept in a folder of the store: one file for each search."""

    def __init__(self, store: AuditStore, folder: str) -> None:
        self._tables, self._folder = store.tables, folder

    def __getitem__(self, name: str) -> NeuronSet:
        try:
            return NeuronSet.of(json.loads((self._tables.root / self._path(name)).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, neurons: NeuronSet) -> None:
        content = json.dumps({layer: sorted(indices) for layer, indices in neurons.indices.items()})
        self._tables.write_bytes(self._path(name), content.encode())

    def __delitem__(self, name: str) -> None:
        (self._tables.root / self._path(name)).unlink()

    def __iter__(self) -> Iterator[str]:
        raise TypeError("searches are looked up by name")

    def __len__(self) -> int:
        return len(list((self._tables.root / self._folder).glob("*.json")))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{digest(name)}.json"
