"""How often each region similarity gives the right label, on drawn composites whose truth is known.

A reference shows an object before a scenery. A generation copies both (VM), the object alone (FM), the scenery alone
behind another object elsewhere (BM) or nothing (NM); then it is left as it is, saved as JPEG, blurred, or brightened.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fbmem_core.canary.pictures import Picture, draw, random_creature, random_object, random_scenery
from fbmem_core.inputs.segmentation import Segmenter
from fbmem_core.labels import BETA, PairSimilarity, label_generation
from fbmem_core.similarity.regions import region_similarity
from tests.benchmarks.bench_photographs import DISTORTIONS, distort

SIZE = 256
AREAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
LABELS = ("VM", "FM", "BM", "NM")
PER_CELL = 10
WAYS = (("composite", "paper"), ("composite", "released"), ("masked", "paper"), ("masked", "per_region"))
SEGMENTER = Path(__file__).parents[2] / "data" / "canary" / "segmenter.onnx"


@dataclass(frozen=True)
class Case:
    """One pair of pictures [size, size, 3] uint8 with the mattes [size, size] of both."""

    label: str
    area: float
    distortion: str
    images: tuple[np.ndarray, np.ndarray]
    mattes: tuple[np.ndarray, np.ndarray]


def cases(per_cell: int = PER_CELL, *, areas: tuple[float, ...] = AREAS, seed: int = 0) -> list[Case]:
    """`per_cell` pairs for each label, area of the foreground and distortion."""
    drawn = []
    for cell, (label, area, distortion) in enumerate(itertools.product(LABELS, areas, DISTORTIONS)):
        for number in range(per_cell):
            rng = np.random.default_rng([seed, cell, number])
            reference = _picture(rng, area)
            other = _picture(rng, area)
            copy = replace(
                reference,
                object=reference.object if label in ("VM", "FM") else other.object,
                scenery=reference.scenery if label in ("VM", "BM") else other.scenery,
            )
            (known, known_matte), (image, matte) = draw(reference, size=SIZE), draw(copy, size=SIZE)
            drawn.append(Case(label, area, distortion, (distort(image, distortion), known), (matte, known_matte)))
    return drawn


def main() -> None:
    """Print the tables."""
    drawn = cases()
    print(f"labels: {len(drawn)} pairs of {SIZE} px, foregrounds of {AREAS[0]:.0%} to {AREAS[-1]:.0%} of the area")
    for kind, given in (("exact masks", drawn), ("the segmenter's masks", _segmented(drawn))):
        measured = {masking: _measure(given, masking) for masking in ("composite", "masked")}
        for masking, rule in WAYS:
            _print_confusion(given, measured[masking], f"{masking}/{rule}, {kind}", rule)
        for masking, region in itertools.product(measured, ("foreground", "background")):
            _print_roc(given, [getattr(pair, region) for pair in measured[masking]], masking, region, kind)


def expected_label(case: Case) -> str:
    """The true label; a foreground of at most 3 % of the area counts as absent, the background as the whole."""
    if case.area > BETA:
        return case.label
    return "VM" if case.label in ("VM", "BM") else "NM"


def label_of(case: Case, pair: PairSimilarity, rule: str) -> str:
    """The label that fbmem gives the pair."""
    fraction = float((case.mattes[0] >= 0.5).mean())
    return str(label_generation([pair], foreground_fraction=fraction, rule=rule).label)  # type: ignore[arg-type]


def _picture(rng: np.random.Generator, area: float) -> Picture:
    obj = random_creature(rng) if rng.random() < 0.5 else random_object(rng)
    reach = max(0.0, 0.5 - 0.62 * area**0.5)
    obj = replace(obj, center=tuple(0.5 + rng.uniform(-reach, reach, size=2)))
    low, high = 0.02, 1.2
    for _ in range(12):
        radius = (low + high) / 2
        found = draw(Picture("", replace(obj, radius=radius), random_scenery(np.random.default_rng(0))), size=64)[
            1
        ].mean()
        low, high = (radius, high) if found < area else (low, radius)
    return Picture("", replace(obj, radius=low), random_scenery(rng))


def _segmented(drawn: list[Case]) -> list[Case]:
    segmenter = Segmenter(str(SEGMENTER))
    mattes = [[segmenter.matte(Image.fromarray(image)).alpha for image in case.images] for case in drawn]
    return [
        replace(case, mattes=tuple(np.zeros((SIZE, SIZE), np.float32) if m is None else m for m in pair))
        for case, pair in zip(drawn, mattes, strict=True)
    ]


def _batches(given: list[Case]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Pictures and mattes of some pairs at a time: x, y, alpha_x, alpha_y."""
    for first in range(0, len(given), 8):
        batch = given[first : first + 8]
        pictures = [torch.from_numpy(np.stack([case.images[side] for case in batch])) for side in (0, 1)]
        mattes = [torch.from_numpy(np.stack([case.mattes[side] for case in batch])).float() for side in (0, 1)]
        yield *(some.permute(0, 3, 1, 2) / 255 for some in pictures), *(some[:, None] for some in mattes)


def _measure(given: list[Case], masking: str) -> list[PairSimilarity]:
    pairs = []
    for batch in _batches(given):
        found = region_similarity(*batch, masking=masking)  # type: ignore[arg-type]
        values = (getattr(found, region).tolist() for region in ("full", "foreground", "background"))
        pairs += [
            PairSimilarity("reference", *(None if math.isnan(v) else v for v in row))
            for row in zip(*values, strict=True)
        ]
    return pairs


def _print_confusion(given: list[Case], pairs: list[PairSimilarity], title: str, rule: str) -> None:
    rows = [(case, expected_label(case), label_of(case, pair, rule)) for case, pair in zip(given, pairs, strict=True)]
    print(f"\n{title}")
    print(
        "true  "
        + "".join(f"{label:>6}" for label in LABELS)
        + "   right by area "
        + " ".join(f"{a:>5.0%}" for a in AREAS)
    )
    for true in LABELS:
        of_label = [(case.area, expected, found) for case, expected, found in rows if case.label == true]
        counts = Counter(found for _, _, found in of_label)
        shares = [np.mean([e == f for a, e, f in of_label if a == area]) for area in AREAS]
        print(
            f"{true:<6}"
            + "".join(f"{counts[label]:>6}" for label in LABELS)
            + " " * 17
            + " ".join(f"{s:>5.0%}" for s in shares)
        )
    for distortion in DISTORTIONS:
        share = np.mean([expected == found for case, expected, found in rows if case.distortion == distortion])
        print(f"{distortion}: {share:.1%} right", end="  ")
    print()


def _print_roc(given: list[Case], values: list[float | None], masking: str, region: str, kind: str) -> None:
    copies = ("VM", "FM") if region == "foreground" else ("VM", "BM")
    counted = [
        (v, case.label in copies) for v, case in zip(values, given, strict=True) if v is not None and case.area > BETA
    ]
    positive = np.array([v for v, copied in counted if copied])
    negative = np.sort([v for v, copied in counted if not copied])
    threshold = negative[int(np.ceil(0.99 * len(negative))) - 1]
    area = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    print(
        f"{masking} {region}, {kind}: AUC {area:.4f}; at 1 % false positives threshold {threshold:.3f}, "
        f"{(positive > threshold).mean():.1%} of copies found; over 0.8: {(positive >= 0.8).mean():.1%} of copies, "
        f"{(negative >= 0.8).mean():.1%} of others"
    )


if __name__ == "__main__":
    main()
