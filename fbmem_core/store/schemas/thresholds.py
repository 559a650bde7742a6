"""Thresholds with a promise, and the controls behind them."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import (
    BACKGROUND_SIMILARITY,
    CHECKPOINT,
    FOREGROUND_SIMILARITY,
    FULL_SIMILARITY,
    REFERENCE_ID,
)
from fbmem_core.store.schemas.table import BOOLEAN, INTEGER, REAL, TEXT, Column, Table

_SOURCE = Column("source", TEXT, "non_memorized, held_out or references: what the controls are")
CONTROL_SIMILARITIES = Table(
    "control_similarities",
    "One row per control, a picture that copies nothing, and reference that is near it.",
    key=("checkpoint", "source", "control_id", "reference_id"),
    columns=(
        CHECKPOINT,
        _SOURCE,
        Column("control_id", TEXT, "name of the image, of the held-out picture, or of the reference"),
        REFERENCE_ID,
        Column("copy_similarity", REAL, "highest threshold at which the control is labelled a copy of the reference"),
        FULL_SIMILARITY,
        FOREGROUND_SIMILARITY,
        BACKGROUND_SIMILARITY,
        Column(
            "is_near_duplicate", BOOLEAN, "the control is a whole copy of this reference, which then does not count"
        ),
    ),
)
THRESHOLDS = Table(
    "thresholds",
    "One row per kind of controls, region and number of references: the threshold that keeps the rate, and tau.",
    key=("checkpoint", "source", "region", "num_references"),
    columns=(
        CHECKPOINT,
        _SOURCE,
        Column("region", TEXT, "any: labelled a copy at all; full, foreground or background: of this region"),
        Column("num_references", INTEGER, "references that each control was searched against; fewer are drawn"),
        Column("threshold", REAL, "similarity from which on an image is called a copy; null: nothing can be promised"),
        Column("low", REAL, "lower end of the 95 % interval of what controls reach at the promised rate"),
        Column("high", REAL, "upper end of it"),
        Column("promised_rate", REAL, "share of pictures that copy nothing and reach the threshold, at most, at 95 %"),
        Column("num_controls", INTEGER, "pictures behind it, which copy nothing"),
        Column("num_above", INTEGER, "of them, those that reach the threshold"),
        Column("rate_low", REAL, "lower end of the exact 95 % interval of the share that reaches it"),
        Column("rate_high", REAL, "upper end of it"),
        Column("fixed_threshold", REAL, "tau of the audit file"),
        Column("fixed_num_above", INTEGER, "controls that reach the fixed threshold"),
        Column("fixed_rate_low", REAL, "lower end of the exact 95 % interval of their share"),
        Column("fixed_rate_high", REAL, "upper end of it"),
        Column("num_copies", INTEGER, "generations that reach the threshold; null: not for this region"),
        Column("fixed_num_copies", INTEGER, "generations that reach the fixed one"),
        Column("is_headline", BOOLEAN, "whether this is the threshold that summaries name"),
        Column("reason", TEXT, "why there is no threshold"),
    ),
)
TABLES = (CONTROL_SIMILARITIES, THRESHOLDS)
