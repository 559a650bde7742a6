"""`fbmem sql`: questions to the tables of a store."""

from __future__ import annotations

import click

from fbmem_assets.commands.output import Format, format_option, show
from fbmem_assets.orchestration.resources import store_option


@click.command()
@click.argument("query")
@format_option
@store_option
def sql(query: str, form: Format, store: str) -> None:
    """Run QUERY over the tables of a store.

    Values are never cut. `show tables` lists the tables and views, `describe findings` the columns of one;
    docs/questions.md has fifteen questions. `copy (QUERY) to 'FILE.csv'` writes a file.
    """
    from fbmem_core.store.tables import Store
    from fbmem_core.store.warehouse import query as run_query

    rows = run_query(Store(store), query)
    if rows is not None:
        show(rows, form)
