"""Stage neighbors: the references most similar to each generation, by every criterion."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.checks import Verdict, all_there, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import Part
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint, ImageKey
from fbmem_core.rules import ranking_regions
from fbmem_core.similarity import REGIONS
from fbmem_core.store.batches import Batches
from fbmem_core.store.locks import held
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from fbmem_core.labels import PairSimilarity
    from fbmem_core.retrieval.image_sets import ImageSet
    from fbmem_core.retrieval.planes import Planes
    from fbmem_core.retrieval.prefilter import Prefilter

STAGE = "neighbors"
_BLOCK = 64  # generations that are compared together, about
_VERSION = 6  # raise it when the same images begin to give other neighbors


def neighbors_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    def work(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
        compare_missing(context, store, arm, part)

    @table_asset(
        table="neighbors",
        stage=arm.stage(STAGE),
        deps=[arm.name("generation_masks"), "reference_masks"],
        kinds={"torch"},
        name=arm.name("neighbors"),
        shards=f"{arm.shard}*",
        work=work,
    )
    def asset(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, region, criterion, rank): exact nearest references.

        Every reference of at least `floor` by every criterion; where there is none, the one that looks nearest at
        coarse scales, `complete` if no other can be nearer. A prompt whose images, references and settings did not
        change is not computed again.
        """
        audit = store.open(context.partition_key)
        _batches(audit, arm).merge()
        return table_result(
            audit,
            "neighbors",
            audit.read("neighbors", arm),
            num_references=len(audit.references),
            prefilter=markdown_table(audit.read("prefilter_recalls").drop("checkpoint").to_dicts()),
        )

    @table_check(asset)
    def every_generation_has_neighbors(audit: AuditedCheckpoint) -> Verdict:
        """Check that every generation has its nearest references by the whole image, for every masking."""
        nearest = audit.read("neighbors", arm).filter((pl.col("region") == "full") & (pl.col("rank") == 1))
        num_regions = len(arm.maskings(audit.config))
        expected = len(audit.read("generations", arm)) * num_regions
        return all_there("images and maskings with a nearest reference", expected=expected, present=len(nearest))

    return asset, every_generation_has_neighbors


neighbors, every_generation_has_neighbors = neighbors_of(BASELINE)


def compare_missing(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, store: AuditStore, arm: Arm, part: Part
) -> None:
    """Compare the images of every prompt and method of this part that has no rows yet, a file for each block."""
    from fbmem_core.retrieval.moved import MovedCopies
    from fbmem_core.retrieval.search import search

    audit = store.open(context.partition_key)
    settings = audit.config.similarity
    pieces = _pieces(audit, arm)
    batches = _batches(audit, arm)
    present, damaged = batches.state(report=context.log.warning)
    missing = {piece: rows for piece, rows in part.of(list(pieces.items())) if piece not in present}
    # first, so that a stopped run leaves no prompt twice
    whole = {piece: rows for piece, rows in pieces.items() if piece not in missing and piece not in damaged}
    batches.keep({piece: rows.select("method", "prompt_id").row(0) for piece, rows in whole.items()})
    references = reference_planes(audit, arm) if missing else {}
    # the paper's own definition, composite, is compared in place alone
    moved = {m: MovedCopies(planes.images, settings.alignment) for m, planes in references.items() if m == "masked"}
    prefilter = _prefilter(audit, references) if missing else None
    if prefilter is not None and not arm.is_mitigated and part.number == 1:
        audit.write("prefilter_recalls", _recalls(audit, references, prefilter))
    for block in track(context, list(_blocks(missing)), what="comparing"):
        images = generation_set(audit, pl.concat(rows for _, rows in block))
        candidates = None if prefilter is None else prefilter.candidates(images)
        neighbors: dict[str, list[dict[str, Any]]] = {}
        scored: dict[str, list[dict[str, Any]]] = {}
        for masking, planes in references.items():
            for image_id, nearest, pairs in search(
                images, planes, settings, moved=moved.get(masking), candidates=candidates
            ):
                neighbors.setdefault(image_id, []).extend(
                    {"masking": masking, **asdict(neighbor)} for neighbor in nearest
                )
                scored.setdefault(image_id, []).extend(pair_rows(masking, pairs))
        generated = [image for _, rows in block for image in _images(rows)]
        rows_of = {
            table: [{**image, **row} for image in generated for row in rows_by_image[_id(image)]]
            for table, rows_by_image in (("similarities", scored), ("neighbors", neighbors))
        }
        batches.write(rows_of, [piece for piece, _ in block])
    if settings.prefilter == "none":
        audit.keep_shards("prefilter_recalls", ())


