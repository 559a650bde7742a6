"""Two checkpoints under one prompt set: which prompts changed, and whether more is memorized than chance explains."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from fbmem_core.evaluation.intervals import mean_interval
from fbmem_core.labels import SEVERITY

_TEXT = ["prompt", "occurrence"]


@dataclass(frozen=True)
class Rise:
    """The share of images that are copies, over the images that were labelled under both checkpoints.

    Attributes:
        num_prompts: Prompts of these images.
        num_images: Images of the same prompt and seed, labelled both times.
        share_before: Share of them that were copies, in [0, 1]; None without an image.
        share_after: The same under the later checkpoint.
        p_value: How often chance alone gives as high a rise, see `sign_flip_test`.
        num_units: Independent units among the prompts.
        low: Lower end of the 95 % interval of the rise, over units; None for a single one.
        high: Upper end.
    """

    num_prompts: int
    num_images: int
    share_before: float | None
    share_after: float | None
    p_value: float
    num_units: int
    low: float | None
    high: float | None


def label_prompts(labels: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """One row per prompt: its most frequent label, the more severe of two as frequent ones, and how many are copies.

    Args:
        labels: Rows `prompt_id, seed, label`, one per image; a null label is undecided.
        prompts: Rows `prompt_id, prompt`.

    Returns:
        Rows `prompt_id, prompt, label, num_generations, num_memorized` in the order of `prompts`.
    """
    severity = pl.col("label").replace_strict(SEVERITY, default=None)
    counts = labels.drop_nulls("label").group_by("prompt_id", "label").len().with_columns(severity.alias("severity"))
    most = counts.sort("len", "severity", descending=True).group_by("prompt_id", maintain_order=True).first()
    totals = labels.group_by("prompt_id").agg(
        pl.len().cast(pl.Int64).alias("num_generations"), _memorized().sum().cast(pl.Int64).alias("num_memorized")
    )
    named = prompts.select("prompt_id", "prompt").join(most, on="prompt_id", how="left", maintain_order="left")
    joined = named.join(totals, on="prompt_id", how="left", maintain_order="left")
    return joined.select(
        "prompt_id", "prompt", "label", pl.col("num_generations").fill_null(0), pl.col("num_memorized").fill_null(0)
    )


def compare_prompts(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Prompts of either checkpoint, matched by its text, and what became of it.

    Args:
        before: What `label_prompts` gives for the earlier checkpoint.
        after: The same for the later one.

    Returns:
        Rows `prompt_id, prompt, change, label_before, label_after`. A prompt is memorized if its label is not NM;
        `change` is newly_memorized, no_longer_memorized, other_label, same, undecided, added or removed. A removed
        prompt has the prompt_id that it had.
    """
    earlier, later = (_occurrences(rows).select(*_TEXT, "prompt_id", "label") for rows in (before, after))
    joined = earlier.join(later, on=_TEXT, how="full", coalesce=True, suffix="_after")
    old, new = pl.col("label"), pl.col("label_after")
    change = (
        pl.when(pl.col("prompt_id").is_null()).then(pl.lit("added"))
        .when(pl.col("prompt_id_after").is_null()).then(pl.lit("removed"))
        .when(old.is_null() | new.is_null()).then(pl.lit("undecided"))
        .when(old == new).then(pl.lit("same"))
        .when(old == "NM").then(pl.lit("newly_memorized"))
        .when(new == "NM").then(pl.lit("no_longer_memorized"))
        .otherwise(pl.lit("other_label"))
    )  # fmt: skip
    return joined.select(
        pl.coalesce("prompt_id_after", "prompt_id").alias("prompt_id"),
        "prompt",
        change.alias("change"),
        old.alias("label_before"),
        new.alias("label_after"),
    ).sort("change", "prompt_id")


def measure_rise(before: pl.DataFrame, after: pl.DataFrame, *, units: Mapping[str, str] | None = None) -> Rise:
    """Rise of the memorized share, over the images that both checkpoints have.

    Args:
        before: Rows `prompt, prompt_id, seed, label` of the earlier checkpoint, one per image.
        after: The same of the later one.
        units: By prompt_id of the earlier checkpoint, which prompts are wordings of one thing, see
            `intervals.independent_units`; without it each prompt is its own.
    """
    earlier, later = (
        _occurrences(rows.select("prompt_id", "prompt").unique(maintain_order=True)).join(
            rows.drop_nulls("label").select("prompt_id", "seed", _memorized()), on="prompt_id"
        )
        for rows in (before, after)
    )
    pairs = earlier.join(later, on=[*_TEXT, "seed"], suffix="_after")
    rises: dict[Hashable, list[float]] = {}
    for prompt_id, first, second in pairs.select("prompt_id", "memorized", "memorized_after").iter_rows():
        rises.setdefault((units or {}).get(prompt_id, prompt_id), []).append(int(second) - int(first))
    interval = mean_interval(rises)
    return Rise(
        num_prompts=pairs["prompt_id"].n_unique(),
        num_images=len(pairs),
        share_before=pairs["memorized"].mean(),  # type: ignore[arg-type]
        share_after=pairs["memorized_after"].mean(),  # type: ignore[arg-type]
        p_value=sign_flip_test(int(sum(steps)) for steps in rises.values()),
        num_units=len(rises),
        low=interval.low,
        high=interval.high,
    )


def sign_flip_test(changes: Iterable[int]) -> float:
    """The chance of as high a sum if every change were as likely with the other sign. One-sided, paired, exact.

    The unit is what is independent: its wordings and seeds are not, so that a test over images would find
    significance in a single thing. With one image a unit this is McNemar's exact test.

    Args:
        changes: For each unit, how many more of its images are copies than before.

    Returns:
        A p-value in (0, 1]; 1 where nothing changed.
    """
    steps = np.array([change for change in changes if change], dtype=np.int64)
    reach = int(np.abs(steps).sum())
    chance = np.zeros(2 * reach + 1)  # of every sum from -reach to reach
    chance[reach] = 1
    for step in np.abs(steps):
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2  # what rolls over the edge is 0
    return min(float(chance[reach + int(steps.sum()) :].sum()), 1.0)


def _memorized() -> pl.Expr:
    return (pl.col("label") != "NM").alias("memorized")


def _occurrences(rows: pl.DataFrame) -> pl.DataFrame:
    """A prompt that stands in a set several times is told apart by its number."""
    return rows.with_columns(pl.int_range(pl.len()).over("prompt").alias("occurrence"))
