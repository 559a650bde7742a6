"""Verification that an audit is what it was: hashes of all files, settings, labels and similarities computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fbmem_core.audit.config import Audit
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint, open_audit
from fbmem_core.errors import InputError
from fbmem_core.inputs.addresses import read_bytes
from fbmem_core.labels import label_generation
from fbmem_core.store.images import file_sha256
from fbmem_core.store.manifest import MANIFEST, read_manifest
from fbmem_core.store.tables import Store, rows_sha256

_TOLERANCE = 1e-3  # of a similarity: kernels sum in another order on another machine
_IMAGE = ["method", "prompt_id", "seed"]


@dataclass(frozen=True)
class Difference:
    """One thing that is no longer what it was. `is_missing`: it is not there, so that nothing can be said of it."""

    item: str
    reason: str
    is_missing: bool = False


def verify_store(
    store: Store,
    checkpoint: str,
    *,
    sample: int = 20,
    report: Callable[[str], None] = lambda what: None,
) -> Iterator[Difference]:
    """Everything of one audited checkpoint that is no longer what it was.

    Looked at are: the manifest of its report, if there is one; the SHA-256 of every image and reference; what was
    frozen when the labels were made; every label, computed again from its similarities; similarities, computed again
    from the pixels, of `sample` images and of all that lie in a file which the manifest says was altered; the model's
    weights, if they are still there.

    Args:
        store: Where it lies, now.
        checkpoint: Its partition.
        sample: Images whose similarities are computed again; 0 for none.
        report: Called with what is looked at next.

    Raises:
        InputError: The checkpoint was never audited in this store, or a table cannot be read.
    """
    audit = open_audit(store, checkpoint)
    manifest = store.root / "reports" / checkpoint / MANIFEST
    altered: list[str] = []
    if manifest.is_file():
        report("files of the manifest")
        for difference in verify_manifest(store, manifest):
            altered.append(difference.item)
            yield difference
    report("images")
    yield from _files(audit)
    report("settings")
    config, differences = _frozen(audit)
    yield from differences
    report("labels")
    yield from _labels(audit, config)
    report("similarities")
    yield from _similarities(audit, config, sample, altered)
    report("weights")
    yield from _weights(audit)


def verify_manifest(store: Store, manifest: Path) -> Iterator[Difference]:
    """Files of a manifest, each that is gone or has another SHA-256; those of the report lie beside the manifest."""
    content = read_manifest(manifest)
    files = [(name, store.root / name, digest) for name, digest in content["files"].items()]
    files += [(name, manifest.parent / name, digest) for name, digest in content["report"].items()]
    for name, path, digest in files:
        if not path.is_file():
            yield Difference(name, "the file is gone")
        elif file_sha256(path) != digest:
            yield Difference(name, "the file was altered: it has another SHA-256 than the manifest says")


def _files(audit: AuditedCheckpoint) -> Iterator[Difference]:
    for row in audit.read("generations").iter_rows(named=True):
        name = f"image {row['method']}/{row['prompt_id']}/{row['seed']}"
        path = audit.store.root / row["path"]
        if not path.is_file():
            yield Difference(name, f"no file {path}")
        elif file_sha256(path) != row["sha256"]:
            yield Difference(name, f"{path} has another SHA-256 than its row says")
    for row in audit.references.iter_rows(named=True):
        name, content = f"reference {row['reference_id']}", _content(row["path"])
        if content is None:
            yield Difference(name, f"no file {row['path']}", is_missing=True)
        elif hashlib.sha256(content).hexdigest() != row["sha256"]:
            yield Difference(name, f"{row['path']} has another SHA-256 than its row says")


def _content(address: str) -> bytes | None:
    """The bytes of a reference, wherever it lies; None where it is gone."""
    try:
        return read_bytes(address)
    except (OSError, InputError, KeyError, ValueError):
        return None


def _frozen(audit: AuditedCheckpoint) -> tuple[Audit, list[Difference]]:
    """The settings that the labels were made with, and what does not agree with them."""
    rows = audit.read("audit_settings").to_dicts()
    if not rows:
        raise InputError("frozen settings", "none", where=audit.partition, cure="Run `fbmem audit` again.")
    [row] = rows
    config = Audit.model_validate_json(row["settings"])
    values = config.similarity.model_dump() | config.sampling.model_dump()
    values |= {"masking": config.similarity.masking[0], "rule": config.similarity.rule[0],
               "floor": config.similarity.lowest, "first_seed": config.sampling.seed,
               "segmenter": config.segmentation.model, "samples_per_prompt": config.samples_per_prompt}  # fmt: skip
    differences = [
        Difference(f"setting {name}", f"audit_settings says {row[name]}, its settings say {values[name]}")
        for name in row
        if name in values and row[name] != values[name]
    ]
    records = audit.read("records").filter(asset="labels").to_dicts()
    if records and json.loads(records[0]["settings"]) != json.loads(row["settings"]):
        differences.append(Difference("settings", "audit_settings and the record of `labels` do not agree"))
    inputs = {
        "prompts": audit.read("prompts").select("prompt_id", "prompt"),
        "references": audit.references.select("reference_id", "sha256"),
        "generations": audit.read("generations", BASELINE).select("prompt_id", "seed", "sha256"),
    }
    differences += [
        Difference(f"table {name}", "its rows have another hash than when the labels were made")
        for name, table in inputs.items()
        if rows_sha256(table.rows()) != row[f"{name}_sha256"]
    ]
    return config, differences


def _labels(audit: AuditedCheckpoint, config: Audit) -> Iterator[Difference]:
    """Labels that do not follow from their similarities, their mattes and the frozen settings."""
    settings, fractions = config.similarity, audit.foreground_fractions
    stored = {
        (*(row[name] for name in _IMAGE), row["masking"], row["rule"]): row
        for row in audit.read("labels", BASELINE).iter_rows(named=True)
    }
    for image, masking, pairs in audit.pairs(BASELINE):
        for rule in settings.rule:
            row = stored.pop((*image, masking, rule), None)
            name = f"label {image.image_id} {masking} {rule}"
            if row is None:
                yield Difference(name, "there is no such row")
                continue
            label = label_generation(
                pairs,
                foreground_fraction=fractions[image.image_id],
                rule=rule,
                tau=settings.tau,
                beta=settings.beta,
            )
            wrong = [
                column for column, value in asdict(label).items() if column in row and not _same(row[column], value)
            ]
            if wrong:
                yield Difference(name, f"{', '.join(wrong)} do not follow from its similarities")
    for key in stored:
        yield Difference(f"label {'/'.join(map(str, key))}", "there are no similarities for it")


def _similarities(audit: AuditedCheckpoint, config: Audit, sample: int, altered: Sequence[str]) -> Iterator[Difference]:
    """Similarities that the pixels do not give."""
    # what was aligned before it was compared is checked by its label alone
    table = audit.read("similarities", BASELINE).filter(pl.col("transform") == "whole")
    chosen = _chosen(audit, table, sample, altered)
    if chosen.is_empty():
        return
    references = audit.references.filter(pl.col("reference_id").is_in(table["reference_id"].unique().implode()))
    gone = [path for path in references["path"] if _content(path) is None]
    if gone:
        yield Difference("similarities", f"{len(gone)} references are not there: {gone[0]}", is_missing=True)
        return
    from fbmem_core.retrieval.image_sets import load_image_set
    from fbmem_core.retrieval.neighbors import pair_similarities

    size = config.similarity.size
    mattes = {kind: audit.mattes(kind) for kind in ("generation", "reference")}
    images = chosen.select(_IMAGE).unique(maintain_order=True)
    paths = audit.read("generations").join(images, on=_IMAGE, how="semi").rows(named=True)
    generated = load_image_set(
        [(_id(row), audit.store.root / row["path"], mattes["generation"][_id(row)]) for row in paths], size=size
    )
    files = references.select("reference_id", "path").rows()
    originals = load_image_set([(name, path, mattes["reference"][name]) for name, path in files], size=size)
    stored = {(_id(row), row["reference_id"], row["masking"]): row for row in chosen.iter_rows(named=True)}
    for masking in config.similarity.masking:
        pairs = [key[:2] for key in stored if key[2] == masking]
        for image_id, values in pair_similarities(generated, originals, pairs, masking=masking):
            for value in values:
                row = stored[image_id, value.reference_id, masking]
                wrong = [
                    region
                    for region in ("full", "foreground", "background")
                    if not _same(row[f"{region}_similarity"], getattr(value, region), _TOLERANCE)
                ]
                if wrong:
                    name = f"similarity {image_id} to {value.reference_id} ({masking})"
                    yield Difference(name, f"{', '.join(wrong)}: the pixels give another value")


def _chosen(audit: AuditedCheckpoint, table: pl.DataFrame, sample: int, altered: Iterable[str]) -> pl.DataFrame:
    """The rows of similarities that are computed again: of images spread over all, and of files that were altered."""
    images = table.select(_IMAGE).unique(maintain_order=True)
    step = max(1, len(images) // sample) if sample else len(images) + 1
    spread = images.gather_every(step)[:sample] if sample else images.clear()
    parts = [table.join(spread, on=_IMAGE, how="semi")]
    for name in altered:
        path = Path(name)
        if path.parts[:2] == ("tables", "similarities") and (audit.store.root / name).is_file():
            parts.append(audit.read("similarities", BASELINE, shard=path.stem))
    return pl.concat(parts).unique(maintain_order=True)


def _weights(audit: AuditedCheckpoint) -> Iterator[Difference]:
    from fbmem_core.diffusion.checkpoint import check_fingerprint

    if audit.read("checkpoints")["fingerprint"].to_list() != [audit.checkpoint.fingerprint]:
        yield Difference("weights", "the table checkpoints names another fingerprint than was registered")
    if not audit.checkpoint.directory.is_dir():
        yield Difference("weights", f"no folder {audit.checkpoint.directory}", is_missing=True)
        return
    try:
        check_fingerprint(audit.checkpoint, allow_pickle=audit.config.allow_pickle)
    except InputError as error:
        yield Difference("weights", str(error))


def _id(row: dict[str, Any]) -> str:
    return f"{row['method']}/{row['prompt_id']}/{row['seed']}"


def _same(before: Any, after: Any, tolerance: float = 1e-9) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return abs(before - after) <= tolerance
    return bool(before == after)
