"""True labels that an audit checks itself against."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fbmem_core.errors import InputError

LABELS = ("VM", "FM", "BM", "NM")
_NEEDED = ("prompt_id", "label")


def read_truth(path: Path) -> pl.DataFrame:
    """The rows of a CSV file of true labels.

    Columns `prompt_id` and `label` are needed; `kind` (a group of prompts) and `reference_ids` (names of the references
    that the prompt brings forth, separated by `;`) may be left out.

    Returns:
        Columns `prompt_id`, `kind` ("" where there is none), `label` and `reference_ids` (lists).

    Raises:
        InputError: A needed column is missing, a label is none of VM, FM, BM, NM, or the file is no CSV.
    """
    try:
        rows = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError("a CSV file of true labels", error, where=path, cure="Save it as CSV, UTF-8.") from None
    for column in _NEEDED:
        if column not in rows.columns:
            got = f"columns {', '.join(rows.columns)}"
            raise InputError(f"a column `{column}` of true labels", got, where=path, cure=f"Add a column `{column}`.")
    rows = rows.with_columns(pl.col("label").str.strip_chars())
    unknown = rows.filter(~pl.col("label").is_in(LABELS).fill_null(False))
    if len(unknown):
        got = f"`{unknown['label'][0]}` for {unknown['prompt_id'][0]}"
        raise InputError(f"labels {', '.join(LABELS)}", got, where=path, cure="Mend that row.")
    optional = [pl.lit("").alias(name) for name in ("kind", "reference_ids") if name not in rows.columns]
    return rows.with_columns(optional).select(
        "prompt_id",
        pl.col("kind").fill_null(""),
        "label",
        pl.col("reference_ids").fill_null("").str.split(";").list.eval(pl.element().filter(pl.element() != "")),
    )
