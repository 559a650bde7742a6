"""A second, independent score: copy detection by SSCD, and where it and the measure disagree."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import IMAGE, REFERENCE_ID
from fbmem_core.store.schemas.table import BOOLEAN, REAL, TEXT, Column, Table

_FULL = Column("sscd_full", REAL, "cosine of the SSCD descriptors of the whole images, -1 to 1")
_FOREGROUND = Column("sscd_foreground", REAL, "cosine of those of the foregrounds; null: undecided")
_BACKGROUND = Column("sscd_background", REAL, "cosine of those of the backgrounds; null: undecided")
SSCD_SIMILARITIES = Table(
    "sscd_similarities",
    "One row per image and reference: every listed pair, and the nearest by SSCD, where the audit names a network.",
    key=("checkpoint", "method", "prompt_id", "seed", "reference_id"),
    columns=(
        *IMAGE,
        REFERENCE_ID,
        _FULL,
        _FOREGROUND,
        _BACKGROUND,
        Column("is_listed", BOOLEAN, "whether the pair stands in `similarities`"),
        Column("is_nearest", BOOLEAN, "whether no other reference is nearer by the whole image"),
        Column("network", TEXT, "file of the network, its hash and how images are resized"),
    ),
)
DISAGREEMENTS = Table(
    "disagreements",
    "One row per image and reference on which the label and SSCD disagree.",
    key=("checkpoint", "method", "prompt_id", "seed", "reference_id"),
    columns=(
        *IMAGE,
        REFERENCE_ID,
        Column("label", TEXT, "of the pair, by the audit's first masking and rule"),
        Column("kind", TEXT, "only_measure: a copy by its label alone; only_sscd: by SSCD alone"),
        Column("region", TEXT, "full, foreground or background: the region that decides"),
        Column("similarity", REAL, "MS-SSIM of the region; null: the pair is below the floor, or undecided"),
        Column("sscd_similarity", REAL, "cosine of the SSCD descriptors of the region"),
        Column("sscd_threshold", REAL, "from which on SSCD sees a copy"),
    ),
)
TABLES = (SSCD_SIMILARITIES, DISAGREEMENTS)
