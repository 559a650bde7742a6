"""Watching: a checkpoint that changes becomes a partition and one run; a schedule audits again.

A tick reads names, sizes and times alone. What moved is looked at again a tick later, and hashed once it stands still:
beside the ticks, which end after a minute, so that a checkpoint of any size can be hashed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, TimeoutError
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster import DefaultScheduleStatus, DefaultSensorStatus

from fbmem_assets.orchestration.partitions import (
    checkpoint_of,
    checkpoint_partitions,
    partition_key,
    partitions_of,
    record_audit,
)
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.runs import PARTITION_TAG, end_dead_runs, is_running
from fbmem_core.audit.config import Audit
from fbmem_core.audit.file import dump_audit, load_audit
from fbmem_core.diffusion.checkpoint import Checkpoint, stamp
from fbmem_core.diffusion.hub import hub_revision
from fbmem_core.diffusion.pipeline_files import pipeline_files
from fbmem_core.errors import FbmemError
from fbmem_core.store.tables import digest

AUDITS_VARIABLE = "FBMEM_AUDITS"
DEFAULT_AUDITS = "data/audits"
JOB = "audit"
INTERVAL_SECONDS = 15
_HASHING_SECONDS = 20.0  # that all of a tick waits for hashing; Dagster ends a tick after 60
_HUB_EVERY_SECONDS = 300.0


class Seen(NamedTuple):
    """Memory of one tick about an audit file, for the next.

    `state` changes with the file's settings, the checkpoint and the version of fbmem; `request` is the run_key of the
    run that was requested for it; `hub` is the commit of a hub id and when it was asked for.
    """

    state: str = ""
    request: str = ""
    hub: tuple[str, float] = ("", 0.0)


class Waiting(FbmemError):
    """Nothing is wrong, or nothing that this tick can mend: the next one looks again."""


@dg.sensor(
    name="changed_checkpoints",
    job_name=JOB,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=DefaultSensorStatus.RUNNING if AUDITS_VARIABLE in os.environ else DefaultSensorStatus.STOPPED,
)
def changed_checkpoints(context: dg.SensorEvaluationContext, store: AuditStore) -> dg.SensorResult:
    """Audits the checkpoint of every audit file in the folder FBMEM_AUDITS (data/audits), anew whenever it changes.

    On from the start where FBMEM_AUDITS is set.
    """
    before = {file: Seen(*fields) for file, fields in json.loads(context.cursor or "{}").items()}
    after: dict[str, Seen] = {}
    requests: dict[str, dg.RunRequest] = {}
    messages = []
    deadline = time.monotonic() + _HASHING_SECONDS
    end_dead_runs(context.instance, store.locks)
    for file in audit_files():
        after[str(file)] = seen = before.get(str(file), Seen())
        try:
            audit = load_audit(file)
            seen, mark = _mark(audit, seen)
            state = digest(mark, dump_audit(audit), version("fbmem"))
            if state != seen.state:
                after[str(file)] = seen._replace(state=state, request="")
                raise Waiting("it changed; looking again at the next tick")
            after[str(file)] = seen
            if seen.request:
                continue
            checkpoint = _fingerprinted(audit, mark, deadline)
            key = partition_key(audit, checkpoint)
            if key in requests:
                raise Waiting(f"another audit file has the name `{audit.name}` and the same checkpoint")
            run_key = _run_key(context.instance, key, audit)
            record_audit(audit, checkpoint, store.tables)
            requests[key] = dg.RunRequest(run_key=run_key, partition_key=key)
            after[str(file)] = seen._replace(request=run_key)
        except (FbmemError, OSError, CancelledError) as error:  # OSError: files that cannot be read, or just went
            messages.append(f"{file.name}: {error or type(error).__name__}")
            context.log.info(messages[-1])
    return dg.SensorResult(
        run_requests=list(requests.values()),
        dynamic_partitions_requests=[checkpoint_partitions.build_add_request(list(requests))] if requests else [],
        skip_reason=None if requests else "; ".join(messages) or "no checkpoint changed",
        cursor=json.dumps(after),
    )


@dg.schedule(name="reaudit", job_name=JOB, cron_schedule="0 3 * * 0", default_status=DefaultScheduleStatus.STOPPED)
def reaudit(context: dg.ScheduleEvaluationContext, store: AuditStore) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Audits the newest checkpoint of every audit file again, Sundays at three: for prompts or references that changed.

    Off until it is switched on. What did not change is kept, so a run in which nothing is new takes minutes.
    """
    requested = False
    for file in audit_files():
        try:
            audit = load_audit(file)
        except FbmemError as error:
            context.log.info(f"{file.name}: {error}")
            continue
        for key in partitions_of(store.tables, audit.name)[-1:]:
            if not is_running(context.instance, key):
                requested = True
                yield dg.RunRequest(run_key=f"{context.scheduled_execution_time}:{key}", partition_key=key)
    if not requested:
        yield dg.SkipReason("no audit file has a registered checkpoint that is not being audited")


