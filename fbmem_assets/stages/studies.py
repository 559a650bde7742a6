"""Stage studies: the paper's open questions, each answered by values with intervals, a plot and sentences."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl
import yaml

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result
from fbmem_assets.stages.families import copied_reference, halves_and_families
from fbmem_assets.stages.scores import before_and_after
from fbmem_assets.stages.sensitivity import nemo_c_by_count
from fbmem_assets.stages.trials import mattes_of
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint
from fbmem_core.errors import InputError
from fbmem_core.labels import SEVERITY

if TYPE_CHECKING:
    from fbmem_core.evaluation.studies import Finding

STAGE = "studies"
_TRAITS = ("size", "distance from the center", "width over height", "log2 of copies")


@table_asset(table="studies", stage=STAGE, deps=["mitigation_scores", "cluster_sensitivity"], name="cluster_range")
def cluster_range(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row: the numbers of clusters with which NeMo-C removes as much as with the best one."""
    from fbmem_core.evaluation.studies import stable_range
    from fbmem_core.report.plots import line_plot

    audit = store.open(context.partition_key)
    labels = {name: (before, after) for name, before, after in before_and_after(audit)}
    titles = nemo_c_by_count(audit)
    after = {count: labels[title][1] for count, title in titles.items() if title in labels}
    before = next(iter(labels.values()))[0] if labels else {}
    rows = audit.read("cluster_sensitivity").drop_nulls("score").sort("count")
    points = {"nemo_c": (rows["count"].to_list(), rows["score"].to_list())}
    plot = line_plot(points, title="Number of clusters", x_label="clusters", label="mitigation score", style="o-")
    return _result(audit, "cluster_range", [stable_range(before, after)], plot)


@table_asset(
    table="studies",
    stage=STAGE,
    deps=["prompt_clusters", "neurons", "labels"],
    name="domains",
    kinds={"scikitlearn"},
)
def domains(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per kind of prompt and quantity: are clusters right, and do they share neurons?"""
    from fbmem_core.evaluation.studies import cluster_agreement, neuron_sharing
    from fbmem_core.report.plots import bar_plot

    audit = store.open(context.partition_key)
    clusters = dict(audit.read("prompt_clusters").select("prompt_id", "cluster").iter_rows())
    families = _families(audit)
    neurons = audit.neurons()
    kinds = audit.read("prompts").select("prompt_id", pl.col("kind").fill_null("")).rows()
    members = {"all prompts": set(clusters)}
    for prompt_id, kind in kinds:
        members.setdefault(f"prompts of kind `{kind}`", set()).add(prompt_id)
    findings = []
    for subject, prompts in members.items():
        own = {prompt: cluster for prompt, cluster in clusters.items() if prompt in prompts}
        own_neurons = {prompt: sets for prompt, sets in neurons.items() if prompt in prompts}
        findings += [
            cluster_agreement(own, families, subject=subject),
            neuron_sharing(own_neurons, own, families, subject=subject),
        ]
    shown = {f"{one.subject}, {one.quantity}": one.value for one in findings if one.value is not None}
    return _result(audit, "domains", findings, bar_plot(shown, title="Clusters by domain", label="index"))


@table_asset(
    table="studies", stage=STAGE, deps=["mitigated_labels", "generation_masks"], name="foreground_traits",
    kinds={"scikitlearn"},
)  # fmt: skip
def foreground_traits(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per mitigation and trait: which copied objects survive it?"""
    from fbmem_core.report.plots import bar_plot

    audit = store.open(context.partition_key)
    foregrounds = _foregrounds(audit)
    findings = [
        finding
        for method, before, after in before_and_after(audit)
        for finding in _probe(foregrounds, method, before, after)
    ]
    shown = {one.subject: one.value for one in findings if one.quantity.startswith("area") and one.value is not None}
    plot = bar_plot(shown, title="Do traits tell which foregrounds survive?", label="area under the ROC curve")
    return _result(audit, "foreground_probe", findings, plot)


@table_asset(table="studies", stage=STAGE, deps=["neurons", "labels", "one_to_many"], name="checkpoint_consistency")
def checkpoint_consistency(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per other checkpoint of the same prompts and quantity: the same memory, the same neurons?"""
    from fbmem_core.evaluation.studies import consistency
    from fbmem_core.report.plots import bar_plot

    audit = store.open(context.partition_key)
    own = _memory(audit)
    findings = [
        consistency(sets, sets_there[quantity], quantity=quantity, subject=partition)
        for partition in _other_partitions(audit)
        for sets_there in [_memory(store.open(partition))]
        for quantity, sets in own.items()
    ]
    shown = {f"{one.subject} {one.quantity}": one.value for one in findings if one.value is not None}
    plot = bar_plot(shown, title="Shared with other checkpoints", label="mean Jaccard index")
    return _result(audit, "consistency", findings, plot)


@table_asset(table="studies", stage=STAGE, deps=["labels", "reference_images"], name="policy")
def policy(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per tag of the copied references: what its copies weigh under the policy of the audit."""
    from fbmem_core.evaluation.studies import policy_findings
    from fbmem_core.report.plots import bar_plot

    audit = store.open(context.partition_key)
    labels = audit.summary_labels().drop_nulls("label")
    severities = {
        prompt_id: float(np.mean([SEVERITY[label] for label in labels_of]))
        for prompt_id, labels_of in labels.group_by("prompt_id").agg("label").iter_rows()
    }
    tags_of = reference_tags(audit)
    copied = labels.filter(pl.col("label") != "NM").select("prompt_id", copied_reference())
    tags: dict[str, set[str]] = {prompt_id: set() for prompt_id in severities}
    for prompt_id, reference in copied.iter_rows():
        tags[prompt_id] |= set(tags_of.get(reference, ()))
    weights = read_policy(audit.config.policy)
    findings = policy_findings(severities, {prompt: sorted(own) for prompt, own in tags.items()}, weights)
    shown = {one.subject: one.value for one in findings if one.value is not None}
    return _result(audit, "policy", findings, bar_plot(shown, title="Severity by tag", label="weighed severity"))


def reference_tags(audit: AuditedCheckpoint) -> dict[str, list[str]]:
    """Tags by reference, from its manifest: column `tags` of references.csv, separated by semicolons."""
    file = Path(audit.config.references) / "references.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return {
            row["reference_id"]: [tag.strip() for tag in (row.get("tags") or "").split(";") if tag.strip()]
            for row in csv.DictReader(lines)
            if row.get("reference_id")
        }


def read_policy(file: Any) -> dict[str, float]:
    """Weights by tag, from 0 to 1, of a YAML file; without a file every reference weighs 1.

    Raises:
        InputError: It is no mapping of tags to numbers from 0 to 1.
    """
    if file is None:
        return {"default": 1.0}
    weights = yaml.safe_load(file.read_text(encoding="utf-8"))
    valid = isinstance(weights, Mapping) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= 1
        for weight in weights.values()
    )
    if not valid:
        cure = "Write lines such as `public_domain: 0`."
        raise InputError("a mapping of tags to weights from 0 to 1", "something else", where=file, cure=cure)
    return {str(tag): float(weight) for tag, weight in weights.items()}


