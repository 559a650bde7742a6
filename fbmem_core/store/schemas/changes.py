"""Changes between two checkpoints."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT, HIGH, LOW, NUM_PROMPTS, NUM_UNITS, PREVIOUS, PROMPT, PROMPT_ID
from fbmem_core.store.schemas.table import INTEGER, REAL, TEXT, TEXTS, Column, Table

AUDIT_DIFF = Table(
    "audit_diff",
    "One row per prompt of a checkpoint or of the one before it of the same audit: what became of its label.",
    key=("checkpoint", "change", "prompt_id"),
    columns=(
        CHECKPOINT,
        PREVIOUS,
        PROMPT_ID,
        PROMPT,
        Column("change", TEXT, "newly_memorized, no_longer_memorized, other_label, same, undecided, added or removed"),
        Column("label_before", TEXT, "the prompt's label in the checkpoint before"),
        Column("label_after", TEXT, "the prompt's label in this checkpoint"),
    ),
)
MEMORIZATION_RATES = Table(
    "memorization_rates",
    "One row per checkpoint: the share of its images that are copies, and the rise since the one before.",
    key=("checkpoint",),
    columns=(
        CHECKPOINT,
        Column("share", REAL, "of all images, 0 to 1, that are copies"),
        PREVIOUS,
        NUM_PROMPTS,
        Column("num_images", INTEGER, "images labelled under both"),
        Column("share_before", REAL, "share of them that were copies before"),
        Column("share_after", REAL, "share of them that are copies now"),
        Column("p_value", REAL, "how often chance alone gives as high a rise"),
        NUM_UNITS,
        LOW,
        HIGH,
        Column("differing_settings", TEXTS, "settings of the audit that changed in between"),
    ),
)
TABLES = (AUDIT_DIFF, MEMORIZATION_RATES)
