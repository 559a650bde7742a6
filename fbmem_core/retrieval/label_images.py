"""Score a folder of generated images against a folder of references, without a model: labels and nearest references."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image
from torch import Tensor

from fbmem_core.diffusion.device import choose_device
from fbmem_core.errors import InputError
from fbmem_core.inputs.pictures import open_rgb
from fbmem_core.inputs.references import MIN_SIDE, ReferenceImage, read_references
from fbmem_core.inputs.segmentation import Segmenter
from fbmem_core.labels import label_generation
from fbmem_core.retrieval.copies import COLUMNS, Copies, PairCopies
from fbmem_core.retrieval.descriptors import region_descriptors
from fbmem_core.retrieval.descriptors.sscd import Sscd
from fbmem_core.retrieval.image_sets import ImageSet, load_image_set
from fbmem_core.retrieval.moved import MovedCopies
from fbmem_core.retrieval.neighbors import Neighbor
from fbmem_core.retrieval.planes import Planes
from fbmem_core.retrieval.search import search, searched
from fbmem_core.retrieval.settings import SimilarityConfig
from fbmem_core.store.images import image_name, save_png
from fbmem_core.store.tables import Store, digest

_IN_MEMORY_BYTES = 2 * 2**30
_BLOCK = 256  # generated images that are held at once
LABELS = {
    "generation": pl.String, "label": pl.String,
    "full_similarity": pl.Float64, "foreground_similarity": pl.Float64, "background_similarity": pl.Float64,
    "full_reference": pl.String, "foreground_reference": pl.String, "background_reference": pl.String,
    "foreground_copied": pl.Boolean, "background_copied": pl.Boolean, "transform": pl.String, "undecided": pl.String,
    "searched": pl.String,
}  # fmt: skip
NEIGHBORS = {
    "generation": pl.String, "region": pl.String, "rank": pl.Int64, "reference": pl.String,
    "similarity": pl.Float64, "complete": pl.Boolean, "transform": pl.String,
}  # fmt: skip
SSCD = {
    "generation": pl.String, "region": pl.String, "reference": pl.String, "similarity": pl.Float64,
    "network": pl.String,
}  # fmt: skip
COPIED_REGIONS = {
    "generation": pl.String, "reference": pl.String, "transform": pl.String, "region": pl.String,
    **dict.fromkeys(COLUMNS[1:], pl.Float64), "map_path": pl.String,
}  # fmt: skip
REJECTED = {"folder": pl.String, "item": pl.String, "reason": pl.String}


@dataclass(frozen=True)
class Scores:
    """`labels`: a row per generation; `neighbors`: per generation, criterion and rank; `rejected`: per bad file.

    `sscd`: per generation and criterion, the reference nearest by SSCD; empty without a network. `copied_regions`: per
    generation, reference and region, for the pairs above the floor but `num_without_map`, which are too many.
    """

    labels: pl.DataFrame
    neighbors: pl.DataFrame
    rejected: pl.DataFrame
    sscd: pl.DataFrame
    copied_regions: pl.DataFrame
    num_without_map: int = 0


def score_folders(  # noqa: PLR0913  # the command's options
    generated: Path | str,
    references: Path | str,
    settings: SimilarityConfig | None = None,
    *,
    generated_masks: Path | None = None,
    reference_masks: Path | None = None,
    segmenter: str = "birefnet-general",
    sscd: Path | None = None,
    maps: Path | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Scores:
    """Label every image of a folder by its similarity to the images of another.

    Args:
        generated: Generated images of any common format and size: whatever `read_references` reads.
        references: Training images, the same.
        settings: How they are compared; of several regions and rules the first counts.
        generated_masks: Folder of masks, PNGs of the same stem (white = foreground) or, where two images have one stem,
            of the same name and `.png`; None: they are segmented.
        reference_masks: The same for the references.
        segmenter: A rembg model name or the path of an ONNX file, for folders without masks.
        sscd: TorchScript file of an SSCD network, by which the nearest references are given too.
        maps: Folder for pictures of copied pixels, a PNG per pair; None: they are not drawn.
        report: Called with what is being done, how much of it is, and how much there is.

    Raises:
        InputError: A folder holds no usable image, a mask is missing or of another size than its image.
        WeightsNotFoundError: The segmenter's weights cannot be had.
    """
    settings = settings or SimilarityConfig()
    size, device = settings.size, choose_device(settings.device)
    ours, theirs = _usable(generated, "generated images"), _usable(references, "references")
    network = None if sscd is None else Sscd(sscd, device=device)
    maker = _MatteMaker(segmenter)
    with tempfile.TemporaryDirectory(prefix="fbmem-") as scratch:
        mattes = Path(scratch) / "mattes"
        reference_items = _items(references, theirs.usable, reference_masks, maker, mattes / "references", report)
        folder = Path(scratch) / "references" if 4 * size**2 * len(reference_items) > _IN_MEMORY_BYTES else None
        images = load_image_set(
            reference_items,
            size=size,
            crops=True,
            folder=folder,
            report=lambda done: report("reading references", done, len(reference_items)),
        )
        comparison = _Comparison(images, settings, device, network, maps)
        generated_items = _items(generated, ours.usable, generated_masks, maker, mattes / "generated", report)
        for first in range(0, len(generated_items), _BLOCK):
            comparison.add(load_image_set(generated_items[first : first + _BLOCK], size=size))
            report("comparing", min(first + _BLOCK, len(generated_items)), len(generated_items))
    rejected = [
        {"folder": str(folder), "item": entry.path, "reason": entry.reason}
        for folder, entries in ((generated, ours.rejected), (references, theirs.rejected))
        for entry in entries
    ]
    return Scores(
        pl.DataFrame(comparison.labels, schema=LABELS),
        pl.DataFrame(comparison.neighbors, schema=NEIGHBORS),
        pl.DataFrame(rejected, schema=REJECTED),
        pl.DataFrame(comparison.by_sscd, schema=SSCD),
        pl.DataFrame(comparison.copied_regions, schema=COPIED_REGIONS),
        comparison.copies.num_left_out,
    )


class _Comparison:
    """Rows of the tables, block by block of generated images."""

    def __init__(
        self,
        references: ImageSet,
        settings: SimilarityConfig,
        device: str,
        network: Sscd | None,
        maps: Path | None,
    ) -> None:
        masking = settings.masking[0]
        self._names, self._settings, self._network, self._maps = references.ids, settings, network, maps
        self._planes = Planes(references, masking, device=device)
        self._moved = MovedCopies(references, settings.alignment if masking == "masked" else "none")
        self._described = {} if network is None else region_descriptors(references, network)
        self._searched = searched(settings, masking)
        self.copies = Copies(references, floor=settings.list_from)
        self.labels: list[dict[str, Any]] = []
        self.neighbors: list[dict[str, Any]] = []
        self.copied_regions: list[dict[str, Any]] = []
        self.by_sscd: list[dict[str, Any]] = []

    def add(self, block: ImageSet) -> None:
        """Compare some generated images with all references."""
        fractions, settings = block.foreground_fractions, self._settings
        for row, (name, nearest, pairs) in enumerate(search(block, self._planes, settings, moved=self._moved)):
            self.neighbors += _neighbor_rows(name, nearest)
            label = label_generation(
                pairs,
                foreground_fraction=fractions[row],
                rule=settings.rule[0],
                tau=settings.tau,
                beta=settings.beta,
            )
            columns = {column.removesuffix("_id"): value for column, value in asdict(label).items()}
            self.labels.append({"generation": name, **columns, "searched": self._searched})
            for of_pair in self.copies(block, row, pairs):
                facts: dict[str, Any] = {"reference": of_pair.pair.reference_id, "transform": of_pair.pair.transform}
                facts["map_path"] = self._save(name, of_pair)
                self.copied_regions += [{"generation": name, **facts, **region} for region in of_pair.rows]
        if self._network is not None:
            self.by_sscd += _nearest_by_sscd(self._network, block, self._described, self._names)

    def _save(self, name: str, of_pair: PairCopies) -> str | None:
        """The name of the pair's map in the folder of maps."""
        if self._maps is None:
            return None
        pair = of_pair.pair
        key = digest(name, pair.reference_id, pair.transform)[:8]
        path = image_name(f"{name}-{pair.reference_id}", key)
        save_png(Store(self._maps), path, Image.fromarray(of_pair.picture))
        return path


