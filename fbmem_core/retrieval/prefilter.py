"""A prefilter for very large reference sets: only references whose embedding is near are compared.

It can miss what a full comparison finds, so it is off unless asked for, no neighbor is then called complete, and its
recall is measured on generations that are compared with every reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.clustering import load_open_clip
from fbmem_core.errors import InputError
from fbmem_core.retrieval.neighbors import Neighbor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from fbmem_core.retrieval.image_sets import ImageSet

_BATCH = 64
_LATENT_SIDE = 8  # of the pooled latents, so that an embedding has a few hundred numbers
_GREY = 0.5

Candidates = Mapping[str, Sequence[str]]  # reference ids by generation id


class Embedder(Protocol):
    """Images [n, 3, h, w] in [0, 1] to vectors [n, d]."""

    def __call__(self, images: Tensor) -> Tensor:
        """[n, d]."""
        ...


class LatentEmbedder:
    """The pipeline's own image encoder: latents of its autoencoder, pooled to 8 x 8, less their mean."""

    def __init__(self, vae: AutoencoderKL, *, image_size: int) -> None:
        self.vae, self.image_size = vae, image_size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[n, 64 c]."""
        resized = F.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        inputs = (resized * 2 - 1).to(self.vae.device, self.vae.dtype)
        latents = self.vae.encode(inputs).latent_dist.mean.float()
        pooled = F.adaptive_avg_pool2d(latents, _LATENT_SIDE)
        return (pooled - pooled.mean(dim=(2, 3), keepdim=True)).flatten(1)


class OpenClipEmbedder:
    """The image tower of an open_clip model.

    Args:
        model: Its name in open_clip.
        weights: A tag that open_clip knows, or the path of a checkpoint file.
        device: Where to compute.

    Raises:
        InputError: open_clip has no such model.
        WeightsNotFoundError: The weights are neither here nor to be had.
    """

    def __init__(self, model: str, weights: str, *, device: str = "cpu") -> None:
        self.network = load_open_clip(model, weights, device=device)
        self.device = device
        visual = self.network.visual
        size = visual.image_size
        self.size = size if isinstance(size, tuple) else (size, size)
        self.mean, self.std = (
            torch.tensor(getattr(visual, f"image_{name}"))[:, None, None] for name in ("mean", "std")
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[n, d]."""
        resized = F.interpolate(images, size=self.size, mode="bicubic", antialias=True).clamp(0, 1).cpu()
        return self.network.encode_image(((resized - self.mean) / self.std).to(self.device)).float()


def region_embeddings(images: ImageSet, embedder: Embedder) -> dict[str, Float[np.ndarray, "n d"]]:
    """Unit vectors of every image as a whole, of its foreground and of its background, the rest of it grey."""
    parts: dict[str, list[np.ndarray]] = {"full": [], "foreground": [], "background": []}
    for rows in torch.arange(len(images)).split(_BATCH):
        pictures, alphas = images.tensors(rows)
        shown = {"full": torch.ones_like(alphas), "foreground": alphas, "background": 1 - alphas}
        for region, visible in shown.items():
            vectors = embedder(pictures * visible + _GREY * (1 - visible))
            parts[region].append(F.normalize(vectors, dim=1).cpu().numpy())
    return {region: np.concatenate(vectors) for region, vectors in parts.items()}


class Prefilter:
    """An index over the references' embeddings, by region.

    Args:
        references: The set.
        embedder: How images become vectors.
        num_candidates: So many references are nearest by each of the three regions; a generation's candidates are all
            of those.
    """

    def __init__(self, references: ImageSet, embedder: Embedder, *, num_candidates: int) -> None:
        import faiss

        if num_candidates < 1:
            raise InputError("at least one candidate", num_candidates, cure="Raise `similarity.num_candidates`.")
        self.references, self.embedder = references, embedder
        self.num_candidates = min(num_candidates, len(references))
        self._indexes = {}
        for region, vectors in region_embeddings(references, embedder).items():
            self._indexes[region] = faiss.IndexFlatIP(vectors.shape[1])
            self._indexes[region].add(np.ascontiguousarray(vectors, dtype=np.float32))

    def candidates(self, generations: ImageSet) -> dict[str, list[str]]:
        """The references that are compared with each generation, in the order of the set."""
        columns: list[set[int]] = [set() for _ in generations.ids]
        for region, vectors in region_embeddings(generations, self.embedder).items():
            wanted = np.ascontiguousarray(vectors, dtype=np.float32)
            _, nearest = self._indexes[region].search(wanted, self.num_candidates)
            for row, found in enumerate(nearest):
                columns[row].update(found.tolist())
        names = self.references.ids
        return {
            generation: [names[column] for column in sorted(some)]
            for generation, some in zip(generations.ids, columns, strict=True)
        }


@dataclass(frozen=True)
class Recall:
    """What a prefilter kept of the pairs that count.

    Attributes:
        num_generations: That were compared with every reference.
        num_pairs: Their (criterion, reference) pairs of at least the floor.
        num_kept: Those of them that were candidates.
    """

    num_generations: int
    num_pairs: int
    num_kept: int

    @property
    def value(self) -> float:
        """Share of the pairs that were kept; NaN where there were none."""
        return self.num_kept / self.num_pairs if self.num_pairs else math.nan


def measure_recall(exact: Mapping[str, Sequence[Neighbor]], candidates: Candidates, *, floor: float) -> Recall:
    """Compare what a full search found with what the prefilter would have let through.

    Args:
        exact: Neighbors of some generations among all references.
        candidates: Of at least those generations.
        floor: Pairs of at least this similarity count.
    """
    pairs = [
        (generation, neighbor.reference_id)
        for generation, neighbors in exact.items()
        for neighbor in neighbors
        if neighbor.similarity >= floor
    ]
    kept = sum(reference in set(candidates[generation]) for generation, reference in pairs)
    return Recall(len(exact), len(pairs), kept)
