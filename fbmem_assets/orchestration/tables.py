"""Declaration and report of an asset that is a table."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from fbmem_assets.orchestration.executors import pool_of, step_tags
from fbmem_assets.orchestration.guard import Guard, Need
from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.provenance import CODE_VERSION
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.shards import Work, sharded_asset
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.store.schemas import TABLES

OWNER = "team:fbmem"
_PREVIEW_ROWS = 10


def table_asset(
    *,
    table: str,
    stage: str,
    deps: Sequence[str] = (),
    kinds: set[str] | None = None,
    name: str | None = None,
    work: Work | None = None,
    shards: str = "*",
    needs: Need | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """An asset of one stage that writes (a part of) one table, named as its function unless a name is given.

    `work` is what may be divided among steps; the function then sums up what they did. Nothing is made before the
    parents have finished. Where `needs` gives a reason, or a parent was left out, the asset is left out: its files
    (those whose names fit `shards`) are removed, the reason is kept, and the run goes on.
    """
    columns = [
        dg.TableColumn(column, str(kind), description=TABLES[table].descriptions[column])
        for column, kind in TABLES[table].columns.items()
    ]
    of_asset: dict[str, Any] = {
        "partitions_def": checkpoint_partitions,
        "group_name": stage,
        "kinds": {"parquet", *(kinds or set())},
        "owners": [OWNER],
        "tags": {"fbmem/stage": stage, "fbmem/table": table},
        "metadata": {
            "table": table,
            "grain": TABLES[table].grain,
            "dagster/column_schema": dg.TableSchema(columns=columns),
        },
    }

    def declare(function: Callable[..., Any]) -> dg.AssetsDefinition:
        guard = Guard(name or function.__name__, table, stage, tuple(deps), shards=shards, needs=needs)
        description = inspect.cleandoc(function.__doc__ or "")
        if work is not None:
            return sharded_asset(function, guard=guard, work=work, description=description, **of_asset)

        @dg.asset(
            name=guard.asset,
            description=description,
            deps=list(deps),
            pool=pool_of(table),
            op_tags=step_tags(table),
            code_version=CODE_VERSION,
            **of_asset,
        )
        def asset(context, store: AuditStore) -> dg.MaterializeResult:  # type: ignore[no-untyped-def,type-arg]
            guard.begin(store, context.partition_key)
            return guard.finish(context, store, lambda: function(context, store))

        return asset

    return declare


def table_result(audit: AuditedCheckpoint, table: str, rows: pl.DataFrame, **metadata: Any) -> dg.MaterializeResult:
    """Row count, preview, where it lies, and a data version that only other rows change."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion(audit.data_version(table)),
        metadata={
            "dagster/row_count": len(rows),
            "dagster/uri": dg.MetadataValue.path(str(audit.store.table_dir(table, audit.partition))),
            "preview": markdown_table(rows.head(_PREVIEW_ROWS).drop("checkpoint").to_dicts()),
            **metadata,
        },
    )


def picture(uri: str, text: str) -> dg.MarkdownMetadataValue:
    """A picture as the UI shows it."""
    return dg.MetadataValue.md(f"![{text}]({uri})")


def shown(count: int, total: int, what: str) -> str:
    """Sentence on what of all a picture shows.

    >>> shown(48, 300, "images")
    '48 of 300 images are shown'
    """
    return f"all {total} {what} are shown" if count == total else f"{count} of {total} {what} are shown"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Rows as a table of the UI; values are escaped, whatever a prompt holds."""
    if not rows:
        return dg.MetadataValue.md("no rows")
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in header) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " ".join(str(value).split())[:80]
    for mark, escaped in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("`", "&#96;"),
        ("[", "&#91;"),
    ):
        text = text.replace(mark, escaped)
    return text
