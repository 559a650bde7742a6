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
    from rich.table import Table

Format = Literal["auto", "table", "tsv", "csv", "json", "markdown"]
_DIGITS = 4  # of real numbers on a terminal
_MIN_TEXT = 16  # letters to which a column of texts may be narrowed
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
        digits: Of real numbers; by default four on a terminal, elsewhere all of them.
    """
    chosen = form if form != "auto" else "table" if sys.stdout.isatty() else piped
    digits = _DIGITS if digits is None and chosen == "table" else digits
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
    """Print rows as a table no wider than the terminal: upright, else on its side, else one row below the other.

    Numbers are never broken; long texts are, over several lines.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    cells = [[_text(cell, "-") for cell in row] for row in rows]
    is_number = [all(isinstance(row[place], int | float | None) for row in rows) for place in range(len(header))]
    columns = [[name, *(row[place] for row in cells)] for place, name in enumerate(header)]
    if not rows or _width(columns, is_number) <= console.width:
        console.print(_table(header, cells, is_number if rows else [False] * len(header)))
    elif _width([header, *cells], [True] * (len(rows) + 1)) <= console.width:
        console.print(_on_its_side(columns))
    else:
        for row in cells:
            console.print(
                _table(["column", "value"], [list(pair) for pair in zip(header, row, strict=True)], [False] * 2)
            )


def _on_its_side(columns: list[list[str]]) -> Table:
    """The first column's values as heads, the other columns as rows."""
    return _table(columns[0], columns[1:], [False] + [True] * (len(columns[0]) - 1))


def _width(columns: list[list[str]], is_whole: list[bool]) -> int:
    """Characters that columns of cells need at least, where those that may be broken are as narrow as can be read."""
    widths = [max(map(len, column)) for column in columns]
    return 1 + sum(3 + (w if whole else min(w, _MIN_TEXT)) for w, whole in zip(widths, is_whole, strict=True))


def _table(header: list[str], rows: list[list[str]], is_number: list[bool]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name, number in zip(header, is_number, strict=True):
        justify: Literal["right", "left"] = "right" if number else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


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
