"""Time of `fbmem score` as a user feels it: its start, reading, comparing, copy maps and writing.

`python -m tests.benchmarks score [GENERATIONS REFERENCES SIZE]`: photographs as JPEG files with exact mattes, a fifth
of the generations a copy (whole, of the foreground, or of the background); seconds on the clock and of the processors.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from PIL import Image

from fbmem_core.retrieval.image_sets import ImageSet
from tests.benchmarks.bench_similarity import pictures


def main(num_generations: int = 200, num_references: int = 40, size: int = 512, *options: str) -> None:
    """Print the labels and what they took."""
    references = pictures(num_references, size, seed=1, prefix="r")
    generations = pictures(num_generations, size, seed=2, prefix="g", copied=references, every=5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, images in (("generated", generations), ("references", references)):
            save(images, folder / kind, folder / f"{kind}-masks")
        command = [
            "fbmem", "score", "generated", "references", "--generated-masks", "generated-masks",
            "--reference-masks", "references-masks", "--size", str(size), "--out", "labels.parquet", *options,
        ]  # fmt: skip
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        labels = pl.read_parquet(folder / "labels.parquet")["label"].value_counts(sort=True).rows()
        maps = pl.read_parquet(folder / "labels.copied_regions.parquet")["map_path"].n_unique()
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(
        f"score: {num_generations} generations, {num_references} references, {size} px: {took:.1f} s on the clock, "
        f"{seconds:.1f} s of processors; {maps} maps; {dict(labels)}"
    )


def save(images: ImageSet, folder: Path, masks: Path) -> None:
    """JPEG files, and masks as PNG files of the same stem."""
    folder.mkdir()
    masks.mkdir()
    for row, name in enumerate(images.ids):
        Image.fromarray(images.images[row]).save(folder / f"{name}.jpg", quality=92)
        Image.fromarray(images.alphas[row]).save(masks / f"{name}.png")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
