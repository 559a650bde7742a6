"""Rows that commands print: a table that fits the terminal, or whole values in a format that programs read."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

if TYPE_CHECKING:
    import polars as pl

Format = Literal["auto", "table", "tsv", "csv", "json", "markdown"]
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(get_args(Format)),
    default="auto",
    show_default=True,
    help="auto: a table on a terminal, TSV in a pipe or file.",
)


def show(rows: pl.DataFrame, form: Format = "auto", *, piped: Format = "tsv", digits: int | None = None) -> None:
    """Print rows on standard output.

    Args:
        rows: A table; on a terminal long values are wrapped within their column, elsewhere none is cut.
        form: `auto` is `table` on a terminal and `piped` elsewhere.
        piped: What `auto` means in a pipe.
        digits: Of real numbers; all of them by default.
    """
    chosen = form if form != "auto" else "table" if sys.stdout.isatty() else piped
    cells = [[_plain(value, digits) for value in row] for row in rows.iter_rows()]
    if chosen == "table":
        _print_table(rows.columns, cells)
    else:
        click.echo(formatted(rows.columns, cells, chosen), nl=False)


def formatted(header: list[str], rows: list[list[Any]], form: str) -> str:
    """Rows of plain values as text that ends with a line break."""
    if form == "json":
        named = [dict(zip(header, row, strict=True)) for row in rows]
        return json.dumps(named, ensure_ascii=False, indent=1) + "\n"
    if form == "markdown":
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(_text(cell, "-").replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join(lines) + "\n"
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if form == "tsv" else ",", lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_text(cell, "") for cell in row] for row in rows])
    return out.getvalue()


def _print_table(header: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, name in enumerate(header):
        is_number = all(isinstance(row[place], int | float | None) for row in rows) and rows != []
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(cell, "-")) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def _plain(value: Any, digits: int | None) -> Any:
    """A value that JSON has."""
    if isinstance(value, float) and digits is not None:
        return round(value, digits)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(part, digits) for part in value]
    if isinstance(value, dict):
        return {str(name): _plain(part, digits) for name, part in value.items()}
    return str(value)


def _text(value: Any, empty: str) -> str:
    if value is None:
        return empty
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
