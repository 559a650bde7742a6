"""Detectors of memorized prompts that need no reference image."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT, PROMPT_ID
from fbmem_core.store.schemas.table import BOOLEAN, INTEGER, REAL, TEXT, Column, Table

DETECTOR = Column("detector", TEXT, "name of the detector")
HALF = Column("half", TEXT, "development or test; development prompts choose constants and are not scored")

DETECTOR_SCORES = Table(
    "detector_scores",
    "One row per detector and prompt: what it says of the prompt, over the same seeds for all.",
    key=("checkpoint", "detector", "prompt_id"),
    columns=(
        CHECKPOINT,
        DETECTOR,
        PROMPT_ID,
        Column("score", REAL, "higher if the prompt is memorized"),
        Column("seconds", REAL, "that it took, with its share of sampling"),
        Column("num_seeds", INTEGER, "initial latents that it looked at"),
    ),
)
DETECTORS = Table(
    "detectors",
    "One row per detector and half: how well it parts memorized prompts from others.",
    key=("checkpoint", "detector", "half"),
    columns=(
        CHECKPOINT,
        DETECTOR,
        HALF,
        Column("auc", REAL, "area under the ROC curve; 0.5 is chance"),
        Column("auc_low", REAL, "lower end of its 95 % bootstrap interval over independent prompts"),
        Column("auc_high", REAL, "upper end"),
        Column("tpr", REAL, "share of memorized prompts above the score that at most 1 % of the others exceed"),
        Column("tpr_low", REAL, "lower end of its 95 % bootstrap interval"),
        Column("tpr_high", REAL, "upper end"),
        Column("num_memorized", INTEGER, "prompts with a copy among their images"),
        Column("num_non_memorized", INTEGER, "prompts whose images are all labelled NM"),
        Column("seconds", REAL, "mean of a prompt"),
        Column("status", TEXT, "measured, or why it was not"),
    ),
)
DETECTOR_MASKS = Table(
    "detector_masks",
    "One row per detector that draws maps and label: how well they show what is copied.",
    key=("checkpoint", "detector", "label"),
    columns=(
        CHECKPOINT,
        DETECTOR,
        Column("label", TEXT, "of the images: FM or BM"),
        Column("quantile", REAL, "of a map from which a pixel counts as copied, chosen on development prompts"),
        Column("iou", REAL, "mean intersection over union with the copied region, in latent pixels"),
        Column("low", REAL, "lower end of the 95 % bootstrap interval over prompts"),
        Column("high", REAL, "upper end"),
        Column("iou_of_all", REAL, "the same of a mask that covers the whole image"),
        Column("num_images", INTEGER, "test images of this label"),
        Column("is_held_out", BOOLEAN, "whether the quantile was chosen on other prompts"),
    ),
)
TABLES = (DETECTOR_SCORES, DETECTORS, DETECTOR_MASKS)
