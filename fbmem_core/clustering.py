"""Prompts clustered by meaning: text embeddings and k-means, and how much the number of clusters matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from fbmem_core.errors import InputError, WeightsNotFoundError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Encoder = Literal["pipeline", "open_clip"]
NUM_CLUSTERS = 12  # arXiv 2508.12148, for 500 prompts
# what the code of arXiv 2508.12148 uses
MAX_ITERATIONS = 500
SEED = 1
OPEN_CLIP_MODEL, OPEN_CLIP_WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"
_BATCH = 256


@dataclass(frozen=True)
class Clusters:
    """`cluster` [n]: each prompt's cluster, numbered from 0, the largest first; `distance` [n] to its center."""

    cluster: np.ndarray
    distance: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """Prompts in each cluster; never 0."""
        return np.bincount(self.cluster).tolist() if len(self.cluster) else []


@dataclass(frozen=True)
class ClusterQuality:
    """Fit of a number of clusters.

    Attributes:
        count: The number that was asked for.
        num_clusters: The number that there is: fewer where there are fewer different prompts.
        silhouette: Mean silhouette coefficient, from -1 to 1; None for one cluster, or one a prompt.
        stability: Mean adjusted Rand index of every two seeds, 1 when all agree.
    """

    count: int
    num_clusters: int
    silhouette: float | None
    stability: float


def pipeline_embeddings(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """The last hidden states of the pipeline's own text encoder, flattened: what arXiv 2508.12148's code clusters."""
    import torch

    from fbmem_core.diffusion.noise_difference import encode_prompts

    # the sizes matter to the conditions of XL alone, which are not used here
    parts = [
        encode_prompts(pipeline, prompts[first : first + _BATCH], height=512, width=512).embeds.float().cpu()
        for first in range(0, len(prompts), _BATCH)
    ]
    longest = max(part.shape[1] for part in parts)  # some encoders pad to the longest text of a batch alone
    padded = [torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]
    return torch.cat(padded).flatten(1).numpy()


def open_clip_embeddings(
    prompts: Sequence[str], *, model: str = OPEN_CLIP_MODEL, weights: str = OPEN_CLIP_WEIGHTS, device: str = "cpu"
) -> Float[np.ndarray, "n d"]:
    """Text features of an open_clip model, of unit length: what arXiv 2508.12148 describes.

    Args:
        prompts: n texts.
        model: Its name in open_clip.
        weights: A tag that open_clip knows, or the path of a checkpoint file.
        device: Where to compute.

    Raises:
        InputError: open_clip has no such model.
        WeightsNotFoundError: The weights are neither here nor to be had.
    """
    import open_clip
    import torch

    network = load_open_clip(model, weights, device=device)
    tokenizer = open_clip.get_tokenizer(model)
    with torch.no_grad():
        parts = [
            network.encode_text(tokenizer(list(prompts[first : first + _BATCH])).to(device), normalize=True)
            for first in range(0, len(prompts), _BATCH)
        ]
    return torch.cat(parts).float().cpu().numpy()


def load_open_clip(model: str, weights: str, *, device: str = "cpu") -> Any:
    """A model of open_clip, ready to encode; for arguments and errors see `open_clip_embeddings`."""
    import open_clip

    if model not in open_clip.list_models():
        cure = "`open_clip.list_models()` names those that there are."
        raise InputError("the name of an open_clip model", f"`{model}`", where="clusters.model", cure=cure)
    try:
        return open_clip.create_model(model, pretrained=weights, device=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        cure = f"Fetch the file and give its path in `clusters.weights`. ({type(error).__name__})"
        what = f"the weights `{weights}` of open_clip's {model}"
        raise WeightsNotFoundError(what, looked="that path and open_clip's cache and hubs", cure=cure) from None


def cluster_prompts(embeddings: Float[np.ndarray, "n d"], *, count: int = NUM_CLUSTERS, seed: int = SEED) -> Clusters:
    """k-means, 10 starts of at most 500 iterations.

    `count` is an upper bound: no cluster is empty, so there are never more than different prompts.

    Raises:
        InputError: There is no prompt, or `count` is below 1.
    """
    if not len(embeddings) or count < 1:
        got = f"{count} clusters of {len(embeddings)} prompts"
        raise InputError("a prompt and at least one cluster", got, cure="Mend `clusters.count` or the prompts.")
    from sklearn.cluster import KMeans

    # from there on k-means would warn, and number clusters that nothing is in
    count = min(count, len(np.unique(embeddings, axis=0)))
    fitted = KMeans(count, n_init=10, max_iter=MAX_ITERATIONS, random_state=seed).fit(embeddings)
    _, labels = np.unique(fitted.labels_, return_inverse=True)
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    distance = np.linalg.norm(embeddings - fitted.cluster_centers_[fitted.labels_], axis=1)
    return Clusters(rank[labels], distance)


def cluster_quality(
    embeddings: Float[np.ndarray, "n d"], *, count: int, seeds: Sequence[int] = (1, 2, 3, 4, 5)
) -> ClusterQuality:
    """Silhouette of the first seed's clusters, and how much those of all seeds agree."""
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    runs = [cluster_prompts(embeddings, count=count, seed=seed).cluster for seed in seeds]
    num_clusters = len(np.unique(runs[0]))
    silhouette = float(silhouette_score(embeddings, runs[0])) if 1 < num_clusters < len(embeddings) else None
    agreements = [adjusted_rand_score(a, b) for number, a in enumerate(runs) for b in runs[number + 1 :]]
    return ClusterQuality(count, num_clusters, silhouette, float(np.mean(agreements)) if agreements else 1.0)
