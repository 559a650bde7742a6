"""Runs at work: which there are, and the end of those whose process is gone."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from fbmem_core.errors import InputError
from fbmem_core.store.locks import partition_lock

PARTITION_TAG = "dagster/partition"
# who holds the partition's lock: a run of the command line, which no daemon watches
HOLDER_TAG = "fbmem/holder"
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING,
]  # fmt: skip


def is_running(instance: dg.DagsterInstance, key: str) -> bool:
    """True if a run of this partition waits or is at work."""
    return instance.get_runs_count(dg.RunsFilter(tags={PARTITION_TAG: key}, statuses=_UNFINISHED)) > 0


def end_dead_runs(instance: dg.DagsterInstance, locks: Path) -> list[str]:
    """Report the command-line runs of this machine that were killed as failed, and free their places in pools.

    A run at work holds the lock of its partition, and a lock ends with its process.

    Returns:
        The partitions of these runs.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        key = run.tags.get(PARTITION_TAG)
        if key is None or HOLDER_TAG not in run.tags:
            continue
        try:
            with partition_lock(locks, key, f"{run.run_id}, which is being ended"):
                instance.report_run_failed(run, "Its process is gone. Start the audit again: what is finished is kept.")
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
                ended.append(key)
        except InputError:
            pass  # it is at work
    return ended
