"""Inputs of an audit, what is sampled, and what is left out."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import (
    AUDIT,
    CHECKPOINT,
    HEIGHT,
    IMAGE,
    PATH,
    PROMPT,
    PROMPT_ID,
    REFERENCE_ID,
    SHA256,
    WIDTH,
)
from fbmem_core.store.schemas.table import REAL, TEXT, TEXTS, TIME, Column, Table

CHECKPOINTS = Table(
    "checkpoints",
    "One row per audited checkpoint.",
    key=("checkpoint",),
    columns=(
        CHECKPOINT,
        AUDIT,
        Column("source", TEXT, "folder or hub id"),
        Column("revision", TEXT, "commit on the hub"),
        Column("fingerprint", TEXT, "hash of weights and configs"),
        Column("architecture", TEXT, "class of the pipeline"),
        Column("created_at", TIME, "when it was registered"),
    ),
)
PROMPTS = Table(
    "prompts",
    "One row per prompt of an audited checkpoint.",
    key=("checkpoint", "prompt_id"),
    columns=(
        CHECKPOINT,
        AUDIT,
        PROMPT_ID,
        PROMPT,
        Column("kind", TEXT, "group that the prompt file names"),
        Column("reference_id", TEXT, "reference that the prompt file names"),
        Column("source", TEXT, "where the prompt file says that it comes from: a url or an origin"),
        Column("reference_ids", TEXTS, "all references that the prompt file names"),
        Column("urls", TEXTS, "where the prompt file says that pictures of it can be had"),
        Column("source_index", TEXT, "its number where it comes from, say in LAION"),
    ),
)
REFERENCE_IMAGES = Table(
    "reference_images",
    "One row per reference image, also those that cannot be used.",
    key=("checkpoint", "reference_id"),
    columns=(
        CHECKPOINT,
        AUDIT,
        REFERENCE_ID,
        Column("path", TEXT, "file; of a picture in a tar or a table, the file and its place there"),
        SHA256,
        WIDTH,
        HEIGHT,
        Column("caption", TEXT, "text that the manifest names"),
        Column("url", TEXT, "where the manifest says it comes from"),
        Column(
            "status",
            TEXT,
            "ok, missing, unreadable, placeholder, duplicate or unlisted (not in the manifest)",
        ),
    ),
)
GENERATIONS = Table(
    "generations",
    "One row per sampled image.",
    key=("checkpoint", "method", "prompt_id", "seed"),
    columns=(
        *IMAGE,
        PATH,
        SHA256,
        WIDTH,
        HEIGHT,
    ),
)
MASKS = Table(
    "masks",
    "One row per segmented image, generation or reference.",
    key=("checkpoint", "image_kind", "image_id"),
    columns=(
        CHECKPOINT,
        Column("image_kind", TEXT, "generation or reference"),
        Column("image_id", TEXT, "method/prompt_id/seed, or reference_id"),
        PATH,
        Column("foreground_fraction", REAL, "share of pixels whose matte is at least 0.5"),
        Column("segmenter", TEXT, "model that made the matte, or the mask's file"),
        Column("status", TEXT, "ok, empty (no object seen), full (nothing else) or undecided"),
    ),
)
REJECTED = Table(
    "rejected",
    "One row per item that a stage left out.",
    key=("checkpoint", "stage", "item"),
    columns=(
        CHECKPOINT,
        Column("stage", TEXT, "of the pipeline"),
        Column("item", TEXT, "what was left out"),
        Column("reason", TEXT, "why"),
    ),
)
TABLES = (CHECKPOINTS, PROMPTS, REFERENCE_IMAGES, GENERATIONS, MASKS, REJECTED)
