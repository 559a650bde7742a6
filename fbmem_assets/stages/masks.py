"""Stage masks: what is foreground in every generation and every reference."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from PIL import Image

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore, segmenter_of
from fbmem_assets.orchestration.shards import Part
from fbmem_assets.orchestration.tables import markdown_table, picture, shown, table_asset, table_result
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint, ImageKey
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.store.images import has_image, image_path, open_image, save_png

STAGE = "masks"
_SHEET_TILES = 48
_MAX_UNDECIDED_SHARE = 0.05
_STATUS_KEY = "fbmem_status"


@dataclass(frozen=True)
class _Image:
    """An image to be segmented; `sha256` is that of its file."""

    image_id: str
    path: Path | str
    sha256: str


def generation_masks_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    def work(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
        audit = store.open(context.partition_key)
        _segment_missing(context, store, "generation", part.of(_generations(audit, arm)))

    @table_asset(
        table="masks",
        stage=arm.stage(STAGE),
        deps=[arm.name("generations")],
        kinds={"onnx"},
        name=arm.name("generation_masks"),
        shards=f"generation-{arm.shard}",
        work=work,
    )
    def asset(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per generation: its matte, its foreground's share of the area, whether the segmenter could decide."""
        audit = store.open(context.partition_key)
        images = _generations(audit, arm)
        return _write_masks(context, store, "generation", images, shard=f"generation-{arm.shard}")

    @table_check(asset)
    def every_generation_has_a_mask(audit: AuditedCheckpoint) -> Verdict:
        """No generation was lost, and at most one in twenty is undecided."""
        expected = len(audit.read("generations", arm))
        return _check(audit, f"generation-{arm.shard}", expected)

    return asset, every_generation_has_a_mask


generation_masks, every_generation_has_a_mask = generation_masks_of(BASELINE)


def _segment_references(context: dg.OpExecutionContext, store: AuditStore, part: Part) -> None:
    audit = store.open(context.partition_key)
    _segment_missing(context, store, "reference", part.of(_references(audit)))


@table_asset(table="masks", stage=STAGE, deps=["reference_images"], kinds={"onnx"}, work=_segment_references)
def reference_masks(context: dg.OpExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per usable reference: its matte, its foreground's share, and whether the segmenter could decide."""
    audit = store.open(context.partition_key)
    return _write_masks(context, store, "reference", _references(audit), shard="reference")


def _generations(audit: AuditedCheckpoint, arm: Arm) -> list[_Image]:
    rows = audit.read("generations", arm).select("method", "prompt_id", "seed", "path", "sha256").iter_rows()
    return [
        _Image(ImageKey(method, prompt_id, seed).image_id, audit.store.root / path, sha256)
        for method, prompt_id, seed, path, sha256 in rows
    ]


def _references(audit: AuditedCheckpoint) -> list[_Image]:
    rows = audit.references.select("reference_id", "path", "sha256").iter_rows()
    return [_Image(reference_id, path, sha256) for reference_id, path, sha256 in rows]


class _Mattes:
    """Files of the mattes of one kind of image. One that is not there is made when asked for."""

    def __init__(self, context: dg.OpExecutionContext, store: AuditStore, kind: str) -> None:
        from fbmem_core.inputs.segmentation import segmenter_name

        self._log, self._tables, self._key, self._kind = context.log, store.tables, context.partition_key, kind
        self._model = store.open(context.partition_key).config.segmentation.model
        self.segmenter = segmenter_name(self._model)

    def __call__(self, image: _Image) -> str | None:
        """None: the segmenter could not decide."""
        from fbmem_core.inputs.pictures import open_rgb

        content = hashlib.sha256(f"{image.sha256} {self.segmenter}".encode()).hexdigest()[:12]
        path = image_path(f"masks/{self._kind}", self._key, image.image_id, content)
        if not has_image(self._tables, path, report=self._log.warning):
            matte = segmenter_of(self._model).matte(open_rgb(image.path))
            if matte.alpha is None:
                return None
            save_png(self._tables, path, matte.to_image(), notes={_STATUS_KEY: matte.status})
        return path


def _segment_missing(context: dg.OpExecutionContext, store: AuditStore, kind: str, images: Sequence[_Image]) -> None:
    matte_of = _Mattes(context, store, kind)
    for image in track(context, images, what=f"segmenting {kind}s"):
        matte_of(image)


def _write_masks(
    context: dg.OpExecutionContext, store: AuditStore, kind: str, images: Sequence[_Image], *, shard: str
) -> dg.MaterializeResult:
    from fbmem_core.inputs.pictures import open_rgb
    from fbmem_core.inputs.segmentation import foreground_fraction
    from fbmem_core.report.pictures import contact_sheet, overlay

    audit = store.open(context.partition_key)
    matte_of = _Mattes(context, store, kind)
    name = matte_of.segmenter
    rows: list[dict[str, Any]] = []
    tiles: list[tuple[str, Image.Image]] = []
    for image in images:
        path = matte_of(image)
        if path is None:
            rows.append(_row(kind, image, None, None, name, "undecided"))
            continue
        saved = open_image(audit.store, path)
        alpha, status = np.asarray(saved, dtype=np.float32) / 255, saved.info[_STATUS_KEY]
        rows.append(_row(kind, image, path, foreground_fraction(alpha), name, status))
        if len(tiles) < _SHEET_TILES:
            tiles.append((image.image_id.removeprefix(f"{UNMITIGATED}/"), overlay(open_rgb(image.path), alpha)))
    audit.write("masks", rows, shard=shard)
    undecided = [row for row in rows if row["status"] == "undecided"]
    reason = "the segmenter answers every pixel alike"
    audit.write(
        "rejected",
        [{"stage": STAGE, "item": r["image_id"], "reason": reason} for r in undecided],
        shard=f"masks-{shard}",
    )
    statuses = Counter(row["status"] for row in rows)
    return table_result(
        audit,
        "masks",
        audit.read("masks", shard=shard),
        num_undecided=len(undecided),
        statuses=markdown_table([{"status": status, "images": count} for status, count in statuses.items()]),
        overlays=picture(contact_sheet(tiles, columns=12), "foregrounds"),
        overlays_show=shown(len(tiles), len(images), "images") + "; what is not foreground is striped",
    )


def _row(
    kind: str, image: _Image, path: str | None, foreground_fraction: float | None, segmenter: str, status: str
) -> dict[str, Any]:
    return {
        "image_kind": kind,
        "image_id": image.image_id,
        "path": path,
        "foreground_fraction": foreground_fraction,
        "segmenter": segmenter,
        "status": status,
    }


@table_check(reference_masks)
def every_reference_has_a_mask(audit: AuditedCheckpoint) -> Verdict:
    """No usable reference was lost, and at most one in twenty is undecided."""
    return _check(audit, "reference", len(audit.references))


def _check(audit: AuditedCheckpoint, shard: str, expected: int) -> Verdict:
    masks = audit.read("masks", shard=shard)
    undecided = masks.filter(pl.col("status") == "undecided")["image_id"].to_list()
    few = len(undecided) <= _MAX_UNDECIDED_SHARE * max(len(masks), 1)
    if not expected and masks.is_empty():
        return Verdict(None, "there are no images")
    return Verdict(
        len(masks) == expected and few,
        f"{len(masks)} of {expected} images have a mask, {len(undecided)} of them undecided",
        {"expected": expected, "found": len(masks), "undecided": str(undecided[:20])},
    )
