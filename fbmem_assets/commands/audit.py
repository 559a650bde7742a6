"""`fbmem audit`: one whole audit, its outcome in a few lines and the path of its report."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.commands.instance import open_instance
from fbmem_assets.commands.output import show
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import FbmemError

if TYPE_CHECKING:
    import dagster as dg

    from fbmem_assets.orchestration.resources import AuditStore
    from fbmem_core.audit.config import Audit

DEFAULT_AUDIT = Path("data/audits/canary.yaml")
FAILED, CHECK_FAILED, REACHED, STOPPED = 1, 3, 4, 130  # the last as shells call an interrupt
_FAIL_ON = ("copy", "VM", "FM", "BM", "new")
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_AUDIT)
@store_option
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option(
    "--fail-on",
    type=click.Choice(_FAIL_ON),
    multiple=True,
    help="End with status 4 if any image is a copy, or has this label; new: if a prompt is newly memorized.",
)
def audit(file: Path, store: str, until: str | None, fail_on: tuple[str, ...]) -> None:
    """Audit the checkpoint of FILE, by default of the canary.

    What is finished is kept: a second run goes on where the first was stopped. The last line is the path of the report.
    Status 0: done; 1: a stage failed; 2: bad input; 3: a check failed; 4: --fail-on; 130: stopped.
    """
    instance = open_instance(store)
    import dagster as dg

    from fbmem_assets.orchestration.executors import EXECUTOR_VARIABLE

    os.environ.pop(EXECUTOR_VARIABLE, None)  # it is for runs that the UI launches
    from fbmem_assets.definitions import audit_job_in_process, stage_names
    from fbmem_assets.orchestration.partitions import register_audit
    from fbmem_assets.orchestration.resources import AuditStore
    from fbmem_assets.orchestration.runs import HOLDER_TAG, end_dead_runs
    from fbmem_core.store.locks import partition_lock
    from fbmem_core.store.tables import Store

    stages = stage_names()
    if until is not None and until not in stages:
        raise click.BadParameter(f"expected one of {', '.join(stages)}, but got `{until}`", param_hint="--until")
    chosen = stages if until is None else stages[: stages.index(until) + 1]
    resource = AuditStore(root=str(Store(store).root))
    key = register_audit(file, resource.tables, instance)
    _check_devices(resource.open(key).config)
    click.echo(f"auditing {key}", err=True)
    end_dead_runs(instance, resource.locks)
    # a check that does not apply gives no result, which Dagster warns of for each asset behind it
    logging.getLogger("dagster._core.execution.plan.active").setLevel(logging.ERROR)
    holder = f"{socket.gethostname()} process {os.getpid()}"
    with partition_lock(resource.locks, key, holder):
        result = audit_job_in_process(dg.AssetSelection.groups(*chosen)).execute_in_process(
            instance=instance,
            partition_key=key,
            resources={"store": resource},
            run_config=_QUIET,
            tags={HOLDER_TAG: holder},
            raise_on_error=False,
        )
        status = _explain(result)
        if status != STOPPED:
            status = max(status, _print_outcome(resource, key, result, chosen))
    if status == 0 and fail_on:
        status = _gate(resource, key, fail_on)
    if status:
        sys.exit(status)


def _check_devices(config: Audit) -> None:
    """Refuse a device that is not there before anything is read; torch is asked for named ones alone."""
    for device in {config.sampling.device, config.similarity.device} - {"auto", "cpu"}:
        from fbmem_core.diffusion.device import choose_device

        choose_device(device)


def _explain(result: dg.ExecuteInProcessResult) -> int:
    """One line for an error of fbmem, with its status, and an interrupt (130); else the step and its traceback (1)."""
    status, statuses = 0 if result.success else FAILED, FbmemError.exit_statuses()
    told = set()
    for event in [] if result.success else result.all_events:
        # a step that failed, or, before any step, the store that all of them share
        cause = getattr(event.event_specific_data, "error", None)
        while cause is not None and cause.cause is not None:
            cause = cause.cause
        if cause is None or cause.to_string() in told or not (event.is_step_failure or event.step_key is None):
            continue
        told.add(cause.to_string())
        name = (event.step_key or event.job_name).split(".")[0]  # of an asset in several steps, the asset
        if cause.cls_name == "DagsterExecutionInterruptedError":
            click.echo(f"fbmem: stopped in {name}. What is finished is kept: the same command goes on there.", err=True)
            return STOPPED
        if cause.cls_name == "DagsterAssetCheckFailedError":
            status = max(status, CHECK_FAILED)  # its check is named with the others
        elif cause.cls_name in statuses:
            status = max(status, statuses[cause.cls_name])
            click.echo(f"fbmem: {name}: {cause.message.split(': ', 1)[-1].strip()}", err=True)
        else:
            click.echo(f"fbmem: {name} failed\n{cause.to_string()}", err=True)
    return status


def _print_outcome(store: AuditStore, key: str, result: dg.ExecuteInProcessResult, chosen: Sequence[str]) -> int:
    """Failed checks, what was left out, the label table, that of mitigations and the report; also after a failure.

    Returns:
        3 if a check of severity ERROR failed, else 0.
    """
    status = _print_checks(result)
    _print_left_out(store, key)
    if "labels" in chosen and not store.tables.read("labels", key).is_empty():
        _print_labels(store, key)
    if "thresholds" in chosen and not store.tables.read("thresholds", key).is_empty():
        _print_threshold(store, key)
    if "scores" in chosen and not store.tables.read("mitigation_scores", key).is_empty():
        _print_mitigations(store, key)
    if "report" in chosen or not result.success:
        _print_files(store, key, result, chosen)
    return status


def _print_checks(result: dg.ExecuteInProcessResult) -> int:
    status = 0
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            is_error = evaluation.severity.value == "ERROR"
            kind = "check failed" if is_error else "warning"
            click.echo(f"{kind}: {evaluation.check_name}: {evaluation.description}", err=True)
            status = CHECK_FAILED if is_error else status
    return status


def _print_left_out(store: AuditStore, key: str) -> None:
    """Each reason once, with the first asset that it concerns."""
    rows = store.tables.read("records", key)
    told: set[str] = set()
    for row in rows.filter(status="left_out").sort("started_at").iter_rows(named=True):
        reason = row["reason"].rpartition("was left out: ")[-1]
        if reason not in told:
            click.echo(f"left out: {row['asset']} and what needs it: {reason}", err=True)
        told.add(reason)


def _print_labels(store: AuditStore, key: str) -> None:
    import polars as pl

    from fbmem_assets.commands.score import search_lines
    from fbmem_assets.stages.labels import label_table

    audit = store.open(key)
    masking, rule = audit.config.similarity.masking[0], audit.config.similarity.rule[0]
    table = label_table(audit).filter((pl.col("masking") == masking) & (pl.col("rule") == rule))
    click.echo(f"\nimages of {key} by kind of prompt and label (masking {masking}, rule {rule})")
    show(table.drop("masking", "rule"), piped="markdown", digits=3)
    for line in search_lines(audit.summary_labels()):
        click.echo(line)


def _print_threshold(store: AuditStore, key: str) -> None:
    from fbmem_assets.stages.thresholds import headline

    click.echo(f"false copies: {headline(store.tables.read('thresholds', key))}")


def _print_mitigations(store: AuditStore, key: str) -> None:
    from fbmem_assets.stages.scores import method_table

    click.echo(f"\nmitigations of {key}: score, share of each label left among memorized prompts' images, cost")
    show(method_table(store.open(key)), piped="markdown", digits=2)
    click.echo("every method, on more images and under attack: fbmem audit data/audits/canary-mitigations.yaml")


def _print_files(store: AuditStore, key: str, result: dg.ExecuteInProcessResult, chosen: Sequence[str]) -> None:
    from fbmem_assets.stages.report import report_path, write_evidence

    if store.tables.read("labels", key).is_empty():
        return
    is_done = result.success and "report" in chosen
    report = report_path(store, key) if is_done else write_evidence(store, key)
    click.echo(f"\ntables: {store.tables.root / 'fbmem.duckdb'}")
    question = f"select label, count(*) as images from findings where checkpoint = '{key}' group by label"
    command = Path(sys.argv[0]) if Path(sys.argv[0]).name == "fbmem" else Path("fbmem")
    click.echo(f'ask:    {command} sql "{question}" --store {store.tables.root}')
    click.echo(f"report: {report}")


def _gate(store: AuditStore, key: str, fail_on: Sequence[str]) -> int:
    """4 if anything of what --fail-on names is there."""
    labels = store.open(key).summary_labels()["label"]
    counts: dict[str, Any] = {name: int((labels == name).sum()) for name in ("VM", "FM", "BM")}
    counts["copy"] = sum(counts.values())
    counts["new"] = store.tables.read("audit_diff", key).filter(change="newly_memorized").height
    reached = [f"{counts[name]} {name}" for name in fail_on if counts[name]]
    if reached:
        click.echo(f"fbmem: --fail-on: {', '.join(reached)}", err=True)
    return REACHED if reached else 0
