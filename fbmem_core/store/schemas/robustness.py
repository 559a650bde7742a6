"""Robustness: which labels stay when pictures and mattes are disturbed."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT, IMAGE
from fbmem_core.store.schemas.table import BOOLEAN, INTEGER, REAL, TEXT, TEXTS, Column, Table

ROBUSTNESS = Table(
    "robustness",
    "One row per disturbance: how many labels flip under it.",
    key=("checkpoint", "disturbance"),
    columns=(
        CHECKPOINT,
        Column("disturbance", TEXT, "what was done to each image or its matte, or the beta that was used"),
        Column("changes", TEXT, "image, mask or beta"),
        Column("is_small", BOOLEAN, "a small change of the mask: a label that flips under it is fragile"),
        Column("num_images", INTEGER, "images that were labelled again"),
        Column("num_flips", INTEGER, "of them, those with another label"),
        Column("rate", REAL, "num_flips / num_images"),
        Column("low", REAL, "lower end of its exact 95 % interval"),
        Column("high", REAL, "upper end of it"),
    ),
)
FRAGILE_LABELS = Table(
    "fragile_labels",
    "One row per image that was labelled again: what its label flips under.",
    key=("checkpoint", "method", "prompt_id", "seed"),
    columns=(
        *IMAGE,
        Column("label", TEXT, "by the audit's first masking and rule; null: undecided"),
        Column("is_fragile", BOOLEAN, "whether it flips under a small change of the mask"),
        Column("flips", TEXTS, "disturbances under which it flips"),
    ),
)
TABLES = (ROBUSTNESS, FRAGILE_LABELS)
