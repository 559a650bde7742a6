"""Trials of each mitigation, and all that it may know: shared by the stages `mitigations` and `attacks`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from fbmem_assets.stages import generations as generations_stage
from fbmem_assets.stages.clusters import embeddings
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint, ImageKey
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.settings import TrialSpec
from fbmem_core.neurons.layers import NeuronSet
from fbmem_core.store.images import open_image
from fbmem_core.store.tables import Store, digest

if TYPE_CHECKING:
    from PIL import Image

    from fbmem_core.diffusion.sampling import Request
    from fbmem_core.mitigation.method import Evidence, Intervention, Method


def requests(audit: AuditedCheckpoint) -> "list[Request]":
    """Images that are sampled under each method: the first seeds of every prompt, memorized ones first."""
    num = audit.config.mitigations.samples_per_prompt
    non_memorized = set(audit.non_memorized_prompts)
    planned = generations_stage.requests(audit, audit.read("prompts"))
    chosen = [r for r in planned if num is None or r.seed < audit.config.sampling.seed + num]
    return sorted(chosen, key=lambda request: request.prompt_id in non_memorized)


def trials_of(audit: AuditedCheckpoint) -> "dict[str, Trial]":
    """Mitigations of the audit file by title. What the audit knows is read once for all, when it is needed."""
    facts, evidence = digest(*_facts(audit)), cache(lambda: evidence_of(audit))
    non_memorized = frozenset(audit.non_memorized_prompts)
    trials: dict[str, Trial] = {}
    for spec in audit.config.mitigations.trials():
        trials[spec.title] = Trial(audit, spec, facts, non_memorized, evidence, trials)
    return trials


def _facts(audit: AuditedCheckpoint) -> list[Any]:
    """All that a mitigation may depend on besides the model, the prompt and its own options."""
    config, masks = audit.config, audit.read("masks", shard=f"generation-{BASELINE.shard}")
    labels = audit.summary_labels().select("prompt_id", "seed", "label")
    return [
        labels.rows(),  # not their similarities: the last digits of those may differ from run to run
        audit.read("neurons").filter(stage="refined").select("prompt_id", "layer", "neuron").rows(),
        audit.read("prompt_clusters").select("prompt_id", "cluster").rows(),
        masks.select("image_id", "path", "segmenter").sort("image_id").rows(),
        audit.calibration_prompts(),
        config.agreement.num_seeds,
        config.mitigations.samples_per_prompt,
        config.sampling.model_dump(exclude={"batch_size", "device"}),
        config.neurons.model_dump(include={"layers", "num_seeds", "num_steps"}),
        None if config.twin is None else find_checkpoint(str(config.twin)).fingerprint,
    ]


class Trial:
    """One mitigation of an audit. Its method is made when it is first needed: that loads the pipeline.

    `key` changes with all that the method's images depend on besides the prompt; `facts` is a digest of what the audit
    knows, `evidence` gives that itself; `others` are the audit's mitigations by title.
    """

    def __init__(
        self,
        audit: AuditedCheckpoint,
        spec: TrialSpec,
        facts: str,
        non_memorized: frozenset[str],
        evidence: "Callable[[], Evidence]",
        trials: "Mapping[str, Trial]",
    ) -> None:
        self.audit, self.spec, self.non_memorized = audit, spec, non_memorized
        self._facts, self._evidence, self._trials = facts, evidence, trials
        self.key, self.shard = f"{spec.title}:{self._digest}", f"{spec.title}-{self._digest}"

    @property
    def method_type(self) -> "type[Method]":
        """Class of its method."""
        return METHODS[self.spec.method]

    @cached_property
    def _digest(self) -> str:
        rival = self._trials.get(str(self.spec.options.get("like", "")))
        settings = [self.spec.method, self.spec.options, self.spec.num_clusters]
        return digest(self.method_type.version, settings, self._facts, rival._digest if rival else "")

    @property
    def _search_folder(self) -> str:
        """Folder of what its searches give, which strengths of one method share where they only scale neurons."""
        options = {name: value for name, value in self.spec.options.items() if name != "factor"}
        settings = [self.spec.method, options, self.spec.num_clusters]
        return f"searches/{self.audit.partition}/{digest(self.method_type.version, settings, self._facts)}"

    def sample(self, images: "Sequence[Request]") -> "Iterator[tuple[Request, Image.Image]]":
        """Sample under the method. Where it changes nothing, the image of the model as it is stands for its own."""
        from fbmem_core.mitigation.sampling import sample_mitigated

        rows = self.audit.read("generations", BASELINE).select("prompt_id", "seed", "path").iter_rows()
        paths = {(prompt_id, seed): path for prompt_id, seed, path in rows}
        changed = []
        for request in images:
            path = paths.get((request.prompt_id, request.seed))
            if path is None or self.intervention(request.prompt_id).key:
                changed.append(request)
            else:
                yield request, open_image(self.audit.store, path)
        yield from sample_mitigated(self.audit.pipeline, changed, self.audit.config.sampling, _Interventions(self))

    def intervention(self, prompt_id: str) -> "Intervention":
        """Intervention while this prompt is sampled."""
        ask = self.method.everywhere if prompt_id in self.non_memorized else self.method.intervention
        return ask(prompt_id)

    def write_rows(self) -> None:
        """Write what the method is and what it switches off, unless that is there."""
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
            "family": self.spec.config.title, "strength": self.spec.strength, "draw": self.spec.draw,
            "options": json.dumps(self.method.options.model_dump() | {"num_clusters": self.spec.num_clusters}),
            "num_changed": self.method.num_neurons, "share": self.method.share,
        }  # fmt: skip
        self.audit.write("mitigations", [row], shard=self.shard)

    @cached_property
    def method(self) -> "Method":
        """The method with all that it may know."""
        return self.method_type(self.evidence, **self.spec.options)

    @cached_property
    def evidence(self) -> "Evidence":
        """Knowledge of the audit, with this mitigation's own clusters and searches."""
        evidence, num = self._evidence(), self.spec.num_clusters
        if num is not None:
            from fbmem_core.clustering import cluster_prompts

            vectors, seed = embeddings(self.audit), self.audit.config.clusters.seed
            cluster = cluster_prompts(vectors, count=num, seed=seed).cluster.tolist()
            evidence = replace(evidence, clusters=dict(zip(evidence.prompts, cluster, strict=True)))
        return replace(evidence, searches=_Searches(self.audit.store, self._search_folder), rival=self._rival)

    def _rival(self, title: str) -> "Method":
        if title in self._trials:
            return self._trials[title].method
        if title not in METHODS:
            cure = "Change `like`."
            raise InputError("a mitigation of the audit", f"`{title}`", where=f"`{self.spec.title}`", cure=cure)
        return METHODS[title](self.evidence)


