"""Resources of the assets: the store and, through it, the audit of a partition."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import dagster as dg

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
        """Folder of the locks of partitions."""
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