def _foregrounds(audit: AuditedCheckpoint) -> dict[tuple[str, int], tuple[list[float], str]]:
    """Traits of the foreground by image, and the family of its prompt."""
    families, copies = _families(audit), _copies(audit)
    foregrounds = {}
    for prompt_id, mattes in mattes_of(audit).items():
        for seed, matte in mattes.items():
            shape = _shape(np.asarray(matte[0]))
            if shape is not None:
                traits = [*shape, float(np.log2(copies.get(prompt_id, 1.0)))]
                foregrounds[prompt_id, seed] = traits, families[prompt_id]
    return foregrounds


def _probe(
    foregrounds: Mapping[tuple[str, int], tuple[list[float], str]], method: str, before: Any, after: Any
) -> "list[Finding]":
    """The traits of the foregrounds that were copied, and whether they are still."""
    from fbmem_core.evaluation.foreground_probe import foreground_probe

    images = [image for image, label in before.items() if label in ("FM", "VM") and image in foregrounds]
    images = [image for image in images if after.get(image) is not None]
    traits, groups = [foregrounds[image][0] for image in images], [foregrounds[image][1] for image in images]
    survived = [after[image] in ("FM", "VM") for image in images]
    return foreground_probe(np.array(traits), _TRAITS, survived, groups, subject=method)


def _shape(matte: np.ndarray) -> tuple[float, float, float] | None:
    """Share of the image, distance of its center from the image's, width over height; None without foreground."""
    rows, columns = np.nonzero(matte >= 0.5)
    if not len(rows):
        return None
    height, width = matte.shape
    distance = float(np.hypot(rows.mean() / height - 0.5, columns.mean() / width - 0.5))
    return len(rows) / matte.size, distance, (np.ptp(columns) + 1.0) / (np.ptp(rows) + 1.0)


def _families(audit: AuditedCheckpoint) -> dict[str, str]:
    return dict(halves_and_families(audit).select("prompt_id", "family").iter_rows())


def _copies(audit: AuditedCheckpoint) -> dict[str, float]:
    """Counts by prompt: how often its images were in the training set, where the truth table says so."""
    truth = audit.config.truth
    if truth is None:
        return {}
    table = pl.read_csv(truth, infer_schema=False)
    if "copies" not in table.columns:
        return {}
    rows = table.select("prompt_id", pl.col("copies").cast(pl.Float64, strict=False).fill_null(1.0)).iter_rows()
    return {prompt_id: max(copies, 1.0) for prompt_id, copies in rows}


def _memory(audit: AuditedCheckpoint) -> dict[str, dict[str, Any]]:
    """Sets by quantity and prompt that tell what a checkpoint remembers and where."""
    labels = audit.summary_labels().drop_nulls("label")
    memorized = labels.group_by("prompt_id").agg((pl.col("label") != "NM").any())
    texts = dict(audit.read("prompts").select("prompt_id", "prompt").iter_rows())
    many = audit.read("one_to_many", BASELINE).select("prompt_id", "reference_ids")
    neurons = audit.neurons()
    return {
        "memory": {texts[name]: {"memorized"} if one else set() for name, one in memorized.iter_rows()},
        "matched references": {texts[name]: set(references or ()) for name, references in many.iter_rows()},
        "neurons": {texts[name]: set(neurons_of) for name, neurons_of in neurons.items()},
    }


def _other_partitions(audit: AuditedCheckpoint) -> list[str]:
    """Checkpoints of this store, audited to their neurons, with prompts of this audit's."""
    own = set(audit.prompts.values())
    partitions = [name for name in audit.store.partitions("localizations") if name != audit.partition]
    return [name for name in partitions if own & set(audit.store.read("prompts", name)["prompt"])]


def _result(audit: AuditedCheckpoint, study: str, findings: "list[Finding]", plot: str) -> dg.MaterializeResult:
    audit.write("studies", [finding.row() for finding in findings], shard=study)
    table = audit.read("studies").filter(study=study)
    sentences = [{"sentence": finding.sentence} for finding in findings]
    return table_result(audit, "studies", table, plot=picture(plot, study), sentences=markdown_table(sentences))
