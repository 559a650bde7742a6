"""Stage neighbors: the references most similar to each generation, by every criterion."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from fbmem_assets.generations import UNMITIGATED
from fbmem_assets.masks import generation_image_id, usable_references
from fbmem_assets.partitions import checkpoint_partitions
from fbmem_assets.resources import AuditStore, track
from fbmem_assets.tables import table_asset, table_result

if TYPE_CHECKING:
    from fbmem_core.neighbors import ImageSet

STAGE = "neighbors"
_VERSION = 1  # raise it when the same images begin to give other neighbors


@table_asset(table="neighbors", stage=STAGE, deps=["generation_masks", "reference_masks"], kinds={"torch"})
def neighbors(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per (prompt_id, seed, region, criterion, rank): exact nearest references.

    The first `top_k` by every criterion, and every reference of at least `tau`. A prompt whose images, references and
    settings did not change is not computed again.
    """
    from fbmem_core.neighbors import nearest_references

    key, tables = context.partition_key, store.tables
    audit, _ = store.audit(key)
    settings = audit.similarity
    references = reference_set(store, key)
    shards = []
    prompts = list(generations_by_prompt(store, key))
    for prompt_id, rows in track(context, prompts, total=len(prompts), what="comparing"):
        shard = _shard_name(store, key, prompt_id, rows)
        shards.append(shard)
        if (tables.table_dir("neighbors", key) / f"{shard}.parquet").is_file():
            continue
        images = generation_set(store, key, rows)
        found = [
            {"method": UNMITIGATED, "prompt_id": prompt_id, "seed": int(seed), "region": region, **asdict(neighbor)}
            for region in settings.region
            for seed, nearest in nearest_references(
                images, references, region=region, top_k=settings.top_k, floor=settings.tau
            )
            for neighbor in nearest
        ]
        tables.write("neighbors", key, found, shard=shard)
    tables.keep_shards("neighbors", key, shards)
    table = tables.read("neighbors", key)
    return table_result(store, "neighbors", key, table, num_references=len(references))


@dg.asset_check(asset=neighbors, partitions_def=checkpoint_partitions)
def every_generation_has_neighbors(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """Every generation has its nearest references by the whole image, for every region definition."""
    key, tables = context.partition_key, store.tables
    audit, _ = store.audit(key)
    table = tables.read("neighbors", key)
    nearest = table.filter((pl.col("criterion") == "full") & (pl.col("rank") == 1))
    expected = len(tables.read("generations", key, shard=UNMITIGATED)) * len(audit.similarity.region)
    return dg.AssetCheckResult(passed=len(nearest) == expected, metadata={"expected": expected, "found": len(nearest)})


def generations_by_prompt(store: AuditStore, key: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of `generations`, prompt by prompt."""
    rows = store.tables.read("generations", key, shard=UNMITIGATED)
    for group in rows.partition_by("prompt_id", maintain_order=True):
        yield group["prompt_id"][0], group


def generation_set(store: AuditStore, key: str, rows: pl.DataFrame) -> "ImageSet":
    """The images and mattes of these generations of one prompt; their ids are the seeds."""
    from fbmem_core.neighbors import load_image_set

    tables = store.tables
    audit, _ = store.audit(key)
    mattes = _mattes(store, key, "generation")
    items = [
        (str(seed), tables.root / path, mattes[generation_image_id(method, prompt_id, seed)])
        for method, prompt_id, seed, path in rows.select("method", "prompt_id", "seed", "path").iter_rows()
    ]
    return load_image_set(items, size=audit.similarity.size)


def reference_set(store: AuditStore, key: str) -> "ImageSet":
    """The images and mattes of all usable references."""
    from fbmem_core.neighbors import load_image_set

    audit, _ = store.audit(key)
    mattes = _mattes(store, key, "reference")
    rows = usable_references(store, key).select("reference_id", "path").iter_rows()
    return load_image_set([(name, Path(path), mattes[name]) for name, path in rows], size=audit.similarity.size)


def _mattes(store: AuditStore, key: str, kind: str) -> dict[str, Path | None]:
    rows = store.tables.read("masks", key, shard=f"{kind}*").select("image_id", "path").iter_rows()
    return {image_id: store.tables.root / path if path else None for image_id, path in rows}


def _shard_name(store: AuditStore, key: str, prompt_id: str, rows: pl.DataFrame) -> str:
    """A name that changes with everything that the neighbors of these generations depend on."""
    audit, _ = store.audit(key)
    masks = store.tables.read("masks", key)
    segmenters = sorted(set(masks["segmenter"]))
    references = usable_references(store, key).select("reference_id", "sha256").rows()
    settings = audit.similarity.model_dump(include={"size", "region", "tau", "top_k"})
    parts = [_VERSION, prompt_id, rows.select("seed", "sha256").rows(), references, segmenters, settings]
    return f"{UNMITIGATED}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"