def pair_rows(masking: str, pairs: "Sequence[PairSimilarity]") -> list[dict[str, Any]]:
    """Rows of `similarities` of one image's pairs."""
    from fbmem_core.labels import OBJECT_COLUMNS

    lists = (*OBJECT_COLUMNS, "transform_matrix", "undecided_regions")
    return [
        {"masking": masking, "reference_id": pair.reference_id, "transform": pair.transform}
        | {f"{region}_similarity": getattr(pair, region) for region in (*REGIONS, "common_foreground")}
        | {name: list(getattr(pair, name)) for name in lists}
        for pair in pairs
    ]


def generation_set(audit: AuditedCheckpoint, rows: pl.DataFrame) -> "ImageSet":
    """The images and mattes of these rows of `generations`; their ids are those of the masks table."""
    from fbmem_core.retrieval.image_sets import load_image_set

    mattes = audit.mattes("generation")
    items = [(_id(image), audit.store.root / image["path"], mattes[_id(image)]) for image in rows.iter_rows(named=True)]
    return load_image_set(items, size=audit.config.similarity.size)


def reference_planes(audit: AuditedCheckpoint, arm: Arm) -> "dict[str, Planes]":
    """The usable references as each region definition of the pass compares them, kept on disk beside the tables."""
    from fbmem_core.diffusion.device import choose_device
    from fbmem_core.retrieval.planes import Planes

    device = choose_device(audit.config.similarity.device)
    with _references(audit) as images:
        return {r: Planes(images, r, device=device) for r in arm.maskings(audit.config)}


def reference_set(audit: AuditedCheckpoint) -> "ImageSet":
    """The usable references at the size of the comparison, with their views, kept on disk beside the tables."""
    with _references(audit) as images:
        return images


@contextmanager
def _references(audit: AuditedCheckpoint) -> "Iterator[ImageSet]":
    """The references, while no other step makes anything of them: each is made once, however many ask for it."""
    from fbmem_core.retrieval.image_sets import load_image_set

    size, mattes = audit.config.similarity.size, audit.mattes("reference")
    name = digest(_VERSION, size, *_reference_facts(audit))
    folder = audit.store.local / "cache" / "references" / name
    rows = audit.references.select("reference_id", "path").iter_rows()
    items = [(reference_id, path, mattes[reference_id]) for reference_id, path in rows]
    with held(folder.with_name(f"{name}.lock")):
        yield load_image_set(items, size=size, crops=True, folder=folder)


def _prefilter(audit: AuditedCheckpoint, references: "Mapping[str, Planes]") -> "Prefilter | None":
    """The prefilter that the audit file asks for; None: every reference is compared."""
    settings, sampling = audit.config.similarity, audit.config.sampling
    if settings.prefilter == "none":
        return None
    from fbmem_core.diffusion.device import choose_device
    from fbmem_core.retrieval.descriptors import Descriptor, load_descriptor
    from fbmem_core.retrieval.descriptors.latents import Latents
    from fbmem_core.retrieval.descriptors.open_clip import OpenClip
    from fbmem_core.retrieval.prefilter import Prefilter

    descriptor: Descriptor
    if settings.prefilter == "pipeline":
        descriptor = Latents(audit.pipeline.vae, image_size=min(sampling.height, sampling.width))
    elif settings.prefilter == "open_clip":
        clip = audit.config.clusters
        descriptor = OpenClip(clip.model, clip.weights, device=choose_device(settings.device))
    else:
        assert settings.descriptor_weights is not None  # the audit file was validated
        descriptor = load_descriptor(
            settings.prefilter, settings.descriptor_weights, device=choose_device(settings.device)
        )
    images = references[settings.masking[0]].images
    return Prefilter(images, descriptor, num_candidates=settings.num_candidates)


