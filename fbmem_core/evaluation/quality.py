"""Utility cost of a mitigation: image quality, prompt alignment, diversity, side effects on non-memorized prompts.

What cannot be measured becomes a row with its reason, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fbmem_core.clustering import OPEN_CLIP_MODEL, OPEN_CLIP_WEIGHTS, load_open_clip
from fbmem_core.errors import InputError, WeightsNotFoundError
from fbmem_core.similarity.ms_ssim import ms_ssim

Metric = Literal["brisque", "dbcnn", "qalign", "clip"]
MEASURED = "measured"
SIMILARITY_SIZE = 176  # px, at which images of one model are compared with each other; five scales need 161
_BATCH = 16


@dataclass(frozen=True)
class QualityRow:
    """One metric over some images.

    Attributes:
        metric: `brisque` (lower is better), `dbcnn`, `qalign` or `clip` (higher is better).
        value: Mean over the images; None where nothing was measured.
        stddev: Over the images; None for fewer than two.
        num_images: That were measured.
        status: `measured`, or why some or all were not.
    """

    metric: str
    value: float | None
    stddev: float | None
    num_images: int
    status: str


@dataclass(frozen=True)
class Clip:
    """The CLIP that measures alignment: a model of open_clip, and a tag or a file of weights."""

    model: str = OPEN_CLIP_MODEL
    weights: str = OPEN_CLIP_WEIGHTS


def measure_quality(
    metric: Metric,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    clip: Clip = Clip(),
    device: str = "cpu",
) -> QualityRow:
    """Mean and standard deviation of a metric over images.

    Args:
        metric: `brisque`, `dbcnn` (arXiv 1907.02665) and `qalign` (arXiv 2312.17090) come from pyiqa, the extra
            `quality`, which fetches their weights. `clip` is the cosine of image and prompt.
        images: RGB, of any size.
        prompts: The text of each image; `clip` needs them.
        clip: The model that `clip` takes.
        device: Where to compute.

    Returns:
        A row, with `status` for a reason where a package, weights or an image were of no use.

    Raises:
        InputError: There is no such metric, or not a prompt for each image.
    """
    if prompts is not None and len(prompts) != len(images):
        raise InputError(f"{len(images)} prompts, one an image", len(prompts), cure="Give the prompt of each image.")
    if metric not in ("brisque", "dbcnn", "qalign", "clip"):
        raise InputError("brisque, dbcnn, qalign or clip", f"`{metric}`", where="the metrics", cure="Choose of these.")
    if not images:
        return QualityRow(metric, None, None, 0, "no images")
    try:
        values = _measure(metric, images, prompts, clip, device)
    except (ImportError, WeightsNotFoundError, InputError) as error:
        return QualityRow(metric, None, None, 0, " ".join(f"not measured: {error}".split()))
    usable = values[~values.isnan()].double()
    num_flat = len(values) - len(usable)
    status = f"{num_flat} of {len(values)} images are flat" if num_flat else MEASURED
    mean = usable.mean().item() if len(usable) else None
    return QualityRow(metric, mean, usable.std().item() if len(usable) > 1 else None, len(usable), status)


def diversity(images: Sequence[Image.Image], *, size: int = SIMILARITY_SIZE) -> float:
    """Diversity of the images of one prompt over its seeds: 1 - mean MS-SSIM of every two, at `size` px.

    From 0, all alike, to 1. It is the similarity that labels are made of, so it needs no weights.

    Raises:
        InputError: There are fewer than two images.
    """
    if len(images) < 2:
        raise InputError("at least two images", len(images), where="diversity", cure="Sample more seeds.")
    planes = _tensor(images, size)
    first, second = zip(*combinations(range(len(images)), 2), strict=True)
    return 1 - ms_ssim(planes[list(first)], planes[list(second)]).mean().item()


def side_effect(
    images: Mapping[Any, Image.Image], unmitigated: Mapping[Any, Image.Image], *, size: int = SIMILARITY_SIZE
) -> dict[Any, float]:
    """Similarity of non-memorized prompts' images to their unmitigated ones: MS-SSIM at `size` px; 1: untouched.

    Args:
        images: By any key, such as (prompt_id, seed), sampled with the mitigation on for all prompts.
        unmitigated: The same without it.
        size: Both are resized to this many px a side.

    Returns:
        By key, of the images that are in both, in the order of `images`.
    """
    keys = [key for key in images if key in unmitigated]
    if not keys:
        return {}
    pair = (_tensor([pictures[key] for key in keys], size) for pictures in (images, unmitigated))
    return dict(zip(keys, ms_ssim(*pair).tolist(), strict=True))


@torch.no_grad()
def _measure(
    metric: Metric, images: Sequence[Image.Image], prompts: Sequence[str] | None, clip: Clip, device: str
) -> Float[Tensor, " n"]:
    if metric == "clip":
        return _clip_alignment(images, prompts, clip, device)
    score = _load_pyiqa(metric, device)
    scores = []
    for _, group in groupby(images, key=lambda image: image.size):
        same_size = list(group)
        for first in range(0, len(same_size), _BATCH):
            scores.append(score(_tensor(same_size[first : first + _BATCH]).to(device)).flatten().float().cpu())
    return torch.cat(scores)


def _load_pyiqa(metric: str, device: str) -> Callable[[Tensor], Tensor]:
    try:
        import pyiqa

        return pyiqa.create_metric(metric, device=device)
    except ImportError as error:
        raise ImportError(f"{error}. Install what it needs: `pip install 'fbmem[quality]'`.") from None
    except (OSError, RuntimeError, ValueError) as error:
        cure = f"Fetch them once on a machine with a network. ({type(error).__name__})"
        raise WeightsNotFoundError(
            f"pyiqa's weights of `{metric}`", looked="its cache and the hub", cure=cure
        ) from None


def _clip_alignment(
    images: Sequence[Image.Image], prompts: Sequence[str] | None, clip: Clip, device: str
) -> Float[Tensor, " n"]:
    """Cosine of the features of each image and its prompt, from -1 to 1."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if prompts is None:
        raise InputError("the prompts of the images", "none", where="the metric `clip`", cure="Give them.")
    network = load_open_clip(clip.model, clip.weights, device=device)
    transform = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
    tokenizer = open_clip.get_tokenizer(clip.model)
    alignments = []
    for first in range(0, len(images), _BATCH):
        batch = slice(first, first + _BATCH)
        pixels = torch.stack([transform(image.convert("RGB")) for image in images[batch]]).to(device)
        features = network.encode_image(pixels, normalize=True)
        alignments.append(
            (features * network.encode_text(tokenizer(list(prompts[batch])).to(device), normalize=True)).sum(1)
        )
    return torch.cat(alignments).float().cpu()


def _tensor(images: Iterable[Image.Image], size: int | None = None) -> Float[Tensor, "n 3 h w"]:
    """RGB in [0, 1], resized with Lanczos where a size is given."""
    resized = [image.convert("RGB") if size is None else _resized(image, size) for image in images]
    return torch.stack([torch.from_numpy(np.array(image)) for image in resized]).permute(0, 3, 1, 2).float() / 255


def _resized(image: Image.Image, size: int) -> Image.Image:
    return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
