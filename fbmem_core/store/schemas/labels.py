"""Copies: neighbors, similarities and labels of each generation."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import (
    BACKGROUND_SIMILARITY,
    CHECKPOINT,
    ENCODER,
    FOREGROUND_SIMILARITY,
    FULL_SIMILARITY,
    IMAGE,
    MASKING,
    METHOD,
    NUM_GENERATIONS,
    PROMPT,
    PROMPT_ID,
    REFERENCE_ID,
    TRANSFORM,
)
from fbmem_core.store.schemas.table import BOOLEAN, INTEGER, REAL, REALS, TEXT, TEXTS, Column, Table

NEIGHBORS = Table(
    "neighbors",
    "One row per image, masking, region and rank: its most similar references.",
    key=("checkpoint", "method", "prompt_id", "seed", "masking", "region", "rank"),
    columns=(
        *IMAGE,
        MASKING,
        Column("region", TEXT, "full, foreground, background or average (of the last two)"),
        Column("rank", INTEGER, "1: the most similar"),
        REFERENCE_ID,
        Column("similarity", REAL, "MS-SSIM of the region"),
        Column("complete", BOOLEAN, "no reference above this one is missing"),
        TRANSFORM,
    ),
)
PREFILTER_RECALLS = Table(
    "prefilter_recalls",
    "One row per masking, where a prefilter was used: what it keeps of what a full search finds.",
    key=("checkpoint", "masking"),
    columns=(
        CHECKPOINT,
        MASKING,
        ENCODER,
        Column("num_candidates", INTEGER, "references compared per image"),
        NUM_GENERATIONS,
        Column("num_pairs", INTEGER, "neighbors that a full search finds"),
        Column("num_kept", INTEGER, "of them, those among the candidates"),
        Column("recall", REAL, "num_kept / num_pairs"),
    ),
)
SIMILARITIES = Table(
    "similarities",
    "One row per image, reference, masking and transform, for every pair that is a neighbor by any region.",
    key=("checkpoint", "method", "prompt_id", "seed", "reference_id", "masking", "transform"),
    columns=(
        *IMAGE,
        REFERENCE_ID,
        MASKING,
        FULL_SIMILARITY,
        FOREGROUND_SIMILARITY,
        BACKGROUND_SIMILARITY,
        Column("average_similarity", REAL, "mean of foreground and background similarity"),
        Column("common_foreground_similarity", REAL, "MS-SSIM of the most similar object that both mattes show"),
        Column("object_areas", REALS, "of each object of the generation, its share of the image"),
        Column("object_similarities", REALS, "MS-SSIM of each; null: without texture"),
        Column("reference_object_areas", REALS, "of each object of the reference, its share of the image"),
        Column("reference_object_similarities", REALS, "MS-SSIM of each; null: without texture"),
        TRANSFORM,
        Column(
            "transform_matrix",
            REALS,
            "six numbers, row by row, that map the image's (x, y, 1) to its reference's, in sides; none: not moved",
        ),
        Column("undecided_regions", TEXTS, "regions of the image that show nothing that could be recognised"),
    ),
)
LABELS = Table(
    "labels",
    "One row per image, masking and rule.",
    key=("checkpoint", "method", "prompt_id", "seed", "masking", "rule"),
    columns=(
        *IMAGE,
        MASKING,
        Column("rule", TEXT, "labelling rule: paper, released or per_region"),
        Column("label", TEXT, "VM, FM, BM or NM; null: undecided"),
        FULL_SIMILARITY,
        FOREGROUND_SIMILARITY,
        BACKGROUND_SIMILARITY,
        Column("full_reference_id", TEXT, "reference of the highest full similarity"),
        Column("foreground_reference_id", TEXT, "reference of the highest foreground similarity"),
        Column("background_reference_id", TEXT, "reference of the highest background similarity"),
        Column("foreground_copied", BOOLEAN, "whether an object is a copy of its reference's; null: undecided"),
        Column("background_copied", BOOLEAN, "whether the background is a copy of its reference's; null: undecided"),
        TRANSFORM,
        Column(
            "undecided",
            TEXT,
            "parts of the image of which nothing can be said: matte, foreground or background; null: none",
        ),
        Column("searched", TEXT, "where copies were looked for; NM means that none was found there"),
    ),
)
COPIED_REGIONS = Table(
    "copied_regions",
    "One row per image, reference, transform and region, for the pairs at or above the floor (masking: the first).",
    key=("checkpoint", "method", "prompt_id", "seed", "reference_id", "transform", "region"),
    columns=(
        *IMAGE,
        REFERENCE_ID,
        TRANSFORM,
        Column(
            "region",
            TEXT,
            "image, foreground (all objects), background, object 1 and on (largest first), or reference object 1: "
            "where the reference shows one",
        ),
        Column("left", REAL, "edge of the box about the region, 0 to 1 of the width"),
        Column("top", REAL, "0 to 1 of the height"),
        Column("right", REAL, "0 to 1 of the width"),
        Column("bottom", REAL, "0 to 1 of the height"),
        Column("area", REAL, "of the region, share of the image"),
        Column("share_copied", REAL, "of the region's pixels with texture, the share that is copied; null: no texture"),
        Column("similarity", REAL, "MS-SSIM, by which labels are given; of the foreground that of the best object"),
        Column("largest_area", REAL, "of the largest connected copied part of the region, share of the image"),
        Column("map_path", TEXT, "copy map below the store: copied pixels orange, other ones blue, grey no texture"),
    ),
)
ONE_TO_MANY = Table(
    "one_to_many",
    "One row per prompt: how many distinct references its images match, by the audit's first masking and rule.",
    key=("checkpoint", "method", "prompt_id"),
    columns=(
        CHECKPOINT,
        METHOD,
        PROMPT_ID,
        NUM_GENERATIONS,
        Column("num_references", INTEGER, "distinct references that its images match; near-duplicates count once"),
        Column("reference_ids", TEXTS, "names of all that they match, near-duplicates too"),
    ),
)
REFERENCE_GROUPS = Table(
    "reference_groups",
    "One row per reference that a prompt matches beside others: which of these are near-duplicates of it.",
    key=("checkpoint", "method", "prompt_id", "reference_id"),
    columns=(
        CHECKPOINT,
        METHOD,
        PROMPT_ID,
        REFERENCE_ID,
        Column("group_id", TEXT, "first reference of its group: whole copies of each other by the measure"),
    ),
)
PROMPT_LABELS = Table(
    "prompt_labels",
    "One row per prompt: its most frequent label by the audit's first masking and rule, and how many are copies.",
    key=("checkpoint", "prompt_id"),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        PROMPT,
        Column("label", TEXT, "most frequent label, the severer of two"),
        NUM_GENERATIONS,
        Column("num_memorized", INTEGER, "images labelled VM, FM or BM"),
    ),
)
TABLES = (
    NEIGHBORS, PREFILTER_RECALLS, SIMILARITIES, LABELS, COPIED_REGIONS, ONE_TO_MANY, REFERENCE_GROUPS, PROMPT_LABELS,
)  # fmt: skip
