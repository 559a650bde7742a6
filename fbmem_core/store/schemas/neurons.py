"""Clusters of prompts, seed agreement, and the value neurons behind memorized prompts."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT, CLUSTER, ENCODER, LAYER, NEURON, NUM_PROMPTS, PROMPT_ID, STDDEV
from fbmem_core.store.schemas.table import BOOLEAN, INTEGER, REAL, TEXT, Column, Table

PROMPT_CLUSTERS = Table(
    "prompt_clusters",
    "One row per prompt: its cluster, 0 the largest, and the distance to the cluster's center.",
    key=("checkpoint", "prompt_id"),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        CLUSTER,
        Column("distance", REAL, "of the embedding to the cluster's center"),
        ENCODER,
    ),
)
SEED_AGREEMENT = Table(
    "seed_agreement",
    "One row per prompt: how much its images agree before they are sampled, inside and outside their foregrounds.",
    key=("checkpoint", "prompt_id"),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        Column("inside", REAL, "mean cosine with the nearest other seed, inside the foregrounds, -1 to 1"),
        Column("outside", REAL, "the same outside them"),
        Column("predicted_label", TEXT, "VM, FM, BM or NM by both"),
        Column("num_seeds", INTEGER, "seeds that were looked at"),
    ),
)
ACTIVATION_STATISTICS = Table(
    "activation_statistics",
    "One row per value neuron: its activation over non-memorized prompts.",
    key=("checkpoint", "layer", "neuron"),
    columns=(
        CHECKPOINT,
        LAYER,
        NEURON,
        Column("mean", REAL, "of the activation over non-memorized prompts"),
        STDDEV,
        NUM_PROMPTS,
    ),
)
SIMILARITY_THRESHOLDS = Table(
    "similarity_thresholds",
    "One row per checkpoint: from which similarity of noise differences on a prompt counts as memorized.",
    key=("checkpoint", "mode"),
    columns=(
        CHECKPOINT,
        Column("mode", TEXT, "noise differences of the first step (paper) or as in NeMo's code (released)"),
        Column("threshold", REAL, "similarity of noise differences beyond which a prompt counts as memorized"),
        Column("source", TEXT, "calibrated, or the audit file"),
        Column("mean", REAL, "of each non-memorized prompt's highest similarity"),
        STDDEV,
        Column("pairs_threshold", REAL, "NeMo's own: mean + 1 deviation over all pairs"),
        NUM_PROMPTS,
    ),
)
LOCALIZATIONS = Table(
    "localizations",
    "One row per prompt: how the search for its neurons went; none found where num_seeds is 0.",
    key=("checkpoint", "prompt_id"),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        Column("similarity", REAL, "highest similarity of two of its noise differences, nothing off"),
        Column("num_seeds", INTEGER, "seeds above the threshold; 0: not memorized"),
        Column("num_initial", INTEGER, "neurons of the initial selection"),
        Column("num_refined", INTEGER, "those of them that are needed"),
        Column("initial_similarity", REAL, "off against on, with the initial neurons off"),
        Column("refined_similarity", REAL, "off against on, with the refined neurons off"),
        Column("threshold", REAL, "at or below which it had to stay while neurons were refined"),
        Column("is_reached", BOOLEAN, "whether the initial selection got to the wanted similarity"),
        Column("z_score_threshold", REAL, "of the initial selection"),
        Column("num_top_neurons", INTEGER, "neurons of highest activation taken from each layer besides"),
    ),
)
NEURONS = Table(
    "neurons",
    "One row per prompt, stage (initial, refined) and value neuron that was found behind it.",
    key=("checkpoint", "prompt_id", "stage", "layer", "neuron"),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        Column("stage", TEXT, "of the search: initial or refined"),
        LAYER,
        NEURON,
        Column("z_score", REAL, "deviations from its mean activation"),
        Column("activation", REAL, "mean over tokens of abs(to_v(text))"),
    ),
)
CLUSTER_NEURONS = Table(
    "cluster_neurons",
    "One row per cluster and value neuron: the union of its prompts' refined neurons.",
    key=("checkpoint", "cluster", "layer", "neuron"),
    columns=(
        CHECKPOINT,
        CLUSTER,
        LAYER,
        NEURON,
        Column("num_prompts", INTEGER, "prompts of the cluster that it was found behind"),
    ),
)
CLUSTER_SENSITIVITY = Table(
    "cluster_sensitivity",
    "One row per number of clusters that was tried.",
    key=("checkpoint", "count"),
    columns=(
        CHECKPOINT,
        Column("count", INTEGER, "clusters that were asked for"),
        Column("num_clusters", INTEGER, "clusters that there are"),
        Column("silhouette", REAL, "mean silhouette coefficient, -1 to 1"),
        Column("stability", REAL, "mean adjusted Rand index of every two seeds"),
        Column("mean_union", REAL, "neurons of a cluster, on average"),
        Column("max_union", INTEGER, "neurons of the largest cluster"),
        Column("max_union_share", REAL, "the same as a share of all neurons"),
        Column("score", REAL, "mitigation score of nemo_c with so many clusters"),
    ),
)
TABLES = (
    PROMPT_CLUSTERS,
    SEED_AGREEMENT,
    ACTIVATION_STATISTICS,
    SIMILARITY_THRESHOLDS,
    LOCALIZATIONS,
    NEURONS,
    CLUSTER_NEURONS,
    CLUSTER_SENSITIVITY,
)
