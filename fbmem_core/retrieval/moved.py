"""Copies that moved: references that a generation shows mirrored, shifted, and, thoroughly, cropped, scaled or turned.

Candidates are found by the correlation of small grey pictures at many shifts, thoroughly also by keypoints; for each a
transform is estimated, and the pair is compared after it, over what the generation shows of the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from fbmem_core.labels import PairSimilarity
from fbmem_core.retrieval.image_sets import CENTER_CROP, ImageSet
from fbmem_core.similarity import Alignment
from fbmem_core.similarity.alignment import Keypoints, Transform, agreeing, grey, keypoints, refine, shifted
from fbmem_core.similarity.fused import comparison
from fbmem_core.similarity.masked import Background, Object, Shared
from fbmem_core.similarity.ms_ssim import SCALE_WEIGHTS, Similarity
from fbmem_core.similarity.objects import MIN_AREA, objects

_SIDE = 32  # px, of the small pictures
_REACH = 4  # px, by which they are shifted at most
_SHIFTS = range(2 * _REACH + 1)  # every pixel: fine textures are lost between two
_CHUNK = 512  # references that are compared at once
_MIN_CORRELATION = 0.65
_NUM_CANDIDATES = 3
_SCALES = {"none": (), "fast": (1.0,), "thorough": (1.0, 0.8, 1.12, 1.25, 1.45)}
_MIN_COVERED = 0.1  # of the generation
_MIN_INSIDE = 0.9  # of an object, to be compared
_CLEAR, _COVERED = 64, 128  # as in `masked`, of 255


@dataclass(frozen=True)
class _Candidate:
    row: int  # of the references
    transform: Transform


class MovedCopies:
    """References among which moved copies are looked for.

    Args:
        references: The images; all views of one image may be found.
        alignment: `none`, `fast` or `thorough`; see `similarity.SEARCHED`.
    """

    def __init__(self, references: ImageSet, alignment: Alignment) -> None:
        self._references, self._alignment = references, alignment
        self._small = {
            scale: torch.from_numpy(np.stack([_small(np.asarray(image), scale) for image in references.images]))
            for scale in _SCALES[alignment]
            if len(references)
        }
        self._keypoints: list[tuple[Keypoints, Keypoints]] = []
        if alignment == "thorough":
            for image in references.images:
                pixels = np.asarray(image)
                self._keypoints.append((keypoints(pixels), keypoints(np.ascontiguousarray(pixels[:, ::-1]))))

    def __call__(self, generations: ImageSet, finished: Sequence[bool]) -> Iterator[list[PairSimilarity]]:
        """The pairs of each generation that are compared after a transform; none for those that are `finished`."""
        candidates = self._candidates(generations, finished)
        for row, of_row in enumerate(candidates):
            pairs = [
                pair_after(generations, row, self._references, candidate.row, candidate.transform)
                for candidate in of_row
            ]
            yield _best([pair for pair in pairs if pair is not None])

    def _candidates(self, generations: ImageSet, finished: Sequence[bool]) -> list[list[_Candidate]]:
        rows = [row for row in range(len(generations)) if not finished[row]]
        candidates: list[list[_Candidate]] = [[] for _ in range(len(generations))]
        if self._alignment == "none" or not rows or not len(self._references):
            return candidates
        pictures = {row: grey(generations.images[row]) for row in rows}
        guesses = _correlated([generations.images[row] for row in rows], self._small)
        for row, correlated in zip(rows, guesses, strict=True):
            matched = self._by_keypoints(generations.images[row]) if self._alignment == "thorough" else []
            for candidate in (*correlated, *matched):
                reference = grey(np.asarray(self._references.images[candidate.row]))
                transform = refine(pictures[row], reference, candidate.transform)
                transform = transform or (candidate.transform if self._alignment == "thorough" else None)
                if transform is not None and not transform.is_identity:
                    candidates[row].append(_Candidate(candidate.row, transform))
        return candidates

    def _by_keypoints(self, image: np.ndarray) -> list[_Candidate]:
        own = keypoints(image)
        return [
            _Candidate(row, transform)
            for row, sides in enumerate(self._keypoints)
            for mirrored, reference in enumerate(sides)
            for transform in agreeing(own, reference, mirrored=bool(mirrored))
        ]


def _correlated(generations: list[np.ndarray], references: dict[float, torch.Tensor]) -> list[list[_Candidate]]:
    """Candidates of each picture: the few references, small and grey, that correlate most with its middle, shifted."""
    small = torch.from_numpy(np.stack([_small(picture, 1.0) for picture in generations]))
    middle = _unit(small[:, _REACH:-_REACH, _REACH:-_REACH].flatten(1))
    best: list[list[tuple[float, _Candidate]]] = [[] for _ in generations]
    for (scale, pictures), mirrored in itertools.product(references.items(), (False, True)):
        for chunk in torch.arange(len(pictures)).split(_CHUNK):
            shown = pictures[chunk].flip(2) if mirrored else pictures[chunk]
            values, shifts = _highest(middle, shown)
            value, column = values.topk(min(_NUM_CANDIDATES, len(chunk)), dim=1)
            for row, at in (value >= _MIN_CORRELATION).nonzero().tolist():
                down, right = divmod(int(shifts[row, column[row, at]]), len(_SHIFTS))
                by = ((_REACH - _SHIFTS[number]) / _SIDE for number in (right, down))
                guess = shifted(*by, mirrored=mirrored, scale=scale)
                best[row].append((float(value[row, at]), _Candidate(int(chunk[column[row, at]]), guess)))
    return [[c for _, c in sorted(of_row, key=lambda item: -item[0])[:_NUM_CANDIDATES]] for of_row in best]


def _highest(middle: torch.Tensor, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[g, n]: the highest correlation of each generation with each reference over shifts, and which shift."""
    side = _SIDE - 2 * _REACH
    values = torch.full((len(middle), len(shown)), -1.0)
    shifts = torch.zeros(values.shape, dtype=torch.long)
    for number, (down, right) in enumerate(itertools.product(_SHIFTS, _SHIFTS)):
        value = middle @ _unit(shown[:, down : down + side, right : right + side].flatten(1)).T
        shifts = torch.where(value > values, number, shifts)
        values = torch.maximum(values, value)
    return values, shifts


