"""Record of every asset: the settings, versions and device its rows were made with, and the time it took."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dagster as dg

from fbmem_assets.orchestration.executors import GPU, pool_of
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.audit.file import dump_audit
from fbmem_core.audit.results import BASELINE, AuditedCheckpoint
from fbmem_core.store.tables import rows_sha256

FINISHED, LEFT_OUT = "finished", "left_out"
CODE_VERSION = version("fbmem")
Context = dg.AssetExecutionContext | dg.OpExecutionContext


def forget_record(store: AuditStore, key: str, asset: str) -> None:
    """Remove what was recorded of an asset: it is at work, and its rows may be incomplete until it has finished."""
    store.tables.keep_shards("records", key, (), among=asset)


def write_record(
    context: Context, store: AuditStore, asset: str, table: str, result: dg.MaterializeResult, reason: str | None
) -> None:
    """Record that an asset has finished, or why it was left out, and with what it was made."""
    key = context.partition_key
    now = datetime.now(UTC)
    settings = dump_audit(store.open(key).config)
    started, seconds = _times(context, asset)
    metadata = result.metadata or {}
    version_of_rows = result.data_version.value if result.data_version is not None else None
    row = {
        "asset": asset, "table_name": table, "status": FINISHED if reason is None else LEFT_OUT, "reason": reason,
        "settings": settings, "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(), **versions(),
        "device": _device(store, key) if pool_of(table) == GPU else "cpu", "run_id": context.run.run_id,
        "started_at": started or now,
        "seconds": seconds, "num_rows": metadata.get("dagster/row_count"),
        "rows_sha256": version_of_rows,
    }  # fmt: skip
    store.tables.write("records", key, [row], shard=asset)


def record_of(store: AuditStore, key: str, asset: str) -> dict[str, Any] | None:
    """Record of the time when the asset last finished; None: it never did, or it is at work."""
    rows = store.tables.read("records", key, shard=asset).to_dicts()
    return rows[0] if rows else None


def frozen_settings(audit: AuditedCheckpoint) -> dict[str, Any]:
    """The row of `audit_settings`: what the labels were made with, and hashes of what went in."""
    similarity, sampling = audit.config.similarity, audit.config.sampling
    inputs = {
        "prompts": audit.read("prompts").select("prompt_id", "prompt"),
        "references": audit.references.select("reference_id", "sha256"),
        "generations": audit.read("generations", BASELINE).select("prompt_id", "seed", "sha256"),
    }
    return {
        "masking": similarity.masking[0], "rule": similarity.rule[0], "tau": similarity.tau, "beta": similarity.beta,
        "size": similarity.size, "floor": similarity.lowest, "top_k": similarity.top_k,
        "segmenter": audit.config.segmentation.model, "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale, "first_seed": sampling.seed,
        "samples_per_prompt": audit.config.samples_per_prompt, "height": sampling.height, "width": sampling.width,
        "dtype": sampling.dtype, "settings": dump_audit(audit.config),
        **{f"num_{name}": len(rows) for name, rows in inputs.items()},
        **{f"{name}_sha256": rows_sha256(rows.rows()) for name, rows in inputs.items()},
    }  # fmt: skip


@lru_cache(maxsize=1)
def versions() -> dict[str, str | None]:
    """Versions of fbmem, Python, torch and diffusers, and the commit of fbmem's repository, where it runs from one."""
    return {
        "fbmem_version": _version("fbmem"), "commit": _commit(), "python": platform.python_version(),
        "torch": _version("torch"), "diffusers": _version("diffusers"),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with `-dirty` where tracked files differ from it."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def _device(store: AuditStore, key: str) -> str:
    """The device that the audit computes on, with a GPU's name; as the audit names it where torch was not needed."""
    device = store.open(key).config.sampling.device
    if "torch" not in sys.modules:
        return device
    import torch

    from fbmem_core.diffusion.device import choose_device

    chosen = choose_device(device)
    return f"{chosen} ({torch.cuda.get_device_name(chosen)})" if chosen.startswith("cuda") else chosen


def _times(context: Context, asset: str) -> tuple[datetime | None, float]:
    """Time when the first step of the asset began, and the seconds that all of them took: several, if it is divided."""
    now = datetime.now(UTC).timestamp()
    steps = [
        (step.start_time, step.end_time or now)
        for step in context.instance.get_run_step_stats(context.run.run_id)
        if step.start_time is not None and step.step_key.split(".")[0] == asset
    ]
    if not steps:
        return None, 0.0
    return datetime.fromtimestamp(min(start for start, _ in steps), UTC), sum(end - start for start, end in steps)
