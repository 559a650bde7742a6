"""Stage sscd: a second, independent score for every listed pair, and where it disagrees with the labels."""

import time
from typing import Any

import dagster as dg

from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, table_asset, table_result
from fbmem_assets.stages.neighbors import generation_set, reference_planes
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint, ImageKey
from fbmem_core.labels import SEVERITY, PairSimilarity, label_pair
from fbmem_core.rules import Label

STAGE = "sscd"
_BLOCK = 64  # generations that are described together


@table_asset(table="sscd_similarities", stage=STAGE, deps=["similarities", "reference_masks"], kinds={"torch"})
def sscd_similarities(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per image and reference: every listed pair, and the nearest by SSCD; none without `similarity.sscd`."""
    audit = store.open(context.partition_key)
    started = time.perf_counter()
    rows = _scores(context, audit) if audit.config.similarity.sscd is not None else []
    audit.write("sscd_similarities", rows)
    seconds, num = time.perf_counter() - started, len(audit.read("generations", BASELINE)) + len(audit.references)
    cost = {"seconds": seconds, "milliseconds per image": 1000 * seconds / max(num, 1)} if rows else {}
    return table_result(audit, "sscd_similarities", audit.read("sscd_similarities"), **cost)


@table_asset(table="disagreements", stage=STAGE, deps=["sscd_similarities"])
def disagreements(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per image and reference on which the label and SSCD disagree: what a reviewer should look at first."""
    audit = store.open(context.partition_key)
    audit.write("disagreements", _disagreements(audit))
    table = audit.read("disagreements")
    counts = table.group_by("kind", "label").len("pairs").sort("kind", "label")
    return table_result(audit, "disagreements", table, counts=markdown_table(counts.to_dicts()))


def _scores(context: dg.AssetExecutionContext, audit: AuditedCheckpoint) -> list[dict[str, Any]]:
    from fbmem_core.diffusion.device import choose_device
    from fbmem_core.retrieval.descriptors import region_descriptors
    from fbmem_core.retrieval.descriptors.sscd import Sscd
    from fbmem_core.retrieval.second_scores import second_scores

    settings = audit.config.similarity
    assert settings.sscd is not None
    network = Sscd(settings.sscd, device=choose_device(settings.device))
    images = reference_planes(audit, BASELINE)[settings.masking[0]].images
    described = region_descriptors(images, network)
    listed = {key.image_id: {pair.reference_id for pair in pairs} for key, _, pairs in _summary_pairs(audit)}
    rows: list[dict[str, Any]] = []
    blocks = list(audit.read("generations", BASELINE).iter_slices(_BLOCK))
    for block in track(context, blocks, what="describing"):
        key_of = {key.image_id: key for key in map(ImageKey._make, block.select(ImageKey._fields).iter_rows())}
        for score in second_scores(generation_set(audit, block), described, images.ids, network, listed=listed):
            rows.append({
                **key_of[score.generation_id]._asdict(), "reference_id": score.reference_id,
                "sscd_full": score.full, "sscd_foreground": score.foreground, "sscd_background": score.background,
                "is_listed": score.is_listed, "is_nearest": score.is_nearest, "network": network.name,
            })  # fmt: skip
    return rows


def _disagreements(audit: AuditedCheckpoint) -> list[dict[str, Any]]:
    from fbmem_core.retrieval.second_scores import SecondScore, disagreement

    settings, fractions = audit.config.similarity, audit.foreground_fractions
    listed: dict[tuple[str, str], list[PairSimilarity]] = {}
    for key, _, pairs in _summary_pairs(audit):
        for pair in pairs:
            listed.setdefault((key.image_id, pair.reference_id), []).append(pair)
    rows: list[dict[str, Any]] = []
    for row in audit.read("sscd_similarities").iter_rows(named=True):
        key = ImageKey(row["method"], row["prompt_id"], row["seed"])
        pairs = listed.get((key.image_id, row["reference_id"]), [])
        label = _label(audit, pairs, fractions[key.image_id])
        values = (row["sscd_full"], row["sscd_foreground"], row["sscd_background"])
        score = SecondScore(key.image_id, row["reference_id"], *values, row["is_listed"], row["is_nearest"])
        disagreed = disagreement(score, pairs, label, threshold=settings.sscd_threshold)
        if disagreed is not None:
            rows.append({
                **key._asdict(), "reference_id": row["reference_id"], "label": label, "kind": disagreed.kind,
                "region": disagreed.region, "similarity": disagreed.similarity, "sscd_similarity": disagreed.second,
                "sscd_threshold": settings.sscd_threshold,
            })  # fmt: skip
    return rows


def _summary_pairs(audit: AuditedCheckpoint) -> list[tuple[ImageKey, str, list[PairSimilarity]]]:
    return [item for item in audit.pairs() if item[1] == audit.config.similarity.masking[0]]


def _label(audit: AuditedCheckpoint, pairs: list[PairSimilarity], fraction: float | None) -> Label | None:
    """The severest label of the views and transforms of one reference; NM where none is listed."""
    settings = audit.config.similarity
    labels = [
        label_pair(pair, foreground_fraction=fraction, rule=settings.rule[0], tau=settings.tau, beta=settings.beta)
        for pair in pairs
    ]
    decided = [label for label in labels if label is not None]
    if not decided:
        return None if fraction is None else "NM"
    return max(decided, key=lambda label: SEVERITY[label])
