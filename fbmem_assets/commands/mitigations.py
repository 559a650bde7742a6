"""`fbmem mitigations`: what each mitigation of an audit removes, and at what price."""

from __future__ import annotations

from pathlib import Path

import click

from fbmem_assets.commands.neurons import one_partition
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import InputError


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--partition", help="Of which audited checkpoint; needed where the store holds several.")
@store_option
def mitigations(file: Path | None, partition: str | None, store: str) -> None:
    """Print the table of an audit's mitigations, as Markdown; with FILE also write it as CSV."""
    from fbmem_assets.definitions import scores
    from fbmem_core.audit.results import open_audit
    from fbmem_core.store.tables import Store

    if file is not None and not file.parent.is_dir():
        raise InputError("a folder to write into", "none", where=file.parent, cure="Create it.")
    key = one_partition(Store(store), "mitigation_scores", partition)
    table = scores.method_table(open_audit(store, key))
    for line in markdown_lines(table.columns, table.rows()):
        click.echo(line)
    if file is not None:
        table.write_csv(file, float_precision=6)


def markdown_lines(header: list[str], rows: list[tuple[object, ...]]) -> list[str]:
    """A Markdown table: numbers with two digits, a dash for what was not measured."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
