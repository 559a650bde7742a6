"""Frame around an asset's own work: nothing is made of parents that never finished, and what cannot be done is
left out with its reason instead of ending the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from fbmem_assets.orchestration.provenance import (
    LEFT_OUT,
    Context,
    forget_record,
    record_of,
    write_record,
)
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.audit.results import AuditedCheckpoint
from fbmem_core.errors import InputError, NotApplicableError
from fbmem_core.store.tables import TABLES_DIR

Need = Callable[[AuditedCheckpoint], str | None]


@dataclass(frozen=True)
class Guard:
    """One asset: its name, table, stage and parents.

    Attributes:
        shards: Pattern of the names of the files that the asset writes in its table.
        needs: Says why the asset cannot be made of this audit, or None.
    """

    asset: str
    table: str
    stage: str
    parents: Sequence[str]
    shards: str = "*"
    needs: Need | None = None

    def begin(self, store: AuditStore, key: str) -> None:
        """Forget what was recorded of it.

        Raises:
            InputError: A parent never finished; the message names all of them.
        """
        store.open(key)  # a partition that was never registered is named as such
        unfinished = [name for name in self.parents if record_of(store, key, name) is None]
        if unfinished:
            names = ", ".join(f"`{name}`" for name in unfinished)
            cure = f"Materialize {names} first, or launch the job `audit`."
            raise InputError(f"finished parents of `{self.asset}`", f"none of {names}", where=key, cure=cure)
        forget_record(store, key, self.asset)

    def reason(self, store: AuditStore, key: str) -> str | None:
        """Why it is left out: its own need, or a parent that was left out; None: it is made."""
        for name in self.parents:
            record = record_of(store, key, name)
            if record is not None and record["status"] == LEFT_OUT:
                reason = str(record["reason"])
                return reason if reason.startswith("`") else f"`{name}` was left out: {reason}"
        return None if self.needs is None else self.needs(store.open(key))

    def finish(
        self, context: Context, store: AuditStore, make: Callable[[], dg.MaterializeResult]
    ) -> dg.MaterializeResult:
        """Make it, or leave it out, and record which."""
        key = context.partition_key
        reason = self.reason(store, key)
        tables = store.tables
        shard = f"left_out-{self.asset}"
        if reason is None:
            tables.keep_shards("rejected", key, (), among=shard)
            try:
                result = make()
            except NotApplicableError as error:
                reason = str(error)
        if reason is not None:
            context.log.warning(f"{self.asset} is left out: {reason}")
            tables.keep_shards(self.table, key, (), among=self.shards)
            tables.write("rejected", key, [{"stage": self.stage, "item": self.asset, "reason": reason}], shard=shard)
            metadata: dict[str, Any] = {"left out": reason, "dagster/row_count": 0}
            where = tables.root / TABLES_DIR / self.table
            result = dg.MaterializeResult(metadata={**metadata, "dagster/uri": dg.MetadataValue.path(str(where))})
        write_record(context, store, self.asset, self.table, result, reason)
        return result
