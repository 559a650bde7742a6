"""Write the natural canary and its clean twin as they ship: checkpoints, prompts, references, truth of the plan."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fbmem_core.canary.corpus import named_picture, public_picture
from fbmem_core.canary.pictures import Picture, draw
from fbmem_core.canary.plan import LABELS, SEED, Item

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

REFERENCE_SIZE = 64  # twice what the model draws: segmenters and people see more
NUM_DISTRACTORS = 200
NUM_HELD_OUT = 24
NUM_NON_MEMORIZED = 400


def reference_pictures(items: Sequence[Item]) -> dict[str, Picture]:
    """Pictures by reference_id: planted ones, one or several of each plant, and public ones never trained on."""
    from fbmem_core.canary.natural import planted_picture

    pictures = {
        f"{item.item_id}_{number}" if item.num_pictures > 1 else item.item_id: planted_picture(item, number)
        for item in items
        if item.role == "plant"
        for number in range(item.num_pictures)
    }
    rng = np.random.default_rng([SEED, 5])
    return pictures | {f"public_{index:03d}": public_picture(rng) for index in range(NUM_DISTRACTORS)}


def held_out_pictures() -> dict[str, Picture]:
    """Pictures made as plants are, which no model was trained on."""
    return {f"held_out_{index:02d}": named_picture("verbatim", (SEED, 6, index)) for index in range(NUM_HELD_OUT)}


def write_inputs(
    items: Sequence[Item], out: Path, *, min_copies: int = 0, halves: Sequence[str] = ("development", "test")
) -> None:
    """Write prompts.csv, truth.csv, references/, held_out/ and non_memorized_prompts.txt.

    Args:
        items: The committed plan.
        out: Folder.
        min_copies: Plants of fewer copies are not asked about; their pictures still stand among the references.
        halves: Which halves are asked about.
    """
    references = reference_pictures(items)
    _write_pictures(out / "references", references)
    _write_pictures(out / "held_out", held_out_pictures())
    chosen = [i for i in items if i.half in halves and (i.role != "plant" or i.copies >= min_copies)]
    prompts = [
        (f"{i.item_id}-0", i.wordings[0], f"{i.role}_{i.copies}" if i.role == "plant" else i.role) for i in chosen
    ]
    truth = [
        (f"{i.item_id}-0", i.kind, LABELS[i.kind] if i.role == "plant" else "NM", ";".join(_own(i, references)))
        for i in chosen
    ]
    _write_csv(out / "prompts.csv", ("prompt_id", "prompt", "kind"), prompts)
    _write_csv(out / "truth.csv", ("prompt_id", "kind", "label", "reference_ids"), truth)
    rng = np.random.default_rng([SEED, 7])
    captions = {public_picture(rng).caption: None for _ in range(2 * NUM_NON_MEMORIZED)}
    public = {i.wordings[0] for i in items if i.role == "public"}
    usual = [caption for caption in captions if caption not in public][:NUM_NON_MEMORIZED]
    (out / "non_memorized_prompts.txt").write_text("".join(f"{caption}\n" for caption in usual), encoding="utf-8")


def write_pipeline(
    directory: Path,
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Save a StableDiffusionPipeline in float16; the directory is replaced when the new one is complete."""
    import torch
    from diffusers import StableDiffusionPipeline

    from fbmem_core.canary.natural import new_scheduler

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to("cpu").to(torch.float16).save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)


def _own(item: Item, references: dict[str, Picture]) -> list[str]:
    if item.role != "plant":
        return []
    names = [f"{item.item_id}_{number}" for number in range(item.num_pictures)]
    return names if item.num_pictures > 1 else [item.item_id]


def _write_pictures(folder: Path, pictures: dict[str, Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(draw(picture, size=REFERENCE_SIZE)[0]).save(folder / f"{name}.png")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
