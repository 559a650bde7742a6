"""One partition per audited checkpoint: `<audit>-<first 12 hex of the fingerprint>`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from fbmem_core.audit.config import Audit
from fbmem_core.audit.file import dump_audit, load_audit
from fbmem_core.audit.results import record_path
from fbmem_core.audit.settle import settled_audit
from fbmem_core.diffusion.adapters import LoadedAdapter
from fbmem_core.diffusion.checkpoint import Checkpoint, find_checkpoint
from fbmem_core.store.tables import Store

checkpoint_partitions = dg.DynamicPartitionsDefinition(name="checkpoint")
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{12}")


def register_audit(file: Path, store: Store, instance: dg.DagsterInstance) -> str:
    """Validate an audit file, fingerprint its checkpoint, record both and add the partition.

    Returns:
        The partition key.
    """
    audit = load_audit(file)
    checkpoint = checkpoint_of(audit)
    key = record_audit(audit, checkpoint, store)
    instance.add_dynamic_partitions("checkpoint", [key])
    return key


def checkpoint_of(audit: Audit, *, revision: str | None = None) -> Checkpoint:
    """The checkpoint that an audit names, with its adapters, fingerprinted.

    Args:
        audit: A validated audit.
        revision: In the place of the audit's own.

    Raises:
        InputError: It cannot be audited.
        WeightsNotFoundError: It is not to be had.
    """
    return find_checkpoint(
        audit.checkpoint,
        revision=revision or audit.revision,
        allow_pickle=audit.allow_pickle,
        config=audit.config,
        adapters=[LoadedAdapter(**dict(adapter)) for adapter in audit.adapters],
    )


def record_audit(audit: Audit, checkpoint: Checkpoint, store: Store) -> str:
    """Keep an audit and its checkpoint in the store. What was recorded is what runs: later edits of the file do not.

    Returns:
        The partition key.
    """
    audit, key = settled_audit(audit, checkpoint), partition_key(audit, checkpoint)
    kept = {"audit": json.loads(dump_audit(audit)), "checkpoint": asdict(checkpoint)}
    store.write_bytes(record_path(key), json.dumps(kept, indent=1, default=str).encode())
    registered = store.read("checkpoints", key)
    row = {
        "audit": audit.name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "fingerprint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture,
        "created_at": registered["created_at"][0] if len(registered) else datetime.now(UTC),
    }
    store.write("checkpoints", key, [row])
    return key


def partition_key(audit: Audit, checkpoint: Checkpoint) -> str:
    """`<audit>-<first 12 hex of the fingerprint>`."""
    return f"{audit.name}-{checkpoint.fingerprint[:12]}"


def partitions_of(store: Store, audit: str) -> list[str]:
    """The partitions of the audit of this name, in the order in which they were first registered."""
    rows = pl.concat(store.read("checkpoints", key) for key in ["", *store.partitions("checkpoints")])
    return rows.filter(pl.col("audit") == audit).sort("created_at", "checkpoint")["checkpoint"].to_list()
