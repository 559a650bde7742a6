"""The public tables: their columns, keys and grain. Analysts and checks rely on these names."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

_TEXT, _WHOLE, _REAL, _TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TIME, _TEXTS = pa.timestamp("us", tz="UTC"), pa.list_(pa.string())
_REALS = pa.list_(pa.float64())


@dataclass(frozen=True)
class Table:
    """One table. `key` names the columns that tell its rows apart; `checkpoint` is the partition, always the first."""

    name: str
    grain: str
    key: tuple[str, ...]
    columns: dict[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, in the order of the columns."""
        return pa.schema([pa.field(name, kind) for name, kind in self.columns.items()])


_IMAGE = {"checkpoint": _TEXT, "method": _TEXT, "prompt_id": _TEXT, "seed": _WHOLE}
_VALUES = {"full_similarity": _REAL, "foreground_similarity": _REAL, "background_similarity": _REAL}

_ALL = (
    Table(
        "checkpoints",
        "One row per audited checkpoint.",
        ("checkpoint",),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "source": _TEXT, "revision": _TEXT, "fingerprint": _TEXT,
            "architecture": _TEXT, "created_at": _TIME,
        },
    ),
    Table(
        "prompts",
        "One row per prompt of an audited checkpoint.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "prompt_id": _TEXT, "prompt": _TEXT, "kind": _TEXT,
            "reference_id": _TEXT, "source": _TEXT,
        },
    ),
    Table(
        "reference_images",
        "One row per reference image, also those that cannot be used.",
        ("checkpoint", "reference_id"),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "reference_id": _TEXT, "path": _TEXT, "sha256": _TEXT,
            "width": _WHOLE, "height": _WHOLE, "caption": _TEXT, "url": _TEXT, "status": _TEXT,
        },
    ),
    Table(
        "generations",
        "One row per sampled image.",
        tuple(_IMAGE),
        {**_IMAGE, "path": _TEXT, "sha256": _TEXT, "width": _WHOLE, "height": _WHOLE},
    ),
    Table(
        "masks",
        "One row per segmented image, generation or reference.",
        ("checkpoint", "image_kind", "image_id"),
        {
            "checkpoint": _TEXT, "image_kind": _TEXT, "image_id": _TEXT, "path": _TEXT, "foreground_fraction": _REAL,
            "segmenter": _TEXT, "status": _TEXT,
        },
    ),
    Table(
        "neighbors",
        "One row per image, masking, region and rank: its most similar references.",
        (*_IMAGE, "masking", "region", "rank"),
        {
            **_IMAGE, "masking": _TEXT, "region": _TEXT, "rank": _WHOLE, "reference_id": _TEXT, "similarity": _REAL,
            "complete": _TRUTH, "transform": _TEXT,
        },
    ),
    Table(
        "prefilter_recalls",
        "One row per masking, where a prefilter was used: what it keeps of what a full search finds.",
        ("checkpoint", "masking"),
        {
            "checkpoint": _TEXT, "masking": _TEXT, "encoder": _TEXT, "num_candidates": _WHOLE,
            "num_generations": _WHOLE, "num_pairs": _WHOLE, "num_kept": _WHOLE, "recall": _REAL,
        },
    ),
    Table(
        "similarities",
        "One row per image, reference, masking and transform, for every pair that is a neighbor by any region.",
        (*_IMAGE, "reference_id", "masking", "transform"),
        {
            **_IMAGE, "reference_id": _TEXT, "masking": _TEXT, **_VALUES, "average_similarity": _REAL,
            "common_foreground_similarity": _REAL, "object_areas": _REALS, "object_similarities": _REALS,
            "reference_object_areas": _REALS, "reference_object_similarities": _REALS, "transform": _TEXT,
        },
    ),
    Table(
        "labels",
        "One row per image, masking and rule.",
        (*_IMAGE, "masking", "rule"),
        {
            **_IMAGE, "masking": _TEXT, "rule": _TEXT, "label": _TEXT, **_VALUES, "full_reference_id": _TEXT,
            "foreground_reference_id": _TEXT, "background_reference_id": _TEXT,
            "foreground_copied": _TRUTH, "background_copied": _TRUTH, "transform": _TEXT,
        },
    ),
    Table(
        "one_to_many",
        "One row per prompt: how many distinct references its images match, by the audit's first masking and rule.",
        ("checkpoint", "method", "prompt_id"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "prompt_id": _TEXT, "num_generations": _WHOLE,
            "num_references": _WHOLE, "reference_ids": _TEXTS,
        },
    ),
    Table(
        "prompt_clusters",
        "One row per prompt: its cluster, 0 the largest, and the distance to the cluster's center.",
        ("checkpoint", "prompt_id"),
        {"checkpoint": _TEXT, "prompt_id": _TEXT, "cluster": _WHOLE, "distance": _REAL, "encoder": _TEXT},
    ),
    Table(
        "activation_statistics",
        "One row per value neuron: its activation over non-memorized prompts.",
        ("checkpoint", "layer", "neuron"),
        {
            "checkpoint": _TEXT, "layer": _TEXT, "neuron": _WHOLE, "mean": _REAL, "stddev": _REAL,
            "num_prompts": _WHOLE,
        },
    ),
    Table(
        "similarity_thresholds",
        "One row per checkpoint: from which similarity of noise differences on a prompt counts as memorized.",
        ("checkpoint", "mode"),
        {
            "checkpoint": _TEXT, "mode": _TEXT, "threshold": _REAL, "source": _TEXT, "mean": _REAL, "stddev": _REAL,
            "pairs_threshold": _REAL, "num_prompts": _WHOLE,
        },
    ),
    Table(
        "localizations",
        "One row per prompt: how the search for its neurons went; none found where num_seeds is 0.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _TEXT, "prompt_id": _TEXT, "similarity": _REAL, "num_seeds": _WHOLE, "num_initial": _WHOLE,
            "num_refined": _WHOLE, "initial_similarity": _REAL, "refined_similarity": _REAL, "threshold": _REAL,
            "is_reached": _TRUTH, "z_score_threshold": _REAL, "num_top_neurons": _WHOLE,
        },
    ),
    Table(
        "neurons",
        "One row per prompt, stage (initial, refined) and value neuron that was found behind it.",
        ("checkpoint", "prompt_id", "stage", "layer", "neuron"),
        {
            "checkpoint": _TEXT, "prompt_id": _TEXT, "stage": _TEXT, "layer": _TEXT, "neuron": _WHOLE,
            "z_score": _REAL, "activation": _REAL,
        },
    ),
    Table(
        "cluster_neurons",
        "One row per cluster and value neuron: the union of its prompts' refined neurons.",
        ("checkpoint", "cluster", "layer", "neuron"),
        {"checkpoint": _TEXT, "cluster": _WHOLE, "layer": _TEXT, "neuron": _WHOLE, "num_prompts": _WHOLE},
    ),
    Table(
        "mitigations",
        "One row per mitigation that was tried: what it is, and how much it changes for a prompt on average.",
        ("checkpoint", "method"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "kind": _TEXT, "options": _TEXT, "num_changed": _WHOLE,
            "share": _REAL,
        },
    ),
    Table(
        "mitigated_neurons",
        "One row per mitigation, prompt and neuron that is multiplied by a factor while the prompt is sampled.",
        ("checkpoint", "method", "prompt_id", "layer", "neuron"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "prompt_id": _TEXT, "layer": _TEXT, "neuron": _WHOLE,
            "factor": _REAL,
        },
    ),
    Table(
        "mitigation_scores",
        "One row per mitigation and weighting: how far the severity of memorized prompts' images falls.",
        ("checkpoint", "method", "weights"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "weights": _TEXT, "score": _REAL, "achievable": _REAL,
            "num_generations": _WHOLE, "num_missing": _WHOLE, "low": _REAL, "high": _REAL,
        },
    ),
    Table(
        "label_transitions",
        "One row per mitigation and pair of labels, before and after: the memorized prompts' images that went so.",
        ("checkpoint", "method", "before", "after"),
        {"checkpoint": _TEXT, "method": _TEXT, "before": _TEXT, "after": _TEXT, "num_generations": _WHOLE},
    ),
    Table(
        "image_quality",
        "One row per method, group of prompts (memorized, non-memorized) and metric.",
        ("checkpoint", "method", "prompts", "metric"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "prompts": _TEXT, "metric": _TEXT, "value": _REAL,
            "stddev": _REAL, "num_images": _WHOLE, "status": _TEXT,
        },
    ),
    Table(
        "attacks",
        "One row per mitigation, attack and memorized prompt: whether the memory came back.",
        ("checkpoint", "method", "attack", "prompt_id"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "attack": _TEXT, "prompt_id": _TEXT, "label_before": _TEXT,
            "label_mitigated": _TEXT, "label_attacked": _TEXT, "num_attempts": _WHOLE, "num_returned": _WHOLE,
        },
    ),
    Table(
        "mitigation_differences",
        "One row per two mitigations: by how much the first removes more, with its interval.",
        ("checkpoint", "method", "other"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "other": _TEXT, "difference": _REAL, "low": _REAL, "high": _REAL,
            "num_generations": _WHOLE,
        },
    ),
    Table(
        "cluster_sensitivity",
        "One row per number of clusters that was tried.",
        ("checkpoint", "count"),
        {
            "checkpoint": _TEXT, "count": _WHOLE, "num_clusters": _WHOLE, "silhouette": _REAL, "stability": _REAL,
            "mean_union": _REAL, "max_union": _WHOLE, "max_union_share": _REAL, "score": _REAL,
        },
    ),
    Table(
        "seed_agreement",
        "One row per prompt: how much its images agree before they are sampled, inside and outside their foregrounds.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _TEXT, "prompt_id": _TEXT, "inside": _REAL, "outside": _REAL, "predicted_label": _TEXT,
            "num_seeds": _WHOLE,
        },
    ),
    Table(
        "prompt_labels",
        "One row per prompt: its most frequent label by the audit's first masking and rule, and how many are copies.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _TEXT, "prompt_id": _TEXT, "prompt": _TEXT, "label": _TEXT, "num_generations": _WHOLE,
            "num_memorized": _WHOLE,
        },
    ),
    Table(
        "audit_diff",
        "One row per prompt of a checkpoint or of the one before it of the same audit: what became of its label.",
        ("checkpoint", "change", "prompt_id"),
        {
            "checkpoint": _TEXT, "previous": _TEXT, "prompt_id": _TEXT, "prompt": _TEXT, "change": _TEXT,
            "label_before": _TEXT, "label_after": _TEXT,
        },
    ),
    Table(
        "memorization_rates",
        "One row per checkpoint: the share of its images that are copies, and the rise since the one before.",
        ("checkpoint",),
        {
            "checkpoint": _TEXT, "share": _REAL, "previous": _TEXT, "num_prompts": _WHOLE, "num_images": _WHOLE,
            "share_before": _REAL, "share_after": _REAL, "p_value": _REAL, "differing_settings": _TEXTS,
        },
    ),
    Table(
        "rejected",
        "One row per item that a stage left out.",
        ("checkpoint", "stage", "item"),
        {"checkpoint": _TEXT, "stage": _TEXT, "item": _TEXT, "reason": _TEXT},
    ),
)  # fmt: skip
TABLES: dict[str, Table] = {table.name: table for table in _ALL}
