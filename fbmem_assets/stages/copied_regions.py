"""Stage labels: the very pixels that each generation copies, region by region, with a picture of each pair."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from PIL import Image

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import table_asset, table_result
from fbmem_assets.stages.neighbors import generation_set, reference_set
from fbmem_core.audit.results import BASELINE, Arm, AuditedCheckpoint, ImageKey
from fbmem_core.store.images import has_image, image_path, save_png
from fbmem_core.store.tables import digest

if TYPE_CHECKING:
    from fbmem_core.labels import PairSimilarity
    from fbmem_core.retrieval.copies import Copies, PairCopies

STAGE = "labels"
_BLOCK = 64  # generations that are read together
_VERSION = 2  # raise it when the same pair begins to give another map
_IMAGE = ["method", "prompt_id", "seed"]


def copied_regions_of(arm: Arm) -> tuple[dg.AssetsDefinition, dg.AssetChecksDefinition]:
    """The asset of one pass, and its check."""

    @table_asset(
        table="copied_regions",
        stage=arm.stage(STAGE),
        deps=[arm.name("similarities")],
        name=arm.name("copied_regions"),
        shards=arm.shard,
    )
    def asset(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
        """One row per (method, prompt_id, seed, reference_id, transform, region): which pixels are copied.

        Of every pair at or above the floor by any region, the most similar of each image; the map of a pair is a PNG.
        """
        from fbmem_core.retrieval.copies import MAX_PAIRS, Copies

        audit = store.open(context.partition_key)
        copies = Copies(reference_set(audit), floor=audit.config.similarity.list_from)
        audit.write("copied_regions", list(_rows(context, audit, arm, copies)), shard=arm.shard)
        if copies.num_left_out:
            context.log.info(f"{copies.num_left_out} pairs beyond the first {MAX_PAIRS} of their images have no map")
        table = audit.read("copied_regions", arm)
        return table_result(
            audit,
            "copied_regions",
            table,
            num_maps=table["map_path"].n_unique(),
            num_pairs_left_out=copies.num_left_out,
        )

    @table_check(asset)
    def every_copy_has_its_regions(audit: AuditedCheckpoint) -> Verdict:
        """Images with a label but NM all have rows here, with a map that can be read."""
        labels = audit.summary_labels(arm).filter(pl.col("label") != "NM")
        if labels.is_empty():
            return Verdict(None, "no image is a copy")
        table = audit.read("copied_regions", arm)
        missing = labels.join(table, on=_IMAGE, how="anti")
        broken = [path for path in table["map_path"].unique() if not has_image(audit.store, path)]
        sentence = f"{len(labels) - len(missing)} of {len(labels)} copies have their regions, {len(broken)} maps broken"
        return Verdict(missing.is_empty() and not broken, sentence)

    return asset, every_copy_has_its_regions


copied_regions, every_copy_has_its_regions = copied_regions_of(BASELINE)


def _rows(
    context: dg.AssetExecutionContext, audit: AuditedCheckpoint, arm: Arm, copies: "Copies"
) -> Iterator[dict[str, Any]]:
    """The rows of `copied_regions`, by the first masking; maps that are not there yet are drawn."""
    masking = audit.config.similarity.masking[0]
    images = {tuple(row[name] for name in _IMAGE): row for row in audit.read("generations", arm).to_dicts()}
    pairs_of = [(image, pairs) for image, of_image, pairs in audit.pairs(arm) if of_image == masking]
    sha256_of = dict(audit.references.select("reference_id", "sha256").iter_rows())
    blocks = [pairs_of[first : first + _BLOCK] for first in range(0, len(pairs_of), _BLOCK)]
    for block in track(context, blocks, what="mapping copies"):
        chosen = [images[tuple(image)] for image, _ in block]
        pictures = generation_set(audit, pl.DataFrame(chosen, infer_schema_length=None))
        for row, (image, pairs) in enumerate(block):
            for of_pair in copies(pictures, row, pairs):
                sources = chosen[row]["sha256"], sha256_of[of_pair.pair.reference_id]
                path = _save_map(audit, image, of_pair, sources)
                facts = {"reference_id": of_pair.pair.reference_id, "transform": of_pair.pair.transform}
                for region in of_pair.rows:
                    yield {**image._asdict(), **facts, **region, "map_path": path}


def _save_map(audit: AuditedCheckpoint, image: ImageKey, of_pair: "PairCopies", sources: tuple[str, str]) -> str:
    pair: PairSimilarity = of_pair.pair
    key = digest(_VERSION, *sources, audit.config.similarity.size, pair.transform, pair.transform_matrix)
    path = image_path("copies", audit.partition, f"{image.image_id}-{pair.reference_id}", key[:12])
    if not has_image(audit.store, path):
        save_png(audit.store, path, Image.fromarray(of_pair.picture))
    return path
