"""The command line: `fbmem audit`, `register`, `score`, `neurons`, `deactivate`, `sql`, `canary`.

Exit status 0 done, 2 bad input (one line, no traceback), 1 failed.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.commands.mitigations import mitigations
from fbmem_assets.commands.neurons import deactivate, neurons
from fbmem_assets.commands.score import score
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import FbmemError

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

DEFAULT_AUDIT = Path("data/audits/canary.yaml")
_INSTANCE_VARIABLE = "FBMEM_DAGSTER"
_INSTANCE_CONFIG = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
_FAILED = 1
_BAD_INPUT = 2
_STOPPED = 130  # as shells call an interrupt


class _Command(click.Group):
    """Shows every error of fbmem's own as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FbmemError as error:
            click.echo(f"fbmem: {error}", err=True)
            ctx.exit(_BAD_INPUT)


_file_argument = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_AUDIT)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbmem")
def main() -> None:
    """Find out what a text-to-image diffusion model has memorized."""


@main.command()
@_file_argument
@store_option
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
def audit(file: Path, store: str, until: str | None) -> None:
    """Audit the checkpoint of FILE (the shipped canary by default) and print its label table.

    What is finished is kept: a second run goes on where the first was stopped.
    """
    instance = _instance(store)
    import dagster as dg

    from fbmem_assets.orchestration.executors import EXECUTOR_VARIABLE

    os.environ.pop(EXECUTOR_VARIABLE, None)  # it is for runs that the UI launches
    from fbmem_assets.definitions import STAGES, assets, checks
    from fbmem_assets.orchestration.partitions import register_audit
    from fbmem_assets.orchestration.resources import AuditStore
    from fbmem_assets.orchestration.runs import HOLDER_TAG, end_dead_runs
    from fbmem_core.store.locks import partition_lock
    from fbmem_core.store.tables import Store

    stages = [module.STAGE for module in STAGES]
    if until is not None and until not in stages:
        raise click.BadParameter(f"expected one of {', '.join(stages)}, but got `{until}`", param_hint="--until")
    resource = AuditStore(root=str(Store(store).root))
    key = register_audit(file, resource.tables, instance)
    click.echo(f"auditing {key}", err=True)
    chosen = stages if until is None else stages[: stages.index(until) + 1]
    parts: list[Any] = [*assets, *checks]
    end_dead_runs(instance, resource.locks)
    holder = f"{socket.gethostname()} process {os.getpid()}"
    with partition_lock(resource.locks, key, holder):
        result = dg.materialize(
            parts,
            instance=instance,
            partition_key=key,
            resources={"store": resource},
            selection=dg.AssetSelection.groups(*chosen),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={HOLDER_TAG: holder},
            raise_on_error=False,
        )
    if not result.success:
        _explain_failure(result)
    _print_outcome(resource, key, result, chosen)


@main.command()
@_file_argument
@store_option
def register(file: Path, store: str) -> None:
    """Make the checkpoint of FILE a partition that the Dagster UI can audit, and print its key."""
    instance = _instance(store)
    from fbmem_assets.orchestration.partitions import register_audit
    from fbmem_core.store.tables import Store

    click.echo(register_audit(file, Store(store), instance))


@main.command()
@click.argument("query")
@store_option
def sql(query: str, store: str) -> None:
    """Run QUERY over the tables of a store and print the rows."""
    from fbmem_core.store.tables import Store
    from fbmem_core.store.warehouse import query as run_query

    rows = run_query(Store(store), query)
    if rows is not None:
        _print_table(rows)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/canary"), show_default=True)
@click.option("--state", type=click.Path(path_type=Path), default=Path("data/store/canary"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--pictures-only", is_flag=True, help="Write prompts, references and truth, train nothing.")
def canary(out: Path, state: Path, device: str, pictures_only: bool) -> None:
    """Draw the canary's pictures and train its models; a stopped training goes on where it was."""
    from fbmem_core.canary.export import write_pictures

    write_pictures(out)
    if pictures_only:
        return
    from tqdm import tqdm

    from fbmem_core.canary.export import write_models
    from fbmem_core.canary.recipe import Recipe
    from fbmem_core.canary.training import Trainer

    bars: dict[str, tqdm[Any]] = {}

    def report(stage: str, step: int, num_steps: int, loss: float) -> None:
        if stage not in bars:
            bars[stage] = tqdm(desc=stage, total=num_steps, initial=step - 1, mininterval=5)
        bars[stage].set_postfix(loss=f"{loss:.4f}", refresh=False)
        bars[stage].update()

    write_models(Trainer(state, recipe=Recipe(), device=device, report=report), out)


main.add_command(score)
main.add_command(neurons)
main.add_command(deactivate)
main.add_command(mitigations)


def _instance(store: str) -> dg.DagsterInstance:
    """The Dagster instance: DAGSTER_HOME, else the project in the current folder, else a small one inside the store
    (of an object store, in the local folder that belongs to it)."""
    from fbmem_core.store.tables import Store

    storage = Store(store).local / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(_INSTANCE_VARIABLE, str(storage))
    if "DAGSTER_HOME" not in os.environ:
        home = Path.cwd() if Path("dagster.yaml").is_file() else storage
        if home == storage and not (home / "dagster.yaml").exists():
            (home / "dagster.yaml").write_text(_INSTANCE_CONFIG, encoding="utf-8")
        os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    return dg.DagsterInstance.get()


def _explain_failure(result: dg.ExecuteInProcessResult) -> None:
    """One line for fbmem's own errors (status 2) and an interrupt (130); else the step and its traceback (1)."""
    status = _FAILED
    told = set()
    for event in result.all_events:
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
            sys.exit(_STOPPED)
        if cause.cls_name in {"InputError", "WeightsNotFoundError"}:
            status = _BAD_INPUT
            click.echo(f"fbmem: {name}: {cause.message.split(': ', 1)[-1].strip()}", err=True)
        else:
            click.echo(f"fbmem: {name} failed\n{cause.to_string()}", err=True)
    sys.exit(status)


def _print_outcome(store: Any, key: str, result: dg.ExecuteInProcessResult, chosen: list[str]) -> None:
    import polars as pl

    from fbmem_assets.stages.labels import label_table

    audit = store.open(key)
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            facts = ", ".join(f"{name} {value.value}" for name, value in evaluation.metadata.items())
            click.echo(f"check failed: {evaluation.check_name} ({facts})", err=True)
    if "labels" in chosen:
        rule = audit.config.similarity.rule[0]
        table = label_table(audit).filter(pl.col("rule") == rule).drop("rule")
        click.echo(f"\ngenerations of {key} by kind of prompt and label, rule {rule}")
        _print_table(table)
    if "scores" in chosen and audit.config.mitigations.methods:
        from fbmem_assets.stages.scores import method_table

        click.echo(f"\nmitigations of {key}: score, share of each label among memorized prompts' images, price")
        _print_table(method_table(audit))
        click.echo("every method, on more images and under attack: fbmem audit data/audits/canary-mitigations.yaml")
    if "report" in chosen:
        click.echo(f"tables: {store.tables.root / 'fbmem.duckdb'}")
        click.echo("ask:    fbmem sql \"select label, count(*) from labels where method = 'none' group by label\"")


def _print_table(rows: pl.DataFrame) -> None:
    import polars as pl

    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=200, tbl_width_chars=200) as config:
        config.set_tbl_hide_dataframe_shape(True)
        config.set_tbl_hide_column_data_types(True)
        click.echo(str(rows))


if __name__ == "__main__":
    main()
