"""Mitigations, what they remove, what they cost, and what attacks recover."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import (
    CHECKPOINT,
    HIGH,
    LAYER,
    LOW,
    METHOD,
    NEURON,
    NUM_GENERATIONS,
    NUM_UNITS,
    PROMPT_ID,
    STDDEV,
)
from fbmem_core.store.schemas.table import INTEGER, REAL, TEXT, Column, Table

MITIGATIONS = Table(
    "mitigations",
    "One row per mitigation that was tried: what it is, and how much it changes for a prompt on average.",
    key=("checkpoint", "method"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("kind", TEXT, "the method's own name"),
        Column("family", TEXT, "title that its strengths or draws have in common"),
        Column("strength", REAL, "of a series of strengths; null: a single one"),
        Column("draw", INTEGER, "of several draws of a random method; null: a single one"),
        Column("options", TEXT, "JSON"),
        Column("num_changed", INTEGER, "neurons or weights changed for a prompt, on average"),
        Column("share", REAL, "of all that were searched, 0 to 1"),
    ),
)
MITIGATED_NEURONS = Table(
    "mitigated_neurons",
    "One row per mitigation, prompt and neuron that is multiplied by a factor while the prompt is sampled.",
    key=("checkpoint", "method", "prompt_id", "layer", "neuron"),
    columns=(
        CHECKPOINT,
        METHOD,
        PROMPT_ID,
        LAYER,
        NEURON,
        Column("factor", REAL, "what its output is multiplied by; 0: off"),
    ),
)
MITIGATION_SCORES = Table(
    "mitigation_scores",
    "One row per mitigation and weighting: how far the severity of memorized prompts' images falls.",
    key=("checkpoint", "method", "weights"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("weights", TEXT, "severity, or released: as the authors' code counts"),
        Column("score", REAL, "mean fall of severity"),
        Column("achievable", REAL, "mean severity before"),
        NUM_GENERATIONS,
        Column("num_missing", INTEGER, "images without a label before or after"),
        LOW,
        HIGH,
        NUM_UNITS,
    ),
)
MITIGATION_DIFFERENCES = Table(
    "mitigation_differences",
    "One row per two mitigations: by how much the first removes more, with its interval.",
    key=("checkpoint", "method", "other"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("other", TEXT, "the mitigation that it is compared with"),
        Column("difference", REAL, "mean severity under other - under method"),
        LOW,
        HIGH,
        NUM_GENERATIONS,
        NUM_UNITS,
        Column("p_value", REAL, "of the test that draws the sign of each unit, two-sided"),
        Column("verdict", TEXT, "more, less or cannot be told apart"),
    ),
)
LABEL_TRANSITIONS = Table(
    "label_transitions",
    "One row per mitigation and pair of labels, before and after: the memorized prompts' images that went so.",
    key=("checkpoint", "method", "before", "after"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("before", TEXT, "label without mitigation"),
        Column("after", TEXT, "label under it"),
        NUM_GENERATIONS,
    ),
)
IMAGE_QUALITY = Table(
    "image_quality",
    "One row per method, group of prompts (memorized, non-memorized) and metric.",
    key=("checkpoint", "method", "prompts", "metric"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("prompts", TEXT, "memorized or non-memorized"),
        Column("metric", TEXT, "brisque, clip, dbcnn, qalign, diversity, side_effect or twin_similarity"),
        Column("value", REAL, "mean over images, or over prompts for diversity"),
        STDDEV,
        Column("num_images", INTEGER, "images that were measured"),
        Column("status", TEXT, "measured, or why not"),
    ),
)
ATTACKS = Table(
    "attacks",
    "One row per mitigation, attack and memorized prompt: whether the memory came back.",
    key=("checkpoint", "method", "attack", "prompt_id"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("attack", TEXT, "paraphrase, adversarial or control"),
        PROMPT_ID,
        Column("label_before", TEXT, "most severe label without mitigation"),
        Column("label_mitigated", TEXT, "most severe label under it"),
        Column("label_attacked", TEXT, "most severe label under attack"),
        Column("num_attempts", INTEGER, "images of the attack"),
        Column("num_returned", INTEGER, "those at least as severe as before, against the prompt's own references"),
    ),
)
ATTACK_SHARES = Table(
    "attack_shares",
    "One row per mitigation and attack: of how many independent things the memory came back, with its exact interval.",
    key=("checkpoint", "method", "attack"),
    columns=(
        CHECKPOINT,
        METHOD,
        Column("attack", TEXT, "paraphrase, adversarial or control"),
        NUM_UNITS,
        Column("num_returned", INTEGER, "units that came back in any attempt"),
        Column("share", REAL, "of the units, 0 to 1"),
        Column("low", REAL, "lower end of the exact 95 % interval"),
        Column("high", REAL, "upper end"),
    ),
)
TABLES = (
    MITIGATIONS,
    MITIGATED_NEURONS,
    MITIGATION_SCORES,
    MITIGATION_DIFFERENCES,
    LABEL_TRANSITIONS,
    IMAGE_QUALITY,
    ATTACKS,
    ATTACK_SHARES,
)
