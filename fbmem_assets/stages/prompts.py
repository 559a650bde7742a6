"""Stage prompts: what the model is asked, and the training images that it may have memorized."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import dagster as dg

from fbmem_assets.orchestration.checks import Verdict, table_check
from fbmem_assets.orchestration.progress import track
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import markdown_table, picture, shown, table_asset, table_result
from fbmem_core.audit.config import Audit
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from fbmem_core.inputs.references import ReferenceImage

STAGE = "prompts"
_SHEET_TILES = 60


@table_asset(table="prompts", stage=STAGE)
def prompts(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per prompt. Read from the audit's prompt file; rows that cannot be used are counted in `rejected`."""
    from fbmem_core.inputs.prompts import read_prompts

    audit = store.open(context.partition_key)
    prompts, rejected = read_prompts(audit.config.prompts)
    _check_truth(audit.config, {prompt.prompt_id for prompt in prompts})
    audit.write("prompts", [{"audit": audit.config.name, **asdict(prompt)} for prompt in prompts])
    audit.write("rejected", [{"stage": STAGE, **asdict(item)} for item in rejected], shard="prompts")
    kinds = Counter(prompt.kind or "" for prompt in prompts)
    return table_result(
        audit,
        "prompts",
        audit.read("prompts"),
        num_rejected=len(rejected),
        kinds=markdown_table([{"kind": kind, "prompts": count} for kind, count in kinds.items()]),
    )


@table_check(prompts, severity=dg.AssetCheckSeverity.WARN)
def every_prompt_is_read_to_its_end(audit: AuditedCheckpoint) -> Verdict:
    """No prompt has more tokens than the model's text encoder reads: two that differ behind those give equal images."""
    from fbmem_core.diffusion.tokens import count_tokens

    prompts = audit.prompts
    counts, limit = count_tokens(audit.checkpoint.directory, audit.checkpoint.architecture, list(prompts.values()))
    cut = [prompt_id for prompt_id, count in zip(prompts, counts, strict=True) if count > limit]
    if not prompts:
        return Verdict(None, "there are no prompts")
    longest, names = max(counts, default=0), ", ".join(cut[:20]) or "none"
    sentence = f"{len(cut)} of {len(prompts)} prompts have more than the {limit} tokens that are read: {names}"
    facts = {"prompts that are cut": len(cut), "tokens that are read": limit, "longest": longest, "prompt ids": names}
    return Verdict(not cut, sentence, facts)


@table_check(prompts, severity=dg.AssetCheckSeverity.WARN)
def every_kind_of_samples_is_there(audit: AuditedCheckpoint) -> Verdict:
    """Check that each kind that `samples_by_kind` names is that of a prompt: it may be misspelt."""
    named, kinds = list(audit.config.samples_by_kind), set(audit.read("prompts")["kind"].drop_nulls())
    if not named:
        return Verdict(None, "the audit file names no kind of prompts")
    missing = [name for name in named if name not in kinds]
    there = ", ".join(sorted(kinds)) or "none"
    sentence = f"samples_by_kind names {', '.join(missing)}, which no prompt has; kinds of the prompts: {there}"
    return Verdict(not missing, sentence if missing else f"all {len(named)} kinds of samples_by_kind have prompts")


@table_asset(table="reference_images", stage=STAGE)
def reference_images(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One row per thing in the reference set: ok, missing, unreadable, placeholder, duplicate or unlisted."""
    from fbmem_core.inputs.pictures import open_rgb
    from fbmem_core.report.pictures import contact_sheet

    audit = store.open(context.partition_key)
    references = list(track(context, _read(audit), what="reading references"))
    _check_usable(audit.config, references)
    rows = []
    for reference in references:
        row = asdict(reference)
        del row["reason"]
        address = row.pop("address")
        rows.append({"audit": audit.config.name, **row, "path": address or reference.path})
    audit.write("reference_images", rows)
    left_out = [
        {"stage": STAGE, "item": r.reference_id, "reason": f"{r.status}: {r.reason}"}
        for r in references
        if r.status != "ok"
    ]
    audit.write("rejected", left_out, shard="reference_images")
    usable = [(r.reference_id, open_rgb(r.address)) for r in references[:_SHEET_TILES] if r.status == "ok"]
    statuses = Counter(reference.status for reference in references)
    return table_result(
        audit,
        "reference_images",
        audit.read("reference_images"),
        num_rejected=len(left_out),
        statuses=markdown_table([{"status": status, "images": count} for status, count in statuses.items()]),
        contact_sheet=picture(contact_sheet(usable, columns=10), "references"),
        contact_sheet_shows=shown(len(usable), len(references), "references"),
    )


def _read(audit: "AuditedCheckpoint") -> "Iterator[ReferenceImage]":
    """The reference set. What was seen of each picture is kept beside the store, by its size and time of change."""
    from fbmem_core.inputs.references import read_references

    kept = audit.store.local / "cache" / "reference_images.sqlite"
    return read_references(audit.config.references, cache=kept)


@table_check(reference_images, severity=dg.AssetCheckSeverity.WARN)
def some_references_are_usable(audit: AuditedCheckpoint) -> Verdict:
    """Check that at least nine of ten references can be used; a smaller share means dead links or a wrong folder."""
    references = audit.read("reference_images")
    usable = references.filter(references["status"] == "ok")
    share = len(usable) / max(len(references), 1)
    sentence = f"{len(usable)} of {len(references)} references can be used"
    return Verdict(share >= 0.9, sentence, {"usable": len(usable), "share": share})


def _check_truth(config: Audit, prompt_ids: set[str]) -> None:
    """A truth file that cannot be used ends the audit before anything is sampled."""
    from fbmem_core.inputs.truth import read_truth

    if config.truth is None:
        return
    truth = read_truth(config.truth)
    if prompt_ids.isdisjoint(truth["prompt_id"]):
        got = f"{len(truth)} others, such as `{next(iter(truth['prompt_id']), '')}`"
        cure = f"Use the ids of {config.prompts.name}, or remove `truth`."
        raise InputError("true labels of prompts of this audit", got, where=config.truth, cure=cure)


def _check_usable(config: Audit, references: "Sequence[ReferenceImage]") -> None:
    """Without a reference every image would be NM: the audit ends before anything is sampled."""
    if any(reference.status == "ok" for reference in references):
        return
    reasons = Counter(f"{reference.status}: {reference.reason}" for reference in references)
    got = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)) or "none"
    cure = "Put images there, or name another folder in `references`."
    raise InputError("at least one usable reference", got, where=config.references, cure=cure)