def evidence_of(audit: AuditedCheckpoint) -> "Evidence":
    """Knowledge of an audit when it mitigates."""
    from fbmem_core.diffusion.guidance import guidance_of
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
        layers=value_layers(pipeline, settings.layers),
        non_memorized=audit.calibration_prompts(),
        height=sampling.height,
        width=sampling.width,
        seeds=range(sampling.seed, sampling.seed + settings.num_seeds),
        num_steps=settings.num_steps,
        mattes=mattes_of(audit),
        image_seeds=_image_seeds(audit),
        twin=audit.config.twin,
        guidance=guidance_of(sampling),
        num_inference_steps=sampling.steps,
    )


def _image_seeds(audit: AuditedCheckpoint) -> dict[str, list[int]]:
    """Seeds by prompt_id, of the images that are sampled under each mitigation."""
    seeds: dict[str, list[int]] = {}
    for image in requests(audit):
        seeds.setdefault(image.prompt_id, []).append(image.seed)
    return seeds


def mattes_of(audit: AuditedCheckpoint) -> dict[str, dict[int, Any]]:
    """Mattes by prompt_id and seed, of the first seeds whose matte is decided."""
    import numpy as np
    import torch

    num = audit.config.agreement.num_seeds
    masks = audit.read("masks", shard=f"generation-{BASELINE.shard}").drop_nulls("path")
    path_of = dict(masks.select("image_id", "path").iter_rows())
    mattes: dict[str, dict[int, Any]] = {}
    images = audit.read("generations", BASELINE).select("method", "prompt_id", "seed")
    for method, prompt_id, seed in images.iter_rows():
        path = path_of.get(ImageKey(method, prompt_id, seed).image_id)
        of_prompt = mattes.setdefault(prompt_id, {})
        if path is not None and len(of_prompt) < num:
            matte = np.asarray(open_image(audit.store, path), dtype=np.float32) / 255
            of_prompt[seed] = torch.from_numpy(matte)[None]
    return mattes


class _Interventions(Mapping[str, "Intervention"]):
    """Interventions by prompt_id, each made when its images are sampled."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __getitem__(self, prompt_id: str) -> "Intervention":
        return self._trial.intervention(prompt_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._trial.evidence.prompts)

    def __len__(self) -> int:
        return len(self._trial.evidence.prompts)


class _Searches:
    """Results of searches, kept in a folder of the store: one file for each search."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def get(self, name: str) -> NeuronSet | None:
        """Result of a search; None: it was never made."""
        try:
            return NeuronSet.of(json.loads((self._store.root / self._path(name)).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def put(self, name: str, neurons: NeuronSet) -> None:
        """Keep the result of a search."""
        content = json.dumps({layer: sorted(indices) for layer, indices in neurons.indices.items()})
        self._store.write_bytes(self._path(name), content.encode())

    def _path(self, name: str) -> str:
        return f"{self._folder}/{digest(name)}.json"
