"""Stage prompts: what the model is asked, and the training images that it may have memorized."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import dagster as dg

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.resources import AuditStore, track
from fbmem_assets.orchestration.tables import markdown_table, picture, table_asset, table_result

if TYPE_CHECKING:
    from fbmem_core.audit.results import AuditedCheckpoint
    from fbmem_core.inputs.references import ReferenceImage

STAGE = "prompts"
_SHEET_TILES = 60


@table_asset(table="prompts", stage=STAGE)
def prompt_set(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt. Read from the audit's prompt file; rows that cannot be used are counted in `rejected`."""
    from fbmem_core.inputs.prompts import read_prompts

    audit = store.open(context.partition_key)
    prompts, rejected = read_prompts(audit.config.prompts)
    audit.write("prompts", [{"audit": audit.config.name, **asdict(prompt)} for prompt in prompts])
    audit.write("rejected", [{"stage": STAGE, **asdict(item)} for item in rejected], shard="prompt_set")
    kinds = Counter(prompt.kind or "" for prompt in prompts)
    return table_result(
        audit,
        "prompts",
        audit.read("prompts"),
        num_rejected=len(rejected),
        kinds=markdown_table([{"kind": kind, "prompts": count} for kind, count in kinds.items()]),
    )


@table_asset(table="reference_images", stage=STAGE)
def reference_images(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per thing in the reference set: ok, missing, unreadable, placeholder, duplicate or unlisted."""
    from fbmem_core.inputs.pictures import open_rgb
    from fbmem_core.report.pictures import contact_sheet

    audit = store.open(context.partition_key)
    found = list(track(context, _read(audit), what="reading references"))
    rows = []
    for reference in found:
        row = asdict(reference)
        del row["reason"]
        rows.append({"audit": audit.config.name, **row, "path": row.pop("address") or reference.path})
    audit.write("reference_images", rows)
    left_out = [
        {"stage": STAGE, "item": r.reference_id, "reason": f"{r.status}: {r.reason}"} for r in found if r.status != "ok"
    ]
    audit.write("rejected", left_out, shard="reference_images")
    usable = [(r.reference_id, open_rgb(r.address)) for r in found[:_SHEET_TILES] if r.status == "ok"]
    statuses = Counter(reference.status for reference in found)
    return table_result(
        audit,
        "reference_images",
        audit.read("reference_images"),
        num_rejected=len(left_out),
        statuses=markdown_table([{"status": status, "images": count} for status, count in statuses.items()]),
        contact_sheet=picture(contact_sheet(usable, columns=10), "references"),
    )


def _read(audit: "AuditedCheckpoint") -> "Iterator[ReferenceImage]":
    """The reference set. What was seen of each picture is kept beside the store, by its size and time of change."""
    from fbmem_core.inputs.references import read_references

    kept = audit.store.local / "cache" / "reference_images.sqlite"
    return read_references(audit.config.references, cache=kept)


@dg.asset_check(asset=reference_images, partitions_def=checkpoint_partitions)
def some_references_are_usable(context: dg.AssetCheckExecutionContext, store: AuditStore) -> dg.AssetCheckResult:
    """At least nine of ten references can be used; a smaller share means dead links or a wrong folder."""
    references = store.tables.read("reference_images", context.partition_key)
    usable = references.filter(references["status"] == "ok")
    share = len(usable) / max(len(references), 1)
    return dg.AssetCheckResult(
        passed=share >= 0.9, severity=dg.AssetCheckSeverity.WARN, metadata={"usable": len(usable), "share": share}
    )
