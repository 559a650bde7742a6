"""The two passes through the stages from generations to labels: the model as it is, and every mitigation of it.

Both run the same code. What tells them apart is here: which methods, under which names, in which shards.
"""

from dataclasses import dataclass

import polars as pl

from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.audit.config import Audit
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.similarity import Masking


@dataclass(frozen=True)
class Arm:
    """One of the two. `shard` begins the names of the files that it writes."""

    shard: str
    is_mitigated: bool

    def name(self, asset: str) -> str:
        """An asset's name in this pass."""
        return f"mitigated_{asset}" if self.is_mitigated else asset

    def stage(self, stage: str) -> str:
        """The group that an asset of this stage belongs to."""
        return "mitigations" if self.is_mitigated else stage

    def maskings(self, audit: Audit) -> list[Masking]:
        """Mitigations are judged by the region definition that summaries speak of."""
        return audit.similarity.masking[:1] if self.is_mitigated else audit.similarity.masking

    def rows(self, store: AuditStore, table: str, key: str) -> pl.DataFrame:
        """Its rows of a table that has a column `method`."""
        of_baseline = pl.col("method") == UNMITIGATED
        return store.tables.read(table, key).filter(~of_baseline if self.is_mitigated else of_baseline)


BASELINE = Arm(shard="none", is_mitigated=False)
MITIGATED = Arm(shard="mitigated", is_mitigated=True)
