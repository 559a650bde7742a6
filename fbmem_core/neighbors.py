"""Nearest references: exact, by every criterion, over every reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fbmem_core.audit import CRITERIA, TAU, Region
from fbmem_core.errors import InputError
from fbmem_core.references import open_rgb
from fbmem_core.similarity.ms_ssim import Pyramid, pyramid, pyramid_ms_ssim
from fbmem_core.similarity.regions import RegionSimilarity, regional

_CHUNK = 32


@dataclass(frozen=True)
class ImageSet:
    """Images at one size with their mattes, kept as bytes.

    `images` is uint8 [n, size, size, 3]; `alphas` float32 [n, size, size] in [0, 1], NaN where a matte is undecided.
    """

    ids: tuple[str, ...]
    images: np.ndarray
    alphas: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> ImageSet:
        """The images of these rows, in this order."""
        return ImageSet(tuple(self.ids[row] for row in rows), self.images[list(rows)], self.alphas[list(rows)])

    def tensors(self, rows: slice, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images [m, 3, size, size] in [0, 1] and mattes [m, 1, size, size] of some rows."""
        images = torch.from_numpy(self.images[rows]).to(device).permute(0, 3, 1, 2).float() / 255
        return images.contiguous(), torch.from_numpy(self.alphas[rows]).to(device)[:, None]


@dataclass(frozen=True)
class Neighbor:
    """The reference of this rank (1 = most similar) by one criterion; `complete`: no reference above it is missing."""

    criterion: str
    rank: int
    reference_id: str
    similarity: float
    complete: bool = True


def load_image_set(items: Sequence[tuple[str, Path, Path | None]], *, size: int) -> ImageSet:
    """Read (id, image, matte) triples and resize them to `size`, images with Lanczos, mattes linearly.

    A matte is an 8-bit grey PNG, white for the foreground; None is an undecided one.
    """
    images = np.empty((len(items), size, size, 3), dtype=np.uint8)
    alphas = np.full((len(items), size, size), np.nan, dtype=np.float32)
    for row, (_, image_path, matte_path) in enumerate(items):
        images[row] = np.asarray(open_rgb(image_path).resize((size, size), Image.Resampling.LANCZOS))
        if matte_path is not None:
            with Image.open(matte_path) as matte:
                resized = matte.convert("L").resize((size, size), Image.Resampling.BILINEAR)
            alphas[row] = np.asarray(resized, dtype=np.float32) / 255
    return ImageSet(tuple(name for name, _, _ in items), images, alphas)


def pair_similarities(
    generations: ImageSet, references: ImageSet, *, region: Region = "masked", device: str = "cpu"
) -> Iterator[tuple[str, RegionSimilarity]]:
    """Every generation against every reference.

    Yields:
        (generation id, similarities [len(references)]) in the order of the generations.
    """
    if generations.images.shape[1:] != references.images.shape[1:]:
        raise InputError(
            "generations and references of one size",
            f"{generations.images.shape[1:3]} and {references.images.shape[1:3]}",
            cure="Load both with the same size.",
        )
    columns = [
        _against_chunk(generations, references, slice(first, first + _CHUNK), region, device)
        for first in range(0, max(len(references), 1), _CHUNK)  # one empty chunk where there is no reference
    ]
    for name, *parts in zip(generations.ids, *columns, strict=True):
        yield name, RegionSimilarity(*(torch.cat([getattr(p, c) for p in parts]).cpu() for c in CRITERIA[:3]))


def nearest_references(
    generations: ImageSet,
    references: ImageSet,
    *,
    region: Region = "masked",
    top_k: int = 5,
    floor: float = TAU,
    device: str = "cpu",
) -> Iterator[tuple[str, list[Neighbor]]]:
    """The references most similar to each generation by every criterion (full, foreground, background, average).

    Args:
        generations: The images that are asked about.
        references: The images among which they are looked for.
        region: Which definition of region similarity; see `region_similarity`.
        top_k: At least this many per criterion.
        floor: And every reference of at least this similarity.
        device: Where to compute.

    Yields:
        (generation id, neighbors by criterion and rank). A criterion that is undefined for a pair, because a matte is
        undecided or a region empty, has no neighbor there. Equally similar references keep the order of the set.
    """
    for name, similarities in pair_similarities(generations, references, region=region, device=device):
        neighbors = []
        for criterion in CRITERIA:
            values = getattr(similarities, criterion).double()
            order = torch.argsort(values.nan_to_num(-1.0), descending=True, stable=True).tolist()
            for rank, row in enumerate(order, start=1):
                value = values[row].item()
                if np.isnan(value) or (rank > top_k and value < floor):
                    break
                neighbors.append(Neighbor(criterion, rank, references.ids[row], value))
        yield name, neighbors


def _against_chunk(
    generations: ImageSet, references: ImageSet, rows: slice, region: Region, device: str
) -> list[RegionSimilarity]:
    images, alphas = references.tensors(rows, device)
    prepared = _prepare(images, alphas, region)
    results = []
    for row in range(len(generations)):
        image, alpha = generations.tensors(slice(row, row + 1), device)
        compared = [pyramid_ms_ssim(a, b) for a, b in zip(_prepare(image, alpha, region), prepared, strict=True)]
        if region == "masked":
            parts = regional(image.expand_as(images), images, alpha.expand_as(alphas), alphas, region=region)
            compared += parts
        else:
            undecided = (alpha + alphas).isnan().any(dim=(1, 2, 3))
            compared[1:] = [part.masked_fill(undecided, torch.nan) for part in compared[1:]]
        results.append(RegionSimilarity(*compared))
    return results


def _prepare(images: Tensor, alphas: Tensor, region: Region) -> list[Pyramid]:
    """Pyramids of the whole images and, for composites, of the foregrounds on black and backgrounds on white."""
    if region == "masked":
        return [pyramid(images)]
    return [pyramid(images), pyramid(images * alphas), pyramid(images + (1 - images) * alphas)]
