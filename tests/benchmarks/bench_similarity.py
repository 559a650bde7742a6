"""Time per pair: the loop of the paper's script, batched brute force, and the engine, in one run.

Pictures are crops of photographs with a drawn object before them; one generation in ten copies a reference, its
foreground or its background. `python -m tests.benchmarks similarity [GENERATIONS REFERENCES SIZE]`;
`python -m tests.benchmarks.bench_similarity growth 100000` measures the growth alone, on to that many references.
"""

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fbmem_core.canary.pictures import draw_object, random_creature, random_object
from fbmem_core.labels import TAU
from fbmem_core.retrieval.copies import Copies
from fbmem_core.retrieval.descriptors import describe
from fbmem_core.retrieval.descriptors.sscd import Sscd
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.neighbors import FLOOR, nearest_pairs, nearest_references
from fbmem_core.retrieval.planes import Planes
from fbmem_core.similarity import Alignment
from fbmem_core.similarity.regions import MEASURES, region_similarity

NUM_LOOP_PAIRS = 4
NUM_BRUTE_PAIRS = 16
NUM_COMPLETE = 20  # generations at floor 0
GROWTH = (500, 5_000, 50_000)  # `bench_similarity growth 100000` adds more
GROWTH_SIZE = 176
PHOTOGRAPHS = (
    "astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket",
)  # fmt: skip


def main(num_generations: int = 200, num_references: int = 500, size: int = 512) -> None:
    """Print a table, and how the time grows with the number of references."""
    references = pictures(num_references, size, seed=1, prefix="r")
    generations = pictures(num_generations, size, seed=2, prefix="g", copied=references)
    print(
        f"similarity: {num_generations} x {num_references} pictures of {size} px, {torch.get_num_threads()} threads; "
        "times include what is computed once per image"
    )
    loop = _time_loop(generations, references)
    print(f"{'ms per pair':>12} {'x loop':>8} {'x brute':>8}  what")
    print(
        f"{loop:>12.3f} {1:>8} {'':>8}  loop: open, resize, torchmetrics on foreground and background, a pair at a time"
    )
    for masking in MEASURES:
        brute = _time_brute(generations, references, masking)
        print(f"{brute:>12.3f} {loop / brute:>8.1f} {1:>8}  {masking}, batched brute force")
        for what, floor, top_k, few in (
            ("labels alone (floor 0.8)", TAU, 0, num_generations),
            ("default floor (0.6)", FLOOR, 5, num_generations),
            (f"floor 0, exact top 5 ({NUM_COMPLETE} generations)", 0.0, 5, NUM_COMPLETE),
        ):
            asked = generations.select(range(min(few, num_generations)))
            run = partial(nearest_references, asked, references, masking=masking, floor=floor, top_k=top_k)
            took = _seconds(lambda run=run: list(run()))
            each = 1000 * took / len(asked) / num_references
            print(f"{each:>12.3f} {loop / each:>8.0f} {brute / each:>8.1f}  {masking}, {what}")
    for alignment, what in (("none", "copy maps"), ("fast", "copy maps, mirror and shifts")):
        run = partial(labels_and_maps, generations, references, alignment)
        each = 1000 * _seconds(run) / num_generations / num_references
        print(f"{each:>12.3f} {loop / each:>8.0f} {'':>8}  masked, labels alone with objects, {what}")
    _print_sscd(generations, loop, num_generations, num_references)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    _print_growth()


def labels_and_maps(generations: ImageSet, references: ImageSet, alignment: Alignment) -> None:
    """Compare for labels alone, map what is copied, and look for copies that moved."""
    copies, moved = Copies(references, floor=TAU), MovedCopies(references, alignment)
    nearest = list(nearest_pairs(generations, Planes(references, "masked"), floor=TAU, top_k=0))
    finished = [any(pair.full >= TAU for pair in pairs) for _, _, pairs in nearest]
    for row, transformed in enumerate(moved(generations, finished)):
        list(copies(generations, row, [*nearest[row][2], *transformed]))


def pictures(
    num: int, size: int, *, seed: int, prefix: str, copied: ImageSet | None = None, every: int = 10
) -> ImageSet:
    """Crops of photographs with drawn objects; one of each `every` copies the whole, or one or the other region."""
    photographs = _photographs()
    rng = np.random.default_rng(seed)
    images, alphas = np.empty((num, size, size, 3), np.uint8), np.empty((num, size, size), np.uint8)
    for row in range(num):
        scenery = _crop(rng, photographs, size)
        texture = _crop(rng, photographs, size)
        color, alpha = draw_object(random_creature(rng) if row % 2 else random_object(rng), size=size)
        foreground = 0.6 * color + 0.4 * texture
        if copied is not None and row % every == 0:
            source = row // every % len(copied)
            known, known_alpha = copied.images[source].astype(float), copied.alphas[source] / 255
            kind = row // every % 3
            if kind < 2:
                foreground, alpha = known, known_alpha
            if kind != 1:
                scenery = known
        mixed = scenery * (1 - alpha[..., None]) + foreground * alpha[..., None] + rng.normal(size=(size, size, 1)) * 3
        images[row], alphas[row] = np.clip(mixed, 0, 255).round(), np.round(alpha * 255)
    return ImageSet(tuple(f"{prefix}{row}" for row in range(num)), images, alphas, np.ones(num, bool))


