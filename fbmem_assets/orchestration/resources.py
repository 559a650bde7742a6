"""What assets are given: the store and, through it, the audit of a partition."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import dagster as dg
from tqdm import tqdm

from fbmem_assets.orchestration.runs import HOLDER_TAG, PARTITION_TAG
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.store.locks import partition_lock
from fbmem_core.store.tables import Store

if TYPE_CHECKING:
    from fbmem_core.inputs.segmentation import Segmenter

STORE_VARIABLE = "FBMEM_STORE"
DEFAULT_STORE = "data/store"
store_option = click.option(
    "--store",
    metavar="FOLDER",
    envvar=STORE_VARIABLE,
    default=DEFAULT_STORE,
    show_default=True,
    help="Folder or URL (s3://bucket/path) of everything that is produced.",
)
_LOG_EVERY_SECONDS = 30.0
T = TypeVar("T")


class AuditStore(dg.ConfigurableResource):
    """The store below `root`."""

    root: str

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[AuditStore]:
        """Dagster gives it to the steps of a run, which holds its partition so that no other run writes there."""
        run = context.run
        key = run.tags.get(PARTITION_TAG) if run is not None else None
        if run is None or key is None:
            yield self
            return
        with partition_lock(self.locks, key, run.tags.get(HOLDER_TAG, run.run_id)):
            yield self

    @property
    def locks(self) -> Path:
        """Where the locks of partitions lie."""
        return self.tables.local / "locks"

    @property
    def tables(self) -> Store:
        """The tables and images."""
        return Store(self.root)

    def open(self, partition: str) -> AuditedCheckpoint:
        """The audited checkpoint of a partition."""
        return AuditedCheckpoint(self.tables, partition)


def store_root() -> str:
    """The folder or URL that FBMEM_STORE names, else data/store below the current folder."""
    return str(Store(os.environ.get(STORE_VARIABLE, DEFAULT_STORE)).root)


@lru_cache(maxsize=1)
def segmenter_of(model: str) -> Segmenter:
    """The opened segmenter, once per process."""
    from fbmem_core.inputs.segmentation import Segmenter

    return Segmenter(model)


def track(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    items: Iterable[T],
    *,
    what: str,
    total: int | None = None,
) -> Iterator[T]:
    """Pass `items` on, with a bar on the terminal and a line with the time left in Dagster's log every 30 seconds.

    `total` is needed where `items` has no length.
    """
    total = total or (len(items) if isinstance(items, Sized) else None)
    started = logged = time.monotonic()
    for done, item in enumerate(tqdm(items, total=total, desc=what, unit="", mininterval=1.0), start=1):
        yield item
        now = time.monotonic()
        if now - logged >= _LOG_EVERY_SECONDS:
            logged = now
            left = f", about {(now - started) / done * (total - done):.0f} s left" if total else ""
            context.log.info(f"{what}: {done} of {total or '?'}{left}")
