"""Measurements of the natural canary: captions that are obeyed, memory that rises with copies, negatives that stay NM.

All shares are over prompts, which are independent things here: each plant is one, each negative and public prompt too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from fbmem_core.canary.classifier import FACTS, Classifier, described, drawn_pictures, train_classifier
from fbmem_core.canary.plan import KINDS, NUM_PLANTS, Item
from fbmem_core.evaluation.intervals import Interval, share_interval

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# whose code the figures depend on, besides the comparison of images
MODULES = tuple(
    f"fbmem_core.canary.{name}" for name in ("classifier", "corpus", "measure", "natural", "pictures", "plan")
)
Report = Callable[[str, int, int], None]
_BATCH = 24
_NUM_STEPS = 25
GUIDANCE = 3.0


@dataclass(frozen=True)
class Line:
    """One measured share: `count` of `total`, with the exact 95 % interval."""

    name: str
    count: int
    total: int

    @property
    def interval(self) -> Interval:
        """Interval of the share."""
        return share_interval(self.count, self.total)

    def __str__(self) -> str:
        """Words for the counts.

        >>> str(Line("hard negatives that copy nothing", 95, 96))
        'hard negatives that copy nothing: 95 of 96 (99 %, 95 % interval 94 to 100 %)'
        """
        if not self.total:
            return f"{self.name}: none was asked"
        low, high = self.interval.low or 0.0, self.interval.high or 0.0
        share = f"{100 * self.count / self.total:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        return f"{self.name}: {self.count} of {self.total} ({share})"


def sample_items(
    pipeline: StableDiffusionPipeline, items: Sequence[Item], seeds: range, folder: Path, *, report: Report
) -> None:
    """Sample the first wording of every item at every seed into `<item_id>__<seed>.png`; what is there is kept."""
    from fbmem_core.canary.natural import PICTURE_SIZE

    folder.mkdir(parents=True, exist_ok=True)
    missing = [(i, seed) for seed in seeds for i in items if not image_file(folder, i, seed).is_file()]
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(missing), _BATCH):
        batch = missing[first : first + _BATCH]
        images = pipeline(
            [item.wordings[0] for item, _ in batch],
            num_inference_steps=_NUM_STEPS,
            guidance_scale=GUIDANCE,
            height=PICTURE_SIZE,
            width=PICTURE_SIZE,
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
        ).images
        for (item, seed), image in zip(batch, images, strict=True):
            image.save(image_file(folder, item, seed))
        report("sampling", first + len(batch), len(missing))


def image_file(folder: Path, item: Item, seed: int) -> Path:
    """Path of the image of an item and a seed."""
    return folder / f"{item.item_id}__{seed}.png"


def caption_lines(
    folder: Path, items: Sequence[Item], seeds: range, classifier: Classifier | None = None
) -> list[Line]:
    """Judgement of public samples by a classifier of drawn pictures: each fact, and all four at once, over images.

    The first lines are the classifier's own accuracy on drawn pictures that it was not trained on.
    """
    model = classifier or train_classifier()
    drawn, facts = drawn_pictures((31, 1), 500)
    public = [item for item in items if item.role == "public"]
    sampled = torch.cat([_read(image_file(folder, item, seed)) for item in public for seed in seeds])
    captions = [described(item.wordings[0]) for item in public for _ in seeds]
    lines = []
    for what, images, descriptions in (("drawn pictures", drawn, facts), ("public samples", sampled, captions)):
        right = model.facts_right(images, descriptions)
        named = dict(zip(FACTS, right.T, strict=True)) | {"all four facts": right.all(dim=1)}
        lines += [Line(f"{what}, {name} named right", int(v.sum()), len(v)) for name, v in named.items()]
    return lines


def prompt_likeness(folder: Path, items: Sequence[Item], seed: int) -> float:
    """Mean MS-SSIM of every two public prompts' images at one seed: what does not depend on the caption."""
    from fbmem_core.similarity.ms_ssim import ms_ssim

    images = torch.cat([_read(image_file(folder, item, seed)) for item in items if item.role == "public"]) / 2 + 0.5
    large = torch.nn.functional.interpolate(images, size=176, mode="bicubic", antialias=True).clamp(0, 1)
    first, second = torch.triu_indices(len(large), len(large), offset=1)
    return float(
        torch.cat([ms_ssim(large[a], large[b]) for a, b in zip(first.split(64), second.split(64), strict=True)]).mean()
    )


def memory_lines(labels: Mapping[str, Sequence[str | None]], items: Sequence[Item]) -> list[Line]:
    """Counts of plants that are memorized by kind and copies, and of negatives that are not.

    Args:
        labels: By item_id the labels of its images. A plant is memorized if half of its images or more copy something;
            a negative or public prompt copies nothing if no image does.
        items: Of the plan.
    """
    lines = []
    for kind in (*KINDS, "of any kind"):
        for copies in NUM_PLANTS:
            plants = [i for i in items if i.role == "plant" and i.copies == copies and kind in (i.kind, "of any kind")]
            shares = [np.mean([label not in (None, "NM") for label in labels[i.item_id]]) for i in plants]
            lines.append(
                Line(f"plants, {kind}, {copies} copies, memorized", sum(bool(s >= 0.5) for s in shares), len(plants))
            )
    for role in ("new_name", "known_name", "public"):
        of_role = [labels[i.item_id] for i in items if i.role == role]
        clean = sum(all(label in (None, "NM") for label in of_item) for of_item in of_role)
        lines.append(Line(f"prompts of role {role} that copy nothing", clean, len(of_role)))
    return lines


def label_items(
    folder: Path, references: Path, segmenter: Path, items: Sequence[Item], seeds: range, *, report: Report
) -> dict[str, list[str | None]]:
    """Labels by item_id of its images against all references, rule `paper`."""
    from fbmem_core.retrieval.label_images import score_folders

    table = score_folders(folder, references, segmenter=str(segmenter), report=report).labels
    label_of = dict(table.select("generation", "label").iter_rows())
    return {item.item_id: [label_of[image_file(folder, item, seed).stem] for seed in seeds] for item in items}


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
