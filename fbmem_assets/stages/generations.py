"""Stage generations: the audited model's images, one seed each."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from PIL import Image

from fbmem_assets.orchestration.checks import Verdict, all_there, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import WHOLE, Part
from fbmem_assets.orchestration.tables import picture, shown, table_asset, table_result
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint, ImageKey
from fbmem_core.errors import InputError
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.store.images import UNUSABLE, ImageWriter, file_sha256, has_image, image_path, open_image

if TYPE_CHECKING:
    from fbmem_core.diffusion.sampling import Request

    # (method, request, content key): an image that is asked for, named by everything that determines it
    PlannedImage = tuple[str, Request, str]
    Sampler = Callable[[str, Sequence[Request]], Iterator[tuple[Request, Image.Image]]]

STAGE = "generations"
_SHEET_TILES = 96


def _sample_part(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    from fbmem_core.diffusion.sampling import sample

    audit = store.open(context.partition_key)
    settings = audit.config.sampling
    sample_missing(
        context, store, _planned_images(audit, part), lambda _, requests: sample(audit.pipeline, requests, settings)
    )


@table_asset(
    table="generations",
    stage=STAGE,
    deps=["prompts", "reference_images"],  # an audit without a usable reference ends before it samples
    kinds={"torch"},
    shards=BASELINE.shard,
    work=_sample_part,
)
def generations(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, seed). An image that is already there is kept; the rest is sampled, saved one by one."""
    audit = store.open(context.partition_key)
    return write_generations(audit, BASELINE, _planned_images(audit, WHOLE))


@table_check(generations)
def every_prompt_was_sampled(audit: AuditedCheckpoint) -> Verdict:
    """Check that every prompt has an image for each of its seeds."""
    expected = {(request.prompt_id, request.seed) for request in requests(audit, audit.read("prompts"))}
    present = set(audit.read("generations", BASELINE).select("prompt_id", "seed").iter_rows())
    differing = str(sorted(expected ^ present)[:20])
    return all_there("images", expected=len(expected), present=len(present), differing=differing)


def requests(audit: AuditedCheckpoint, prompts: pl.DataFrame) -> "list[Request]":
    """Images that the audit asks for."""
    from fbmem_core.diffusion.sampling import Request

    rows = prompts.select("prompt_id", "prompt", "kind").iter_rows()
    return [Request(prompt_id, prompt, seed) for prompt_id, prompt, kind in rows for seed in audit.config.seeds(kind)]


def sample_missing(
    context: dg.OpExecutionContext, store: AuditStore, planned: "Sequence[PlannedImage]", sampler: "Sampler"
) -> None:
    """Sample what is not there yet, method by method."""
    audit = store.open(context.partition_key)
    missing: dict[str, dict[Request, str]] = {}
    for (method, request), path in _paths(audit.partition, planned).items():
        if not has_image(audit.store, path, report=context.log.warning):
            missing.setdefault(method, {})[request] = path
    num_missing = sum(map(len, missing.values()))
    context.log.info(f"{len(planned) - num_missing} of {len(planned)} images are there")
    for method, path_of in missing.items():
        what = "sampling" if method == UNMITIGATED else f"sampling {method}"
        images, batch = sampler(method, list(path_of)), audit.config.sampling.batch_size
        with ImageWriter(audit.store) as writer:
            for request, image in track(context, images, total=len(path_of), what=what, batch=batch):
                writer.save(path_of[request], image, notes=_notes(image))


def write_generations(audit: AuditedCheckpoint, arm: Arm, planned: "Sequence[PlannedImage]") -> dg.MaterializeResult:
    """The rows of all that is asked for, once it is sampled; an image that holds no picture is one of `rejected`.

    Raises:
        InputError: The model as it is draws no picture at all.
    """
    from fbmem_core.report.pictures import contact_sheet

    rows, rejected = [], []
    for (method, request), path in _paths(audit.partition, planned).items():
        image = open_image(audit.store, path)
        row: dict[str, Any] = {"method": method, "prompt_id": request.prompt_id, "seed": request.seed, "path": path}
        if reason := image.info.get(UNUSABLE):
            item = ImageKey(method, request.prompt_id, request.seed).image_id
            rejected.append({"stage": arm.stage(STAGE), "item": item, "reason": reason})
            continue
        row |= {"sha256": file_sha256(audit.store.root / path), "width": image.width, "height": image.height}
        rows.append(row)
    audit.write("generations", rows, shard=arm.shard)
    audit.write("rejected", rejected, shard=f"generations-{arm.shard}")
    if rejected and not rows and not arm.is_mitigated:
        cure = "Set `sampling.dtype: float32` or `bfloat16`, or look at the checkpoint with diffusers itself."
        raise InputError("images that hold a picture", f"none of {len(rejected)} ({rejected[0]['reason']})", cure=cure)
    table = audit.read("generations", shard=arm.shard)
    tiles, columns = _tiles(audit, table)
    return table_result(
        audit,
        "generations",
        table,
        num_rejected=len(rejected),
        contact_sheet=picture(contact_sheet(tiles, columns=columns), "generations"),
        contact_sheet_shows=shown(len(tiles), len(table), "images"),
    )


def _notes(image: Image.Image) -> dict[str, str]:
    """Notes beside an image that holds no picture: why."""
    return {UNUSABLE: image.info[UNUSABLE]} if UNUSABLE in image.info else {}


def _planned_images(audit: AuditedCheckpoint, part: Part) -> "list[PlannedImage]":
    from fbmem_core.diffusion.sampling import content_key

    prompts = audit.read("prompts")
    return [
        (UNMITIGATED, request, content_key(audit.checkpoint.fingerprint, UNMITIGATED, request, audit.config.sampling))
        for request in requests(audit, prompts[part.of(range(len(prompts)))])
    ]


def _paths(partition: str, planned: "Sequence[PlannedImage]") -> "dict[tuple[str, Request], str]":
    return {
        (method, request): image_path(
            "generations", partition, f"{method}-{request.prompt_id}-{request.seed}", image_key
        )
        for method, request, image_key in planned
    }


def _tiles(audit: AuditedCheckpoint, table: pl.DataFrame) -> tuple[list[tuple[str, Image.Image]], int]:
    """Captioned images, and how many stand in a row: two of each prompt, or one under each method, `none` first."""
    methods = table["method"].unique(maintain_order=True).to_list()
    if methods and methods != [UNMITIGATED]:
        keys = table.select("prompt_id", "seed").unique()
        before = audit.read("generations", BASELINE).join(keys, on=["prompt_id", "seed"], how="semi")
        table, methods = pl.concat([before, table]), [UNMITIGATED, *methods]
    of_each = 2 if len(methods) < 2 else 1
    order = pl.col("method").replace_strict(methods, range(len(methods)), return_dtype=pl.Int64)
    few = table.filter(pl.int_range(pl.len()).over("method", "prompt_id") < of_each).sort("prompt_id", order, "seed")
    facts = few.head(_SHEET_TILES).select("method", "prompt_id", "seed", "path").iter_rows()
    tiles = [
        (f"{prompt_id} {seed}" if of_each > 1 else f"{method} {prompt_id}", open_image(audit.store, path))
        for method, prompt_id, seed, path in facts
    ]
    return tiles, 12 if of_each > 1 else len(methods)
