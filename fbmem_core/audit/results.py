"""One audited checkpoint in one hand: its configuration, its tables, its references, its images and its model.

Free of Dagster, and torch is imported by nothing here but `pipeline`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from fbmem_core.audit.config import Audit
from fbmem_core.diffusion.checkpoint import Checkpoint
from fbmem_core.errors import InputError
from fbmem_core.labels import OBJECT_COLUMNS, PairSimilarity
from fbmem_core.mitigation import UNMITIGATED
from fbmem_core.similarity import REGIONS, Masking
from fbmem_core.store.tables import Store

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from fbmem_core.neurons.layers import NeuronSet


class ImageKey(NamedTuple):
    """One generation: the mitigation under which it was sampled, its prompt, the seed of its initial latents.

    Example:
        >>> ImageKey("none", "owl-0", 3).image_id
        'none/owl-0/3'
    """

    method: str
    prompt_id: str
    seed: int

    @property
    def image_id(self) -> str:
        """Name in the table `masks`."""
        return f"{self.method}/{self.prompt_id}/{self.seed}"


@dataclass(frozen=True)
class Arm:
    """One of the two arms of an audit, as in a trial: the model as it is, or all its mitigations.

    Both run the same code. `shard` begins the names of the files that an arm writes.
    """

    shard: str
    is_mitigated: bool

    def name(self, result: str) -> str:
        """The name of a result in this arm: `labels` or `mitigated_labels`."""
        return f"mitigated_{result}" if self.is_mitigated else result

    def stage(self, stage: str) -> str:
        """The stage that a result of this arm belongs to."""
        return "mitigations" if self.is_mitigated else stage

    def maskings(self, config: Audit) -> list[Masking]:
        """The maskings that are compared: mitigations are judged by the first alone."""
        return config.similarity.masking[:1] if self.is_mitigated else config.similarity.masking


BASELINE = Arm(shard="none", is_mitigated=False)
MITIGATED = Arm(shard="mitigated", is_mitigated=True)


class AuditedCheckpoint:
    """Everything that one audit of one checkpoint knows; `open_audit` opens it.

    Args:
        store: Where it lies.
        partition: `<audit>-<first 12 hex digits of the fingerprint>`.

    Attributes:
        config: The audit file as it was registered, with every default.
        checkpoint: The checkpoint: where its files lie, its fingerprint and architecture.

    Raises:
        InputError: The partition was never registered in this store.

    Example:
        >>> import tempfile
        >>> AuditedCheckpoint(Store(tempfile.mkdtemp()), "owl-0123")
        Traceback (most recent call last):
        fbmem_core.errors.InputError: Expected a registered partition, but got `owl-0123` in ...
    """

    def __init__(self, store: Store, partition: str) -> None:
        self.store, self.partition = store, partition
        self.config, self.checkpoint = read_record(store, partition)

    def read(self, table: str, arm: Arm | None = None, *, shard: str = "*") -> pl.DataFrame:
        """Rows of one table, sorted by key; with `arm` only those of that arm, of a table with a column `method`."""
        rows = self.store.read(table, self.partition, shard=shard)
        if arm is None:
            return rows
        is_baseline = pl.col("method") == UNMITIGATED
        return rows.filter(~is_baseline if arm.is_mitigated else is_baseline)

    def write(self, table: str, rows: Iterable[Mapping[str, Any]], *, shard: str = "all") -> int:
        """Replace one shard of a table; returns the number of rows. See `Store.write`."""
        return self.store.write(table, self.partition, rows, shard=shard)

    def shards(
        self,
        table: str,
        names: Collection[str] | None = None,
        *,
        report: Callable[[str], None] = lambda message: None,
    ) -> set[str]:
        """Names of a table's shards that are there and whole; a broken one is removed. See `Store.shards`."""
        return self.store.shards(table, self.partition, names, report=report)

    def keep_shards(self, table: str, shards: Iterable[str], *, among: str = "*") -> None:
        """Delete stale shards: those that match `among` and are not in `shards`."""
        self.store.keep_shards(table, self.partition, shards, among=among)

    def data_version(self, table: str, *, shard: str = "*") -> str:
        """A hash of a table's rows."""
        return self.store.data_version(table, self.partition, shard=shard)

    def image(self, path: str) -> Image.Image:
        """An image of the store by its relative path, decoded."""
        from fbmem_core.store.images import open_image

        return open_image(self.store, path)

    @property
    def references(self) -> pl.DataFrame:
        """The rows of `reference_images` that take part: status `ok`."""
        return self.read("reference_images").filter(pl.col("status") == "ok")

    @property
    def prompts(self) -> dict[str, str]:
        """Text of each prompt by its prompt_id."""
        return dict(self.read("prompts").select("prompt_id", "prompt").iter_rows())

    def mattes(self, kind: str) -> dict[str, Path | None]:
        """File of each matte of one kind of image (generation, reference) by image_id; None: undecided."""
        rows = self.read("masks", shard=f"{kind}*").select("image_id", "path").iter_rows()
        return {image_id: self.store.root / path if path else None for image_id, path in rows}

    @property
    def foreground_fractions(self) -> dict[str, float | None]:
        """Share of each generation that is foreground, by image_id; None: undecided."""
        return dict(self.read("masks", shard="generation*").select("image_id", "foreground_fraction").iter_rows())

    def pairs(self, arm: Arm = BASELINE) -> Iterator[tuple[ImageKey, str, list[PairSimilarity]]]:
        """Each generation with one masking and its listed pairs."""
        table = self.read("similarities", arm)
        for group in table.partition_by(["method", "prompt_id", "seed", "masking"], maintain_order=True):
            method, prompt_id, seed, masking = group.select("method", "prompt_id", "seed", "masking").row(0)
            yield ImageKey(method, prompt_id, seed), masking, [_pair(row) for row in group.iter_rows(named=True)]

    def summary_labels(self, arm: Arm = BASELINE) -> pl.DataFrame:
        """One row per generation: its label by the audit's first masking and rule."""
        first = self.config.similarity
        return self.read("labels", arm).filter(
            (pl.col("masking") == first.masking[0]) & (pl.col("rule") == first.rule[0])
        )

    @property
    def non_memorized_prompts(self) -> list[str]:
        """The prompt_ids whose images are all labelled NM, sorted."""
        labels = self.summary_labels()
        all_nm = labels.group_by("prompt_id").agg((pl.col("label") == "NM").all()).filter(pl.col("label"))
        return sorted(all_nm["prompt_id"])

    @property
    def memorized_prompts(self) -> list[str]:
        """The prompt_ids with at least one image labelled VM, FM or BM, sorted."""
        copies = self.summary_labels().filter(pl.col("label").is_in(["VM", "FM", "BM"]))
        return sorted(set(copies["prompt_id"]))

    def calibration_prompts(self) -> list[str]:
        """Texts over which usual values are measured: the audit's file, else its own prompts that copy nothing."""
        from fbmem_core.inputs.prompts import read_prompts

        file = self.config.neurons.non_memorized_prompts
        if file is not None:
            return [prompt.prompt for prompt in read_prompts(file)[0]]
        texts = self.prompts
        return [texts[prompt_id] for prompt_id in self.non_memorized_prompts]

    @property
    def method_names(self) -> list[str]:
        """Titles of the mitigations at every strength and draw, in the order of the audit file."""
        return [trial.title for trial in self.config.mitigations.trials()]

    def neurons(self, stage: str = "refined") -> dict[str, NeuronSet]:
        """The value neurons of each prompt that has any, by prompt_id; `stage` is initial or refined."""
        from fbmem_core.neurons.layers import named_sets

        rows = self.read("neurons").filter(pl.col("stage") == stage)
        return named_sets(rows.select("prompt_id", "layer", "neuron").iter_rows())

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The checkpoint's pipeline, loaded once a process."""
        settings = self.config.sampling.model_dump(include={"dtype", "device", "compile", "channels_last"})
        return _load(self.checkpoint, allow_pickle=self.config.allow_pickle, **settings)