@dataclass(frozen=True)
class _Folder:
    usable: tuple[ReferenceImage, ...]
    rejected: tuple[ReferenceImage, ...]


def _usable(folder: Path | str, what: str) -> _Folder:
    """The images of a folder. Generated ones may repeat or be of a single colour; references may not."""
    entries = tuple(read_references(folder))
    accepted = ("ok",) if what == "references" else ("ok", "duplicate", "placeholder")
    fits = [entry.status in accepted and min(entry.width or 0, entry.height or 0) >= MIN_SIDE for entry in entries]
    if not any(fits):
        reason = next(entry.reason for entry in entries if entry.reason)
        raise InputError(f"usable {what}", f"none ({reason})", where=folder, cure="Put images there.")
    rejected = tuple(entry for entry, fit in zip(entries, fits, strict=True) if not fit)
    return _Folder(tuple(compress(entries, fits)), rejected)


class _MatteMaker:
    """Segments an image and keeps its matte as a file; the segmenter is opened when it is first needed."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._segmenter: Segmenter | None = None

    def __call__(self, image: str, path: Path) -> Path | None:
        self._segmenter = self._segmenter or Segmenter(self._model)
        matte = self._segmenter.matte(open_rgb(image))
        if matte.alpha is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        matte.to_image().save(path)
        return path


def _items(
    folder: Path | str,
    entries: tuple[ReferenceImage, ...],
    masks: Path | None,
    make: _MatteMaker,
    scratch: Path,
    report: Callable[[str, int, int], None],
) -> list[tuple[str, Path | str, Path | None]]:
    items: list[tuple[str, Path | str, Path | None]] = []
    masks_of = {} if masks is None else _masks_of(entries, masks)
    for number, entry in enumerate(entries, start=1):
        path = entry.address
        if masks is not None:
            items.append((entry.reference_id, path, masks_of[entry.reference_id]))
            continue
        items.append((entry.reference_id, path, make(path, scratch / f"{number}.png")))
        report(f"segmenting {Path(folder).name}", number, len(entries))
    return items


def _masks_of(entries: tuple[ReferenceImage, ...], masks: Path) -> dict[str, Path]:
    """The mask of each image, by its id; no two images share one."""
    images_of: dict[Path, ReferenceImage] = {}
    paths = {}
    for entry in entries:
        path = _mask_of(entry, masks)
        first = images_of.setdefault(path, entry)
        if first is not entry:
            cure = f"Name them {Path(first.path).name}.png and {Path(entry.path).name}.png."
            got = f"{path.name} for both {first.path} and {entry.path}"
            raise InputError("a mask for each image", got, where=masks, cure=cure)
        paths[entry.reference_id] = path
    return paths


def _mask_of(entry: ReferenceImage, masks: Path) -> Path:
    """The name of the image and `.png`, else its stem; of a picture in a tar or a table, its id."""
    names = (f"{entry.path}.png", Path(entry.path).with_suffix(".png"), f"{entry.reference_id}.png")
    path = next((masks / name for name in names if (masks / name).is_file()), None)
    if path is None:
        cure = "Add it, or leave the masks to the segmenter."
        raise InputError(f"a mask for {entry.path}", f"no file {Path(names[1]).name}", where=masks, cure=cure)
    return path


def _nearest_by_sscd(
    network: Sscd, block: ImageSet, references: dict[str, Tensor], names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for region, ours in region_descriptors(block, network).items():
        best, column = (ours @ references[region].mT).nan_to_num(-2.0).max(dim=1)
        for name, similarity, reference in zip(block.ids, best.tolist(), column.tolist(), strict=True):
            if similarity >= -1.5:  # else undecided
                row = {"generation": name, "region": region, "reference": names[reference]}
                yield {**row, "similarity": similarity, "network": network.name}


def _neighbor_rows(name: str, nearest: list[Neighbor]) -> Iterator[dict[str, Any]]:
    for neighbor in nearest:
        fields = asdict(neighbor)
        yield {"generation": name, "reference": fields.pop("reference_id"), **fields}
