"""The public tables: their columns, keys and grain. Analysts and checks rely on these names."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

_TEXT, _WHOLE, _REAL, _TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TIME, _TEXTS = pa.timestamp("us", tz="UTC"), pa.list_(pa.string())


@dataclass(frozen=True)
class Table:
    """One table. `key` names the columns that tell its rows apart; `checkpoint` is the partition, always the first."""

    name: str
    grain: str
    key: tuple[str, ...]
    columns: dict[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, in the order of the columns."""
        return pa.schema([pa.field(name, kind) for name, kind in self.columns.items()])


_IMAGE = {"checkpoint": _TEXT, "method": _TEXT, "prompt_id": _TEXT, "seed": _WHOLE}
_VALUES = {"full": _REAL, "foreground": _REAL, "background": _REAL}

_ALL = (
    Table(
        "checkpoints",
        "One row per audited checkpoint.",
        ("checkpoint",),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "source": _TEXT, "revision": _TEXT, "fingerprint": _TEXT,
            "architecture": _TEXT, "created_at": _TIME,
        },
    ),
    Table(
        "prompts",
        "One row per prompt of an audited checkpoint.",
        ("checkpoint", "prompt_id"),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "prompt_id": _TEXT, "prompt": _TEXT, "kind": _TEXT,
            "reference_id": _TEXT, "source": _TEXT,
        },
    ),
    Table(
        "reference_images",
        "One row per reference image, also those that cannot be used.",
        ("checkpoint", "reference_id"),
        {
            "checkpoint": _TEXT, "audit": _TEXT, "reference_id": _TEXT, "path": _TEXT, "sha256": _TEXT,
            "width": _WHOLE, "height": _WHOLE, "caption": _TEXT, "url": _TEXT, "status": _TEXT,
        },
    ),
    Table(
        "generations",
        "One row per sampled image.",
        tuple(_IMAGE),
        {**_IMAGE, "path": _TEXT, "sha256": _TEXT, "width": _WHOLE, "height": _WHOLE},
    ),
    Table(
        "masks",
        "One row per segmented image, generation or reference.",
        ("checkpoint", "image_kind", "image_id"),
        {
            "checkpoint": _TEXT, "image_kind": _TEXT, "image_id": _TEXT, "path": _TEXT, "foreground_fraction": _REAL,
            "segmenter": _TEXT, "status": _TEXT,
        },
    ),
    Table(
        "neighbors",
        "One row per image, region definition, criterion and rank: its most similar references.",
        (*_IMAGE, "region", "criterion", "rank"),
        {
            **_IMAGE, "region": _TEXT, "criterion": _TEXT, "rank": _WHOLE, "reference_id": _TEXT, "similarity": _REAL,
            "complete": _TRUTH,
        },
    ),
    Table(
        "similarities",
        "One row per image, reference and region definition, for every pair that is a neighbor by any criterion.",
        (*_IMAGE, "reference_id", "region"),
        {**_IMAGE, "reference_id": _TEXT, "region": _TEXT, **_VALUES, "average": _REAL},
    ),
    Table(
        "labels",
        "One row per image, region definition and rule.",
        (*_IMAGE, "region", "rule"),
        {
            **_IMAGE, "region": _TEXT, "rule": _TEXT, "label": _TEXT, **_VALUES, "full_reference_id": _TEXT,
            "foreground_reference_id": _TEXT, "background_reference_id": _TEXT,
        },
    ),
    Table(
        "one_to_many",
        "One row per prompt: how many distinct references its images match, by the audit's first region and rule.",
        ("checkpoint", "method", "prompt_id"),
        {
            "checkpoint": _TEXT, "method": _TEXT, "prompt_id": _TEXT, "num_generations": _WHOLE,
            "num_references": _WHOLE, "reference_ids": _TEXTS,
        },
    ),
    Table(
        "rejected",
        "One row per item that a stage left out.",
        ("checkpoint", "stage", "item"),
        {"checkpoint": _TEXT, "stage": _TEXT, "item": _TEXT, "reason": _TEXT},
    ),
)  # fmt: skip
TABLES: dict[str, Table] = {table.name: table for table in _ALL}
