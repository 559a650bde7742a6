"""`fbmem validate`: labels by people beside those that fbmem gave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbmem_assets.commands.output import show
from fbmem_assets.orchestration.resources import store_option
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from fbmem_core.evaluation.validation import Opinion, Validation

_REFERENCE = {"VM": "full", "FM": "foreground", "BM": "background"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="Labels of `fbmem score`: its .parquet or .csv.")
@store_option
@click.option("--partition", help="An audit of the store, without --labels; where it holds one alone, that one.")
def validate(file: Path, labels: Path | None, store: str, partition: str | None) -> None:
    """Compare the labels of FILE, given by people, with fbmem's: confusion and Cohen's kappa, over all and by label.

    FILE is a CSV or a JSON list with the columns image and label (VM, FM, BM, NM) or region (full, foreground,
    background, none), and reference where it is known. An image is named as `fbmem score` names it or, of an audit, as
    METHOD/PROMPT_ID/SEED.
    """
    from fbmem_core.evaluation.validation import read_opinions
    from fbmem_core.evaluation.validation import validate as compare

    people = read_opinions(file)
    given = _of_table(labels) if labels is not None else _of_audit(store, partition)
    _print(compare(people, given))


def _of_table(path: Path) -> dict[str, Opinion]:
    import polars as pl

    from fbmem_core.evaluation.validation import Opinion

    if not path.is_file():
        raise InputError("labels of `fbmem score`", "no such file", where=path, cure="Run `fbmem score` first.")
    try:
        table = pl.read_csv(path) if path.suffix.lower() == ".csv" else pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError("labels of `fbmem score`", reason, where=path, cure="Run `fbmem score` anew.") from None
    missing = {"generation", "label", "full_reference"} - set(table.columns)
    if missing:
        got = f"no column {', '.join(sorted(missing))}"
        raise InputError("labels of `fbmem score`", got, where=path, cure="Give the file of --out, not its neighbors.")
    return {
        str(row["generation"]): Opinion(str(row["generation"]), row["label"] or None, _reference(row, ""))
        for row in table.iter_rows(named=True)
    }


def _of_audit(store: str, partition: str | None) -> dict[str, Opinion]:
    from fbmem_core.audit.results import ImageKey, open_audit
    from fbmem_core.evaluation.validation import Opinion
    from fbmem_core.store.tables import Store

    rows = open_audit(Store(store), partition).summary_labels().iter_rows(named=True)
    return {
        (name := ImageKey(row["method"], row["prompt_id"], row["seed"]).image_id): Opinion(
            name, row["label"], _reference(row, "_id")
        )
        for row in rows
    }


def _reference(row: dict[str, Any], suffix: str) -> str | None:
    """The reference of the region that the label says is copied."""
    region = _REFERENCE.get(row["label"] or "")
    return None if region is None else row.get(f"{region}_reference{suffix}")


def _print(result: Validation) -> None:
    import polars as pl

    from fbmem_core.evaluation.validation import LABELS, UNDECIDED

    given = (*LABELS, UNDECIDED)
    confusion = [
        {"people": label, **{f"fbmem {name}": result.confusion.get((label, name), 0) for name in given}}
        for label in LABELS
    ]
    show(pl.DataFrame(confusion), piped="markdown")
    cells = [
        {
            "label": cell.label, "people": cell.num_people, "fbmem": cell.num_given, "both": cell.num_both,
            "kappa": cell.kappa, "share low": cell.recall.low, "share high": cell.recall.high,
        }
        for cell in result.cells
    ]  # fmt: skip
    show(pl.DataFrame(cells, schema_overrides={"kappa": pl.Float64}), piped="markdown", digits=3)
    low, high = result.agreed.low or 0.0, result.agreed.high or 0.0
    kappa = "undefined" if result.kappa is None else f"{result.kappa:.3f}"
    click.echo(
        f"{result.num_agreed} of {result.num_images} labels agree ({low:.1%} to {high:.1%}), Cohen's kappa {kappa}; "
        f"the same reference in {result.num_same_reference} of {result.num_references} copies"
    )
    if result.unlabelled:
        names = ", ".join(result.unlabelled[:5])
        click.echo(f"without a label of fbmem's: {len(result.unlabelled)} images ({names})", err=True)


__all__ = ["validate"]
