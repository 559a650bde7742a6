"""The command line: `fbmem audit`, `fbmem register`, `fbmem sql`, `fbmem canary`.

Exit status 0 done, 2 bad input (one line, no traceback), 1 failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.resources import DEFAULT_STORE, STORE_VARIABLE
from fbmem_core.errors import FbmemError

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

DEFAULT_AUDIT = Path("data/audits/canary.yaml")
_INSTANCE_VARIABLE = "FBMEM_DAGSTER"
_INSTANCE_CONFIG = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
_FAILED = 1
_BAD_INPUT = 2


class _Command(click.Group):
    """Shows every error of fbmem's own as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FbmemError as error:
            click.echo(f"fbmem: {error}", err=True)
            ctx.exit(_BAD_INPUT)


_store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=STORE_VARIABLE,
    default=DEFAULT_STORE,
    show_default=True,
    help="Folder of everything that is produced.",
)
_file_argument = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_AUDIT)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbmem")
def main() -> None:
    """Find out what a text-to-image diffusion model has memorized."""


@main.command()
@_file_argument
@_store_option
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
def audit(file: Path, store: Path, until: str | None) -> None:
    """Audit the checkpoint of FILE (the shipped canary by default) and print its label table.

    What is finished is kept: a second run goes on where the first was stopped.
    """
    instance = _instance(store)
    import dagster as dg

    from fbmem_assets.definitions import STAGES, assets, checks
    from fbmem_assets.partitions import register_audit
    from fbmem_assets.resources import AuditStore

    stages = [module.STAGE for module in STAGES]
    if until is not None and until not in stages:
        raise click.BadParameter(f"expected one of {', '.join(stages)}, but got `{until}`", param_hint="--until")
    resource = AuditStore(root=str(store.resolve()))
    key = register_audit(file, resource.tables, instance)
    click.echo(f"auditing {key}", err=True)
    chosen = stages if until is None else stages[: stages.index(until) + 1]
    parts: list[Any] = [*assets, *checks]
    result = dg.materialize(
        parts,
        instance=instance,
        partition_key=key,
        resources={"store": resource},
        selection=dg.AssetSelection.groups(*chosen),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if not result.success:
        _explain_failure(result)
    _print_outcome(resource, key, result, chosen)


@main.command()
@_file_argument
@_store_option
def register(file: Path, store: Path) -> None:
    """Make the checkpoint of FILE a partition that the Dagster UI can audit, and print its key."""
    instance = _instance(store)
    from fbmem_assets.partitions import register_audit
    from fbmem_core.store.tables import Store

    click.echo(register_audit(file, Store(store), instance))


@main.command()
@click.argument("query")
@_store_option
def sql(query: str, store: Path) -> None:
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
    from fbmem_core.canary.training import Recipe, Trainer

    bars: dict[str, tqdm[Any]] = {}

    def report(stage: str, step: int, num_steps: int, loss: float) -> None:
        bar = bars.setdefault(stage, tqdm(desc=stage, total=num_steps, initial=step - 1, mininterval=5))
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update()

    write_models(Trainer(state, recipe=Recipe(), device=device, report=report), out)


def _instance(store: Path) -> dg.DagsterInstance:
    """The Dagster instance: DAGSTER_HOME, else the project in the current folder, else a small one inside the store."""
    storage = (store / "dagster").resolve()
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
    """One line for fbmem's own errors (status 2); for any other the step and its traceback (status 1)."""
    status = _FAILED
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        cause = error
        while cause is not None and cause.cause is not None:
            cause = cause.cause
        if cause is not None and cause.cls_name in {"InputError", "WeightsNotFoundError"}:
            status = _BAD_INPUT
            click.echo(f"fbmem: {event.step_key}: {cause.message.split(': ', 1)[-1].strip()}", err=True)
        else:
            click.echo(f"fbmem: {event.step_key} failed\n{cause.to_string() if cause else error}", err=True)
    sys.exit(status)


def _print_outcome(store: Any, key: str, result: dg.ExecuteInProcessResult, chosen: list[str]) -> None:
    import polars as pl

    from fbmem_assets.labels import label_table

    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            facts = ", ".join(f"{name} {value.value}" for name, value in evaluation.metadata.items())
            click.echo(f"check failed: {evaluation.check_name} ({facts})", err=True)
    if "labels" in chosen:
        rule = store.audit(key)[0].similarity.rule[0]
        table = label_table(store, key).filter(pl.col("rule") == rule).drop("rule")
        click.echo(f"\ngenerations of {key} by kind of prompt and label, rule {rule}")
        _print_table(table)
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