def _small(image: np.ndarray, scale: float) -> np.ndarray:
    """float32 [32, 32], grey, of a picture shown `scale` times larger about its middle."""
    picture = grey(image)
    source = picture if scale == 1.0 else shifted(0.0, 0.0, scale=scale).apply(picture)
    return cv2.resize(source, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _unit(values: torch.Tensor) -> torch.Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1.0)


def pair_after(
    generations: ImageSet, row: int, references: ImageSet, column: int, transform: Transform
) -> PairSimilarity | None:
    """Compare a generation with a reference after a transform; None where too little of it is shown.

    The whole image is then what the generation shows of the reference, and counts by its texture as a region does.
    """
    covered = transform.covered(generations.size)
    x, y = generations.images[row], transform.apply(np.asarray(references.images[column]))
    everywhere, pair = np.ones_like(covered), (x, y)
    full = _similar(Object(_MIN_COVERED), pair, everywhere, covered) if covered.mean() >= _MIN_COVERED else None
    if full is None:
        return None
    view = references.view(column)
    words = f"{view}, {transform}" if view == CENTER_CROP else str(transform)
    if not (generations.decided[row] and references.decided[column]):
        return PairSimilarity(
            references.ids[column], full, None, None, transform=words, transform_matrix=transform.numbers
        )
    alpha_x = generations.alphas[row]
    alpha_y = np.where(covered, transform.apply(np.asarray(references.alphas[column])), 0).astype(np.uint8)
    clear_x, clear_y = alpha_x < _CLEAR, (alpha_y < _CLEAR) & covered
    of_background = clear_x & covered
    shows_background = of_background.sum() >= 0.5 * clear_x.sum()
    facts: dict[str, Any] = {}
    common: list[float] = []
    for name, alpha, opposite in (("object", alpha_x, alpha_y), ("reference_object", alpha_y, alpha_x)):
        numbers = objects(alpha)
        places = [numbers == number for number in range(1, int(numbers.max()) + 1)]
        values = [
            _similar(Object(MIN_AREA / 2), pair, place & covered, everywhere) if _is_inside(place, covered) else 0.0
            for place in places
        ]
        facts[f"{name}_areas"] = tuple(float(place.mean()) for place in places)
        facts[f"{name}_similarities"] = tuple(values)
        both = zip(places, values, strict=True)
        common += [v for place, v in both if v is not None and (opposite[place] >= _COVERED).mean() >= 0.5]
    of_objects = [v for name in ("object", "reference_object") for v in facts[f"{name}_similarities"] if v is not None]
    return PairSimilarity(
        references.ids[column],
        full,
        max(of_objects, default=None),
        _similar(Background(_MIN_COVERED / 2), pair, clear_x, clear_y) if shows_background else None,
        common_foreground=max(common, default=None),
        transform=words,
        transform_matrix=transform.numbers,
        **facts,
    )


def _is_inside(place: np.ndarray, covered: np.ndarray) -> bool:
    """True if an object lies where something of the reference is shown; what it is not shown of is not copied."""
    return bool(covered[place].mean() >= _MIN_INSIDE)


def _similar(
    measure: Shared, pair: tuple[np.ndarray, np.ndarray], mask_x: np.ndarray, mask_y: np.ndarray
) -> float | None:
    """The similarity of two pictures uint8 [h, w, 3] over what both masks show; None where it is undecided."""
    by, value = comparison(measure, torch.device("cpu")), Similarity.begin((1,), torch.device("cpu"))
    planes = []
    for image, mask in zip(pair, (mask_x, mask_y), strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        shown = torch.from_numpy(mask.astype(np.float32))[None, None]
        planes.append(measure.scales(pixels, shown if isinstance(measure, Object) else 1 - shown))
    indexes = torch.zeros((1, 2), dtype=torch.long)
    for scale in reversed(range(len(SCALE_WEIGHTS))):
        factors = by.factors(
            by.statistics(planes[0][scale]), by.statistics(planes[1][scale]), indexes, value.is_first()
        )
        value.multiply(scale, *factors)
    similarity = float(value.value[0])
    return None if np.isnan(similarity) else similarity


def _best(pairs: list[PairSimilarity]) -> list[PairSimilarity]:
    """Pairs by reference: those of the transforms after which a region is the most similar, each once by its words."""
    pairs = list({(pair.reference_id, pair.transform): pair for pair in sorted(pairs, key=lambda p: p.full)}.values())
    chosen: list[PairSimilarity] = []
    for name in dict.fromkeys(pair.reference_id for pair in pairs):
        of_reference = [pair for pair in pairs if pair.reference_id == name]
        for region in ("full", "foreground", "background"):
            best = max(of_reference, key=lambda pair: getattr(pair, region) or -1.0)
            if best not in chosen:
                chosen.append(best)
    return [pair for pair in chosen if pair.full is not None]
