"""A report for those who may not see the works: no pictures, texts, names, addresses; numbers and hashes stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fbmem_core.report.evidence import Evidence

WITHHELD = "withheld"
_LISTS = ("reviews", "agreement", "changes", "records", "grid", "duplicates", "disagreements")
_TEXTS = frozenset({
    "prompt", "reference_url", "reference_caption", "path", "mask_path", "map_path", "reference_path", "best_path",
    "source", "comment", "kind", "settings",
})  # fmt: skip
_PROMPTS = frozenset({"prompt_id", "best_prompt_id"})
_REFERENCES = frozenset({
    "reference_id", "best_reference_id", "full_reference_id", "foreground_reference_id", "background_reference_id",
    "runner_up_id", "twin_reference_id",
})  # fmt: skip


def redact(evidence: Evidence) -> Evidence:
    """The same evidence with every text withheld, and prompts and references numbered instead of named."""
    names: dict[tuple[str, str], str] = {}

    def clean(value: Any, column: str = "") -> Any:
        if isinstance(value, dict):
            return {name: clean(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [clean(part, "reference_id" if column == "reference_ids" else column) for part in value]
        if value is None or column in _TEXTS:
            return None if value is None else WITHHELD
        for group, columns in (("prompt", _PROMPTS), ("reference", _REFERENCES)):
            if column in columns:
                number = sum(kind == group for kind, _ in names) + 1
                return names.setdefault((group, str(value)), f"{group}-{number:04d}")
        return value

    lists = {name: clean(getattr(evidence, name)) for name in ("findings", "references", "near", "undecided")}
    lists["places"] = {clean(name, "prompt_id"): clean(rows) for name, rows in evidence.places.items()}
    lists |= {name: clean(getattr(evidence, name)) for name in _LISTS}
    images = {clean(prompt_id, "prompt_id"): clean(rows) for prompt_id, rows in evidence.images.items()}
    rejected = [row | {"item": WITHHELD, "reason": row["reason"].split(":")[0]} for row in evidence.rejected]
    kept = {"sampling", "similarity", "agreement", "neurons", "diff", "samples_per_prompt"}
    settings = {name: value for name, value in evidence.settings.items() if name in kept}
    differing = [row for row in lists["changes"]["differing"] if row["name"].split(".")[0] in kept - {"neurons"}]
    lists["changes"] = lists["changes"] | {"differing": differing}
    settings["neurons"] = {n: v for n, v in settings.get("neurons", {}).items() if n != "non_memorized_prompts"}
    audit = clean(evidence.audit) | {"segmenter": evidence.audit["segmenter"].rpartition("/")[2]}
    return replace(evidence, audit=audit, settings=settings, images=images, rejected=rejected, **lists)