def _photographs() -> list[Image.Image]:
    """Colour photographs that come with scikit-image and scikit-learn; nothing is downloaded."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    some = [getattr(data, name)() for name in PHOTOGRAPHS]
    return [Image.fromarray(image) for image in [*some, *load_sample_images().images]]


def _crop(rng: np.random.Generator, photographs: list[Image.Image], size: int) -> np.ndarray:
    photograph = photographs[rng.integers(len(photographs))]
    side = rng.uniform(0.2, 0.9) * min(photograph.size)
    left, top = (rng.uniform(0, length - side) for length in photograph.size)
    crop = photograph.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=float)[:, :: rng.choice((-1, 1))]
    pixels = np.rot90(pixels, rng.integers(4))[..., rng.permutation(3)]
    return np.clip((pixels - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-30, 30), 0, 255)


def _time_loop(generations: ImageSet, references: ImageSet) -> float:
    """Milliseconds a pair of what the paper's script does, with its torchmetrics."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, images in (("g", generations), ("r", references)):
            for kind in ("image", "foreground", "background"):
                paths.append(Path(folder) / f"{name}-{kind}.png")
                alpha = images.alphas[0][..., None] / 255
                masked = {"image": 1, "foreground": alpha, "background": 1 - alpha}[kind]
                Image.fromarray((images.images[0] * masked).astype(np.uint8)).save(paths[-1])

        def read(path: Path) -> torch.Tensor:
            image = Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]

        def pair() -> None:
            for kind in (1, 2):
                ms_ssim(read(paths[kind]), read(paths[3 + kind]), data_range=1.0)

        return 1000 * _seconds(lambda: [pair() for _ in range(NUM_LOOP_PAIRS)]) / NUM_LOOP_PAIRS


def _time_brute(generations: ImageSet, references: ImageSet, masking: str) -> float:
    rows = torch.arange(4)
    (x, alpha_x), (y, alpha_y) = generations.tensors(rows), references.tensors(rows)

    def run() -> None:
        for _ in range(NUM_BRUTE_PAIRS // len(rows)):
            region_similarity(x, y, alpha_x, alpha_y, masking=masking)  # type: ignore[arg-type]

    return 1000 * _seconds(run) / NUM_BRUTE_PAIRS


def _print_sscd(images: ImageSet, loop: float, num_generations: int, num_references: int) -> None:
    """The cost of descriptors of foreground and background by a network of SSCD's size; its weights are random."""
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    network.fc = torch.nn.Linear(network.fc.in_features, 512)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers torch.export by now
        path = Path(folder) / "random.torchscript.pt"
        torch.jit.trace(network.eval(), torch.zeros(1, 3, 320, 320)).save(str(path))
        sscd = Sscd(path)
    pixels, alphas = images.tensors(torch.arange(min(8, len(images))))
    took = _seconds(lambda: [describe(sscd, pixels, shown) for shown in (alphas, 1 - alphas)])
    each = 1000 * took / len(pixels)
    for what, pair in (
        ("a pair at a time", 2 * each),
        ("once per image", each * (num_generations + num_references) / num_generations / num_references),
    ):
        print(f"{pair:>12.3f} {loop / pair:>8.1f} {'':>8}  SSCD's ResNet-50 (random weights, 320 px), {what}")


def _print_growth(sizes: tuple[int, ...] = GROWTH) -> None:
    """Time of a few generations against ever more references on disk, and the exponent of its growth."""
    few = pictures(200, GROWTH_SIZE, seed=3, prefix="r")
    asked = pictures(10, GROWTH_SIZE, seed=4, prefix="g", copied=few)
    took = []
    for num in sizes:
        with tempfile.TemporaryDirectory() as folder:
            planes = Planes(_on_disk(few, num, Path(folder)), "masked")
            took.append(_seconds(lambda planes=planes: list(nearest_references(asked, planes))))
            status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        held, mapped = (int(status[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile"))
        what = f"{len(asked)} x {num} at {GROWTH_SIZE} px, references on disk"
        print(f"{what}: {took[-1]:.1f} s; memory held {held:.1f} GiB, mapped files {mapped:.1f} GiB")
    exponent = np.polyfit(np.log(sizes), np.log(took), 1)[0]
    print(f"time grows with the number of references to the power of {exponent:.2f}")


def _on_disk(few: ImageSet, num: int, folder: Path) -> ImageSet:
    """`num` references on disk: those of `few`, shifted, so that no two are the same."""
    arrays = {
        "images": (num, few.size, few.size, 3), "alphas": (num, few.size, few.size), "decided": (num,),
    }  # fmt: skip
    made = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=getattr(few, name).dtype, shape=shape)
        for name, shape in arrays.items()
    }
    for row in range(num):
        shift = (row // len(few) * 7 % few.size, row // len(few) * 13 % few.size)
        made["images"][row] = np.roll(few.images[row % len(few)], shift, axis=(0, 1))
        made["alphas"][row] = few.alphas[row % len(few)]
        made["decided"][row] = True
    return ImageSet(tuple(map(str, range(num))), made["images"], made["alphas"], made["decided"], folder)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1:2] == ["growth"]:
        _print_growth((*GROWTH, *map(int, sys.argv[2:])))
    else:
        main(*map(int, sys.argv[1:]))
