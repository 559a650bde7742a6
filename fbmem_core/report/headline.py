"""First sentences of a report: what was found, how sure it is, and what it cannot say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fbmem_core.report.intervals import share_over_prompts
from fbmem_core.store.intervals import clopper_pearson

Row = dict[str, Any]
_WORDS = {"VM": "whole", "FM": "the foreground alone", "BM": "the background alone"}
_NOT_SEARCHED = "copies that are mirrored, cropped, shifted or turned are not searched"
_SEARCHED = {
    None: _NOT_SEARCHED,
    "none": _NOT_SEARCHED,
    "fast": "mirrored copies and those shifted by up to 12 % are searched, cropped and turned ones are not",
    "thorough": "mirrored, cropped, shifted, scaled and turned copies are searched as docs/similarity.md says",
}


def headline(prompts: Sequence[Row], counts: dict[str, int], audit: Row) -> Row:
    """Findings in one sentence with its intervals, and what it cannot say in another.

    Args:
        prompts: Rows of `prompt_findings`.
        counts: Images by label.
        audit: The row of `audits`.
    """
    copied = [row for row in prompts if row["k"]]
    judged = [row for row in prompts if row["n"]]
    num_copies, num_images = sum(row["k"] for row in judged), sum(row["n"] for row in judged)
    kinds = {label: sum(row["best_label"] == label for row in copied) for label in _WORDS}
    low, high = clopper_pearson(len(copied), len(judged)) if judged else (0.0, 1.0)
    image_low, image_high = share_over_prompts([(row["k"], row["n"]) for row in judged])
    if num_copies in (0, num_images):  # resampling what never varies says nothing: the prompts' own interval does
        image_low, image_high = low, high
    return {
        "sentence": _sentence(kinds, len(copied), len(judged)),
        "prompts": f"{len(copied)} of {len(judged)} prompts ({_percent(len(copied), len(judged))}, exact 95 % interval "
        f"{low:.0%} to {high:.0%})",
        "images": f"{num_copies} of {num_images} images are copies ({_percent(num_copies, num_images)}, 95 % interval "
        f"{image_low:.0%} to {image_high:.0%}, resampled over prompts)",
        "undecided": f"{counts['undecided']} images are undecided" if counts["undecided"] else "no image is undecided",
        "limits": limits(audit),
        "num_prompts": len(judged), "num_prompts_copied": len(copied), "num_images": num_images,
        "num_copies": num_copies, "prompts_low": low, "prompts_high": high, "images_low": image_low,
        "images_high": image_high, "kinds": kinds,
    }  # fmt: skip


def limits(audit: Row) -> str:
    """Limits of the label NM, in one sentence."""
    alignment = json.loads(audit["settings"]).get("similarity", {}).get("alignment")
    return (
        f"NM (no copy found) means that no copy was found among {audit['num_references']} references with "
        f"{audit['samples_per_prompt']} seeds a prompt; {_SEARCHED[alignment]}. "
        "A training image that is no reference is not seen."
    )


def _sentence(kinds: dict[str, int], num_copied: int, num_prompts: int) -> str:
    if not num_copied:
        return f"None of {num_prompts} prompts reproduces a training image."
    parts = ", ".join(f"{count} {_WORDS[label]}" for label, count in kinds.items() if count)
    verb = "reproduces" if num_copied == 1 else "reproduce"
    return f"{num_copied} of {num_prompts} prompts {verb} training images: {parts}."


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