def _pair(row: Mapping[str, Any]) -> PairSimilarity:
    """A row of `similarities`."""
    values: dict[str, Any] = {region: row[f"{region}_similarity"] for region in (*REGIONS, "common_foreground")}
    objects: dict[str, Any] = {name: tuple(row[name]) for name in OBJECT_COLUMNS}
    facts = {name: tuple(row[name]) for name in ("transform_matrix", "undecided_regions")}
    return PairSimilarity(row["reference_id"], **values, **objects, transform=row["transform"], **facts)


def open_audit(store: Store | Path | str, partition: str | None = None) -> AuditedCheckpoint:
    """Open one audit of a store.

    Args:
        store: A store, its folder, or its URL.
        partition: Which audited checkpoint; may be left out where the store holds one alone.

    Raises:
        InputError: The partition was never registered, or none is named and the store holds none or several.

    Example:
        >>> import tempfile
        >>> from fbmem_core import open_audit
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     open_audit(empty)
        Traceback (most recent call last):
        fbmem_core.errors.InputError: Expected an audited checkpoint, but got none in ... Run `fbmem audit FILE`.
    """
    opened = store if isinstance(store, Store) else Store(store)
    if partition is None:
        names = opened.partitions("checkpoints")
        if not names:
            raise InputError("an audited checkpoint", "none", where=opened.root, cure="Run `fbmem audit FILE`.")
        if len(names) > 1:
            raise InputError("the name of a partition", f"none of {', '.join(names)}", cure="Name one of them.")
        [partition] = names
    return AuditedCheckpoint(opened, partition)


def read_record(store: Store, partition: str) -> tuple[Audit, Checkpoint]:
    """The audit and the checkpoint that were registered under a partition.

    Raises:
        InputError: The partition was never registered in this store.
    """
    path = store.root / record_path(partition)
    if not path.is_file():
        raise InputError(
            "a registered partition", f"`{partition}`", where=store.root, cure="Run `fbmem register FILE`."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    return Audit.model_validate(record["audit"]), Checkpoint.from_record(record["checkpoint"])


def record_path(partition: str) -> str:
    """Path in the store of the record of an audit and its checkpoint."""
    return f"audits/{partition}.json"


def _silence_bars() -> None:
    """The bars of the libraries that load a model stand over fbmem's own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


@lru_cache(maxsize=1)
def _load(checkpoint: Checkpoint, **settings: Any) -> DiffusionPipeline:
    from fbmem_core.diffusion.loading import load_pipeline
    from fbmem_core.diffusion.memory import keep_freed_memory

    keep_freed_memory()
    _silence_bars()
    return load_pipeline(checkpoint, **settings)
