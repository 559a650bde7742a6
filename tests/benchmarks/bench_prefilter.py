"""What a prefilter by embedding loses: its recall against a full search, for several numbers of candidates.

`python -m tests.benchmarks prefilter`; the embedding is that of the canary's own autoencoder, the pictures are those of
`bench_similarity`.
"""

import time
from pathlib import Path

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.retrieval.descriptors.latents import Latents
from fbmem_core.retrieval.neighbors import FLOOR, nearest_references
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.prefilter import Prefilter, measure_recall
from tests.benchmarks.bench_similarity import pictures

CHECKPOINT = Path(__file__).parents[2] / "data" / "canary" / "checkpoint"
NUM_REFERENCES, NUM_GENERATIONS, SIZE = 5_000, 60, 176
NUM_CANDIDATES = (50, 200, 800)


def main() -> None:
    """Print the recall and the time with and without the prefilter."""
    references = pictures(NUM_REFERENCES, SIZE, seed=5, prefix="r")
    generations = pictures(NUM_GENERATIONS, SIZE, seed=6, prefix="g", copied=references)
    planes = Planes(references, "masked")
    started = time.perf_counter()
    exact = dict(nearest_references(generations, planes))
    took = time.perf_counter() - started
    print(f"prefilter: {NUM_GENERATIONS} x {NUM_REFERENCES} at {SIZE} px, floor {FLOOR:.1f}; full search {took:.1f} s")
    pipeline = load_pipeline(find_checkpoint(str(CHECKPOINT)), dtype="float32", device="cpu")
    started = time.perf_counter()
    prefilter = Prefilter(references, Latents(pipeline.vae, image_size=64), num_candidates=NUM_CANDIDATES[-1])
    print(f"embedding the references: {time.perf_counter() - started:.1f} s")
    for prefilter.num_candidates in NUM_CANDIDATES:
        started = time.perf_counter()
        candidates = prefilter.candidates(generations)
        for _ in nearest_references(generations, planes, candidates=candidates):
            pass
        took = time.perf_counter() - started
        recalls = [measure_recall(exact, candidates, floor=floor) for floor in (FLOOR, 0.8)]
        of = ", ".join(f"{recall.num_kept} of {recall.num_pairs} ({recall.value:.1%})" for recall in recalls)
        print(
            f"{prefilter.num_candidates} candidates a region: pairs kept from 0.6 and from 0.8 on: {of}; {took:.1f} s"
        )


if __name__ == "__main__":
    main()
