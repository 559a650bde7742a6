"""How well labels are on scenes of photographs, with exact and disturbed masks, and how often the innocent are accused.

`python -m tests.benchmarks.bench_photographs [HALF [PER_CELL [INNOCENTS [MASKS]]]]`: the half `test` by default;
`development` is for choosing constants. MASKS is `exact`, `disturbed`, a rembg model or an ONNX file, and the first two
by default. The command `bench_photographs mattes` prints what the recipe of `disturbed` gives.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from fbmem_core.evaluation.intervals import share_interval
from fbmem_core.inputs.segmentation import Segmenter
from fbmem_core.labels import BETA, TAU, GenerationLabel, label_generation
from fbmem_core.retrieval.image_sets import ImageSet
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.search import search
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.similarity.objects import objects
from tests.benchmarks.photographs import PHOTOGRAPHS, Scene, compose, crop, disturbed, draw_scene

SIZE = 256
AREAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
LABELS = ("VM", "FM", "BM", "NM")
DISTORTIONS = ("none", "jpeg", "blur", "brightness")
KINDS = ("exact", "disturbed")
PER_CELL = 40
NUM_INNOCENT = 3000
REPORTED = 600  # innocent pictures between two lines
CHUNK = 200  # innocent pictures that are held at once
SETTINGS = SimilarityConfig(size=SIZE, floor=TAU)  # labels alone


@dataclass(frozen=True)
class Case:
    """One generation with its true label, the area of its object, and how its picture was changed."""

    label: str
    area: float
    distortion: str
    image: np.ndarray
    alpha: np.ndarray

    @property
    def expected(self) -> str:
        """The true label; a copied object of at most 3 % of the area counts as absent."""
        return "NM" if self.area <= BETA and self.label == "FM" else self.label


@dataclass(frozen=True)
class Masks:
    """Exact masks, disturbed ones, or those of a segmenter."""

    kind: str
    segmenter: Segmenter | None = None

    @classmethod
    def of_kind(cls, kind: str) -> Masks:
        """`exact`, `disturbed`, or those of a rembg model."""
        return cls(kind, None if kind in KINDS else Segmenter(kind))

    def __call__(self, image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """The matte of one picture, uint8; None: undecided."""
        if self.segmenter is not None:
            matte = self.segmenter.matte(Image.fromarray(image)).alpha
            return None if matte is None else np.round(255 * matte).astype(np.uint8)
        return disturbed(alpha, rng) if self.kind == "disturbed" else alpha


def main(half: str = "test", per_cell: int = PER_CELL, num_innocent: int = NUM_INNOCENT, *kinds: str) -> None:
    """Print a table for each kind of mask, and the false accusations."""
    references, cases = draw_cases(half, per_cell)
    print(f"photographs: half {half}, {len(references)} references and {len(cases)} generations of {SIZE} px")
    for masks in map(Masks.of_kind, kinds or KINDS):
        planes, moved = _references(references, masks)
        _print_confusion(cases, _labels(cases, masks, planes, moved), f"{masks.kind} masks")
        _print_innocent(half, num_innocent, masks, planes, moved)


def draw_cases(half: str, per_cell: int = PER_CELL) -> tuple[list[Scene], list[Case]]:
    """`per_cell` references for each area of the object, and of each a generation of every label."""
    references, cases = [], []
    for at, area in enumerate(AREAS):
        for number in range(per_cell):
            rng = np.random.default_rng([at, number, list(PHOTOGRAPHS).index(half)])
            scene, other = (draw_scene(rng, names, area=area, size=SIZE) for names in PHOTOGRAPHS[half])
            references.append(scene)
            distortion = DISTORTIONS[number % len(DISTORTIONS)]
            for label in LABELS:
                front = scene if label in ("VM", "FM") else other
                behind = scene if label in ("VM", "BM") else other
                image = compose(front.piece, front.alpha, behind.scenery)
                cases.append(Case(label, area, distortion, distort(image, distortion), front.alpha))
    return references, cases


def distort(image: np.ndarray, distortion: str) -> np.ndarray:
    """The picture as a JPEG of quality 50, blurred, brightened, or as it is."""
    picture = Image.fromarray(image)
    if distortion == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=50)
        picture = Image.open(buffer)
    elif distortion == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(SIZE / 256))
    elif distortion == "brightness":
        picture = picture.point(lambda value: min(255, round(1.1 * value)))
    return np.asarray(picture)


def innocent_pictures(half: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures of photographs that no reference of this half is made of, with exact masks.

    Most are scenes; a tenth are an object on a plain ground, a tenth a crop alone, with a mask of nothing, a twentieth
    two plain colours: what product shots, textures and empty pictures look like.
    """
    names = tuple(itertools.chain(*(PHOTOGRAPHS[name][1] for name in PHOTOGRAPHS), *PHOTOGRAPHS[_other(half)][:1]))
    for number in range(count):
        rng = np.random.default_rng([7, number])
        scene = draw_scene(rng, names, area=float(rng.choice(AREAS)), size=SIZE)
        image, alpha = scene.image, scene.alpha
        if number % 10 == 0:
            image = compose(scene.piece, alpha, np.full_like(scene.scenery, rng.uniform(0, 255)))
        elif number % 10 == 1:
            image = np.round(crop(rng, names[rng.integers(len(names))], SIZE)).astype(np.uint8)
            alpha = np.zeros_like(alpha)
        elif number % 20 == 2:
            front, behind = (np.full_like(scene.scenery, rng.uniform(0, 255)) for _ in range(2))
            image = compose(front, alpha, behind)
        yield distort(image, DISTORTIONS[number % len(DISTORTIONS)]), alpha


