"""Stage generations: the audited model's images, one seed each."""

import dagster as dg
import polars as pl
from PIL import Image

from fbmem_assets.partitions import checkpoint_partitions
from fbmem_assets.resources import AuditStore, track
from fbmem_assets.tables import picture, table_asset, table_result
from fbmem_core.audit import Audit
from fbmem_core.store.images import file_sha256, image_path, save_png

STAGE = "generations"
UNMITIGATED = "none"
_SHEET_TILES = 96


@table_asset(table="generations", stage=STAGE, deps=["prompt_set"], kinds={"torch"})
def generations(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, seed). An image that is already there is kept; the rest is sampled, saved one by one."""
    from fbmem_core.diffusion.sampling import Request, content_key, sample

    key, tables = context.partition_key, store.tables
    audit, checkpoint = store.audit(key)
    prompts = tables.read("prompts", key)
    wanted = [
        (request, image_path(STAGE, key, f"{UNMITIGATED}-{request.prompt_id}-{request.seed}", image_key))
        for request in (Request(p, text, seed) for p, text, seed in _requests(audit, prompts))
        for image_key in [content_key(checkpoint.fingerprint, UNMITIGATED, request, audit.sampling)]
    ]
    path_of = {request: path for request, path in wanted}
    missing = [request for request, path in wanted if not (tables.root / path).is_file()]
    if missing:
        pipeline = store.pipeline(key)
        sampled = sample(pipeline, missing, audit.sampling)
        for request, image in track(context, sampled, total=len(missing), what="sampling"):
            save_png(tables, path_of[request], image)
    rows = []
    for request, path in wanted:
        with Image.open(tables.root / path) as image:
            width, height = image.size
        row = {"method": UNMITIGATED, "prompt_id": request.prompt_id, "seed": request.seed, "path": path}
        rows.append({**row, "sha256": file_sha256(tables.root / path), "width": width, "height": height})
    tables.write("generations", key, rows, shard=UNMITIGATED)
    table = tables.read("generations", key, shard=UNMITIGATED)
    return table_result(
        store,
        "generations",
        key,
        table,
        num_sampled=len(missing),
        num_kept=len(wanted) - len(missing),
        contact_sheet=picture(_sheet(store, table), "generations"),
    )


@dg.asset_check(asset=generations, partitions_def=checkpoint_partitions)
def every_prompt_was_sampled(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Every prompt has an image for each of its seeds."""
    key, tables = context.partition_key, store.tables
    audit, _ = store.audit(key)
    expected = {(prompt_id, seed) for prompt_id, _, seed in _requests(audit, tables.read("prompts", key))}
    found = set(tables.read("generations", key, shard=UNMITIGATED).select("prompt_id", "seed").iter_rows())
    lost = sorted(expected ^ found)
    return dg.AssetCheckResult(
        passed=not lost, metadata={"expected": len(expected), "found": len(found), "differing": str(lost[:20])}
    )


def _requests(audit: Audit, prompts: pl.DataFrame) -> list[tuple[str, str, int]]:
    """(prompt_id, prompt, seed) of every image that the audit asks for."""
    rows = prompts.select("prompt_id", "prompt", "kind").iter_rows()
    return [(prompt_id, prompt, seed) for prompt_id, prompt, kind in rows for seed in audit.seeds(kind)]


def _sheet(store: AuditStore, table: pl.DataFrame) -> str:
    from fbmem_core.report.pictures import contact_sheet

    root = store.tables.root
    few = table.filter(pl.int_range(pl.len()).over("prompt_id") < 2).head(_SHEET_TILES)
    tiles = [
        (f"{p} {s}", Image.open(root / path)) for p, s, path in few.select("prompt_id", "seed", "path").iter_rows()
    ]
    return contact_sheet(tiles, columns=12)
