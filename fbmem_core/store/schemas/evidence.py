"""Records of how an audit was made, checked and reviewed."""

from __future__ import annotations

from fbmem_core.store.schemas.columns import CHECKPOINT, PROMPT_ID
from fbmem_core.store.schemas.table import INTEGER, REAL, TEXT, TIME, Column, Table

AUDIT_SETTINGS = Table(
    "audit_settings",
    "One row per audited checkpoint: the settings that its labels were made with, which no later edit changes.",
    key=("checkpoint",),
    columns=(
        CHECKPOINT,
        Column("masking", TEXT, "the first masking of the audit, which summaries use"),
        Column("rule", TEXT, "the first rule of the audit, which summaries use"),
        Column("tau", REAL, "from this similarity on, a region counts as copied"),
        Column("beta", REAL, "a region of at most this share of an image counts as absent"),
        Column("size", INTEGER, "side at which images are compared, px"),
        Column("floor", REAL, "every reference of at least this similarity is listed"),
        Column("top_k", INTEGER, "references that are listed for each region, where the floor is 0"),
        Column("segmenter", TEXT, "rembg model or ONNX file"),
        Column("steps", INTEGER, "of sampling"),
        Column("guidance_scale", REAL, "of sampling"),
        Column("first_seed", INTEGER, "seed of each prompt's first image"),
        Column("samples_per_prompt", INTEGER, "images of a prompt, unless its kind has another number"),
        Column("height", INTEGER, "px"),
        Column("width", INTEGER, "px"),
        Column("dtype", TEXT, "of the weights while sampling"),
        Column("num_prompts", INTEGER, "prompts that were sampled"),
        Column("num_references", INTEGER, "references that could be used"),
        Column("num_generations", INTEGER, "images that were sampled"),
        Column("prompts_sha256", TEXT, "over prompt_id and text of every prompt"),
        Column("references_sha256", TEXT, "over reference_id and sha256 of every usable reference"),
        Column("generations_sha256", TEXT, "over prompt_id, seed and sha256 of every image"),
        Column("settings", TEXT, "the whole audit, as JSON"),
    ),
)
RECORDS = Table(
    "records",
    "One row per asset of an audited checkpoint: with what its rows were made, when and how long it took.",
    key=(
        "checkpoint",
        "asset",
    ),
    columns=(
        CHECKPOINT,
        Column("asset", TEXT, "name of the asset in Dagster"),
        Column("table_name", TEXT, "table that it writes"),
        Column("status", TEXT, "finished, or left_out"),
        Column("reason", TEXT, "why it was left out"),
        Column("settings", TEXT, "the whole audit when it ran, as JSON"),
        Column("settings_sha256", TEXT, "of settings"),
        Column("fbmem_version", TEXT, "version of fbmem"),
        Column("commit", TEXT, "of fbmem's repository; -dirty with changes; null outside of a repository"),
        Column("python", TEXT, "version"),
        Column("torch", TEXT, "version"),
        Column("diffusers", TEXT, "version"),
        Column("device", TEXT, "on which it was computed"),
        Column("run_id", TEXT, "run of Dagster that wrote it: /runs/RUN_ID in the UI"),
        Column("started_at", TIME, "when it began"),
        Column("seconds", REAL, "that its steps took"),
        Column("num_rows", INTEGER, "rows that it wrote or kept"),
        Column("rows_sha256", TEXT, "hash of these rows, 16 hex digits"),
    ),
)
CHECKS = Table(
    "checks",
    "One row per check of an audited checkpoint: passed, failed or not applicable, and why.",
    key=(
        "checkpoint",
        "asset",
        "check_name",
    ),
    columns=(
        CHECKPOINT,
        Column("asset", TEXT, "what was checked"),
        Column("check_name", TEXT, "name of the check"),
        Column("status", TEXT, "passed, failed or not_applicable"),
        Column("severity", TEXT, "ERROR or WARN"),
        Column("sentence", TEXT, "what was found"),
        Column("checked_at", TIME, "when"),
    ),
)
REVIEWS = Table(
    "reviews",
    "One row per finding and reviewer: what a person says of it. No label changes by it.",
    key=(
        "checkpoint",
        "prompt_id",
        "reviewer",
    ),
    columns=(
        CHECKPOINT,
        PROMPT_ID,
        Column("reviewer", TEXT, "who says it"),
        Column("verdict", TEXT, "confirmed, rejected or unclear"),
        Column("comment", TEXT, "in the reviewer's words"),
        Column("reviewed_at", TIME, "when"),
    ),
)
TABLES = (AUDIT_SETTINGS, RECORDS, CHECKS, REVIEWS)