def audit_files() -> list[Path]:
    """The audit files that are watched."""
    folder = Path(os.environ.get(AUDITS_VARIABLE, DEFAULT_AUDITS)).resolve()
    return sorted(path for path in folder.glob("*") if path.suffix in (".yaml", ".yml"))


def _mark(audit: Audit, seen: Seen) -> tuple[Seen, str]:
    """Cheap mark that changes when the checkpoint does; of a hub id its commit, asked for every five minutes."""
    directory = Path(audit.checkpoint)
    if directory.is_dir():
        return seen, stamp(directory, pipeline_files(directory, allow_pickle=audit.allow_pickle))
    commit, asked_at = seen.hub
    if time.time() - asked_at >= _HUB_EVERY_SECONDS:
        commit, asked_at = hub_revision(audit.checkpoint, revision=audit.revision), time.time()
    return seen._replace(hub=(commit, asked_at)), commit


_fingerprints: dict[str, Future[Checkpoint]] = {}


def _fingerprinted(audit: Audit, mark: str, deadline: float) -> Checkpoint:
    """The checkpoint, once it is hashed (and fetched); else Waiting, while that goes on beside the ticks."""
    directory = Path(audit.checkpoint)
    if mark not in _fingerprints:
        _fingerprints[mark] = _start(audit, None if directory.is_dir() else mark)
    try:
        checkpoint = _fingerprints[mark].result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise Waiting("its checkpoint is being read") from None
    except (FbmemError, OSError, CancelledError):
        del _fingerprints[mark]
        raise
    if directory.is_dir() and stamp(directory, pipeline_files(directory, allow_pickle=audit.allow_pickle)) != mark:
        raise Waiting("its checkpoint changed while it was read")
    return checkpoint


def _start(audit: Audit, revision: str | None) -> Future[Checkpoint]:
    checkpoint: Future[Checkpoint] = Future()

    def work() -> None:
        try:
            checkpoint.set_result(checkpoint_of(audit, revision=revision))
        except (FbmemError, OSError) as error:
            checkpoint.set_exception(error)
        finally:
            checkpoint.cancel()  # does nothing to one that is done

    threading.Thread(target=work, daemon=True).start()  # a process that ends does not wait for it
    return checkpoint


def _run_key(instance: dg.DagsterInstance, key: str, audit: Audit) -> str:
    """Dagster starts one run per run_key, for ever, also after a restart.

    It holds the settings, the version of fbmem and how many runs failed: an audit that failed runs again when its file,
    its checkpoint's files or fbmem are touched, one that went well does not.
    """
    if is_running(instance, key):
        raise Waiting(f"{key} is being audited; waiting until it ends")
    failed = dg.RunsFilter(tags={PARTITION_TAG: key}, statuses=[dg.DagsterRunStatus.FAILURE])
    return f"{key}:{digest(dump_audit(audit), version('fbmem'))}:{instance.get_runs_count(failed)}"