def _other(half: str) -> str:
    return next(name for name in PHOTOGRAPHS if name != half)


def _image_set(pictures: Sequence[tuple[np.ndarray, np.ndarray]], masks: Masks, seed: int) -> ImageSet:
    mattes = [masks(image, alpha, np.random.default_rng([seed, row])) for row, (image, alpha) in enumerate(pictures)]
    return ImageSet(
        tuple(f"{row:05}" for row in range(len(pictures))),
        np.stack([image for image, _ in pictures]),
        np.stack([np.zeros((SIZE, SIZE), np.uint8) if matte is None else matte for matte in mattes]),
        np.array([matte is not None for matte in mattes]),
    )


def _references(references: Sequence[Scene], masks: Masks) -> tuple[Planes, MovedCopies]:
    images = _image_set([(scene.image, scene.alpha) for scene in references], masks, 1)
    return Planes(images, "masked"), MovedCopies(images, SETTINGS.alignment)


def _search(images: ImageSet, planes: Planes, moved: MovedCopies) -> Iterator[GenerationLabel]:
    for row, (_, _, pairs) in enumerate(search(images, planes, SETTINGS, moved=moved)):
        fraction = float((images.alphas[row] >= 128).mean()) if images.decided[row] else None
        yield label_generation(pairs, foreground_fraction=fraction)


def _labels(cases: Sequence[Case], masks: Masks, planes: Planes, moved: MovedCopies) -> list[str]:
    images = _image_set([(case.image, case.alpha) for case in cases], masks, 2)
    return [str(label.label) for label in _search(images, planes, moved)]


def _print_confusion(cases: Sequence[Case], labels: Sequence[str], title: str) -> None:
    print(f"\n{title}: right labels, %; each generation was searched against all references")
    print("true   " + "".join(f"{area:>7.0%}" for area in AREAS) + "   given " + " ".join(LABELS))
    for true in LABELS:
        of_label = [(case, label) for case, label in zip(cases, labels, strict=True) if case.label == true]
        shares = [np.mean([case.expected == label for case, label in of_label if case.area == area]) for area in AREAS]
        counts = " ".join(str(sum(label == given for _, label in of_label)) for given in LABELS)
        print(f"{true:<7}" + "".join(f"{share:>7.0%}" for share in shares) + f"   {counts}")
    cells = [
        np.mean([c.expected == label for c, label in zip(cases, labels, strict=True) if (c.label, c.area) == cell])
        for cell in itertools.product(LABELS, AREAS)
    ]
    right = np.mean([case.expected == label for case, label in zip(cases, labels, strict=True)])
    print(f"right: {right:.1%}; the worst cell {min(cells):.0%}")
    for distortion in DISTORTIONS:
        of_kind = [c.expected == lab for c, lab in zip(cases, labels, strict=True) if c.distortion == distortion]
        print(f"{distortion}: {np.mean(of_kind):.1%}", end="  ")
    print(flush=True)


def _print_innocent(half: str, count: int, masks: Masks, planes: Planes, moved: MovedCopies) -> None:
    pictures = innocent_pictures(half, count)
    accused = {label: 0 for label in LABELS[:3]}
    undecided = total = 0
    while batch := list(itertools.islice(pictures, CHUNK)):
        for label in _search(_image_set(batch, masks, 1000 + total), planes, moved):
            undecided += label.label is None
            if label.label in accused:
                accused[label.label] += 1
        total += len(batch)
        if total % REPORTED == 0 and total < count:  # of a long run, how it stands
            _print_accused(accused, total, undecided, f"{masks.kind} masks", len(set(planes.images.ids)))
    if not total:
        return
    _print_accused(accused, total, undecided, f"{masks.kind} masks", len(set(planes.images.ids)))


def _print_accused(accused: dict[str, int], total: int, undecided: int, masks: str, num_references: int) -> None:
    wrong = sum(accused.values())
    interval = share_interval(wrong, total)
    kinds = ", ".join(f"{label} {number}" for label, number in accused.items())
    print(
        f"innocent pictures, {masks}: {wrong} of {total} accused ({kinds}; {undecided} undecided), each "
        f"searched against {num_references} references; exact upper 95 % bound {interval.high:.3%}",
        flush=True,
    )


def print_mattes(count: int = 300) -> None:
    """Print IoU, softness and number of objects of mattes that the recipe gave."""
    overlap, soft, num_objects = [], [], []
    for number in range(count):
        rng = np.random.default_rng([5, number])
        names = PHOTOGRAPHS["development" if number % 2 else "test"][0]
        alpha = draw_scene(rng, names, area=float(rng.choice(AREAS[1:])), size=SIZE).alpha
        matte = disturbed(alpha, rng)
        true, given = alpha >= 128, matte >= 128
        overlap.append((true & given).sum() / max((true | given).sum(), 1))
        soft.append(((matte > 13) & (matte < 242)).sum() / max(given.sum(), 1))
        num_objects.append(int(objects(matte).max()))
    levels = (0.1, 0.25, 0.5, 0.75, 0.9)
    print(f"IoU, at {levels}: {np.round(np.quantile(overlap, levels), 2)}")
    print(f"soft over covered pixels, at {levels}: {np.round(np.quantile(soft, levels), 2)}")
    print(f"objects, from 0: {np.round(np.bincount(num_objects) / count, 3)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["mattes"]:
        print_mattes()
    else:
        main(*sys.argv[1:2], *map(int, sys.argv[2:4]), *sys.argv[4:])
