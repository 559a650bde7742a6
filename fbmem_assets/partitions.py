"""One partition per audited checkpoint: `<audit>-<first 12 hex of the fingerprint>`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from fbmem_core.audit import Audit, dump_audit, load_audit
from fbmem_core.diffusion.checkpoint import Checkpoint, find_checkpoint
from fbmem_core.errors import InputError
from fbmem_core.store.tables import Store

checkpoint_partitions = dg.DynamicPartitionsDefinition(name="checkpoint")
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{12}")


def register_audit(file: Path, store: Store, instance: dg.DagsterInstance) -> str:
    """Validate an audit file, fingerprint its checkpoint, keep both in the store and add the partition.

    What was registered is what runs: later edits of the file count when it is registered again.

    Returns:
        The partition key.
    """
    audit = load_audit(file)
    checkpoint = find_checkpoint(audit.checkpoint, revision=audit.revision, allow_pickle=audit.allow_pickle)
    key = f"{audit.name}-{checkpoint.fingerprint[:12]}"
    kept = {"audit": json.loads(dump_audit(audit)), "checkpoint": asdict(checkpoint)}
    store.write_bytes(_record(key), json.dumps(kept, indent=1, default=str).encode())
    known = store.read("checkpoints", key)
    row = {
        "audit": audit.name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "fingerprint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture,
        "created_at": known["created_at"][0] if len(known) else datetime.now(UTC),
    }
    store.write("checkpoints", key, [row])
    instance.add_dynamic_partitions("checkpoint", [key])
    return key


def registered_audit(store: Store, key: str) -> tuple[Audit, Checkpoint]:
    """The audit and the checkpoint of a partition.

    Raises:
        InputError: The key was never registered in this store.
    """
    path = store.root / _record(key)
    if not _KEY.fullmatch(key) or not path.is_file():
        raise InputError("a registered partition", f"`{key}`", where=store.root, cure="Run `fbmem register FILE`.")
    kept = json.loads(path.read_text(encoding="utf-8"))
    fields = kept["checkpoint"]
    return Audit.model_validate(kept["audit"]), Checkpoint(**{**fields, "directory": Path(fields["directory"])})


def _record(key: str) -> str:
    return f"audits/{key}.json"