def _recalls(
    audit: AuditedCheckpoint, references: "Mapping[str, Planes]", prefilter: "Prefilter"
) -> Iterator[dict[str, Any]]:
    """Recall of the prefilter, measured on generations spread over all prompts."""
    from fbmem_core.retrieval.neighbors import nearest_references
    from fbmem_core.retrieval.prefilter import measure_recall

    settings = audit.config.similarity
    generations = audit.read("generations", BASELINE)
    num = min(settings.num_checked, len(generations))
    rows = generations[[round(at * len(generations) / num) for at in range(num)]] if num else generations.clear()
    images = generation_set(audit, rows)
    candidates = prefilter.candidates(images) if num else {}
    for masking in settings.masking:
        exact = dict(
            nearest_references(images, references[masking], masking=masking, floor=settings.lowest, tau=settings.tau)
        )
        recall = measure_recall(exact, candidates, floor=settings.lowest)
        yield {
            "masking": masking, "encoder": settings.prefilter, "num_candidates": settings.num_candidates,
            "num_generations": recall.num_generations, "num_pairs": recall.num_pairs, "num_kept": recall.num_kept,
            "recall": recall.value if recall.num_pairs else None,
        }  # fmt: skip


def _images(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.select("method", "prompt_id", "seed").to_dicts()


def _id(image: Mapping[str, Any]) -> str:
    return ImageKey(image["method"], image["prompt_id"], image["seed"]).image_id


def _blocks(pieces: Mapping[str, pl.DataFrame]) -> Iterator[list[tuple[str, pl.DataFrame]]]:
    """Prompts that are compared together: the more generations, the less the references cost."""
    block: list[tuple[str, pl.DataFrame]] = []
    for piece, rows in pieces.items():
        block.append((piece, rows))
        if sum(len(rows) for _, rows in block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _reference_facts(audit: AuditedCheckpoint) -> list[Any]:
    """Facts of the references and mattes that the comparison depends on."""
    references = audit.references.select("reference_id", "path", "sha256").rows()
    return [references, sorted(set(audit.read("masks")["segmenter"]))]


def _batches(audit: AuditedCheckpoint, arm: Arm) -> Batches:
    """The files of both tables; neighbors last: what stands there has its similarities."""
    return Batches(audit.store, audit.partition, ("similarities", "neighbors"), prefix=arm.shard)


def _pieces(audit: AuditedCheckpoint, arm: Arm) -> dict[str, pl.DataFrame]:
    """The generations of each prompt and method, under a name that changes with all that their neighbors depend on."""
    settings = audit.config.similarity.model_dump(include={"size", "tau", "floor", "top_k", "alignment"})
    settings |= {"masking": arm.maskings(audit.config), "ranked_by": ranking_regions()}
    if audit.config.similarity.prefilter != "none":
        settings |= audit.config.similarity.model_dump(
            mode="json", include={"prefilter", "num_candidates", "descriptor_weights"}
        )
    facts = digest(_reference_facts(audit))  # once: there may be a million references
    pieces = {}
    generations = audit.read("generations", arm)
    for rows in generations.partition_by("method", "prompt_id", maintain_order=True):
        image = rows.row(0, named=True)
        sampled = rows.select("seed", "sha256").rows()
        name = digest(_VERSION, image["method"], image["prompt_id"], sampled, facts, settings)
        pieces[f"{arm.shard}-{name}"] = rows
    return pieces
