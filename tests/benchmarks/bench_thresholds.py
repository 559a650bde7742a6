"""Whether calibrated thresholds keep their promise, on crops of photographs that no reference is made of.

References are scenes of photographs; controls and fresh pictures are scenes of others. The threshold that the controls
give is held against the fresh ones, which nothing was chosen on: `python -m tests.benchmarks.bench_thresholds
[NUMBER OF REFERENCES ...]`, by default 100, 1,000 and 10,000.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from fbmem_core.evaluation.intervals import share_interval
from fbmem_core.evaluation.thresholds import calibrated, copy_similarity, fixed
from fbmem_core.labels import TAU
from fbmem_core.retrieval.controls import picture_controls
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.settings import SimilarityConfig
from tests.benchmarks.photographs import PHOTOGRAPHS, draw_scene

SIZE = 176
RATE = 0.02
NUM_CONTROLS = NUM_FRESH = 300
FLOOR = 0.3  # far below tau, so that thresholds are seen to grow
SETTINGS = SimilarityConfig(size=SIZE, floor=FLOOR, alignment="none")


def main(*sizes: int) -> None:
    """Print a line for each number of references."""
    sizes = sizes or (100, 1_000, 10_000)
    names = tuple(name for half in PHOTOGRAPHS.values() for name in half[1])
    controls = scenes(names, NUM_CONTROLS, seed=1)
    fresh = scenes(names, NUM_FRESH, seed=2)
    behind = tuple(name for half in PHOTOGRAPHS.values() for name in half[0])
    references = scenes(behind, max(sizes), seed=3)
    print(f"thresholds: rate {RATE:.0%}, {NUM_CONTROLS} controls, {NUM_FRESH} fresh pictures of {SIZE} px")
    for size in sizes:
        started = time.perf_counter()
        planes = Planes(references.select(range(size)), "masked")
        scores, new = (copy_similarities(images, planes) for images in (controls, fresh))
        threshold = calibrated(scores, rate=RATE, floor=FLOOR)
        value = 1.0 if threshold.value is None else threshold.value
        above, at_tau = sum(score >= value for score in new), fixed(new, TAU)
        interval = share_interval(above, len(new))
        print(
            f"{size} references: threshold {value:.3f} ({threshold.low:.3f} to {threshold.high:.3f}) promises "
            f"{threshold.promised_rate:.1%}; fresh pictures: {above} of {len(new)} ({interval.low:.1%} to "
            f"{interval.high:.1%}); at the fixed {TAU}: {at_tau.num_above} ({at_tau.rate.low:.1%} to "
            f"{at_tau.rate.high:.1%}); {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def scenes(names: tuple[str, ...], count: int, *, seed: int) -> ImageSet:
    """Scenes of these photographs with exact masks."""
    drawn = [
        draw_scene(np.random.default_rng([seed, row]), names, area=0.05 * (1 + row % 10), size=SIZE)
        for row in range(count)
    ]
    images, alphas = np.stack([scene.image for scene in drawn]), np.stack([scene.alpha for scene in drawn])
    return ImageSet(tuple(f"{row:05}" for row in range(count)), images, alphas, np.ones(count, bool))


def copy_similarities(images: ImageSet, references: Planes) -> list[float]:
    """The copy similarity of each picture."""
    return [
        copy_similarity(
            [pair for pairs in control.pairs.values() for pair in pairs],
            foreground_fraction=control.foreground_fraction,
        )
        for control in picture_controls(images, references, SETTINGS)
    ]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
