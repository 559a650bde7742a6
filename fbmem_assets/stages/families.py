"""Groups of prompts that belong together: halves of a design, families of wordings, and what an image copies."""

import polars as pl

from fbmem_core.audit.results import AuditedCheckpoint


def copied_reference() -> pl.Expr:
    """The reference that an image labelled VM, FM or BM copies, as a column `reference_id`."""
    return (
        pl.when(pl.col("label") == "VM")
        .then("full_reference_id")
        .when(pl.col("label") == "FM")
        .then("foreground_reference_id")
        .otherwise("background_reference_id")
        .alias("reference_id")
    )


def halves_and_families(audit: AuditedCheckpoint) -> pl.DataFrame:
    """Halves (`development` or `test`) by prompt, and the thing that it is one wording of.

    Both are columns of the truth table, `half` and `family`. Without them every prompt belongs to the test half, and
    prompts whose images match the same reference are of one family.
    """
    prompts = audit.read("prompts").select("prompt_id")
    matched = (
        audit.summary_labels()
        .filter(pl.col("label") != "NM")
        .select("prompt_id", copied_reference())
        .group_by("prompt_id")
        .agg(pl.col("reference_id").mode().sort().first().alias("matched"))
    )
    file = audit.config.truth
    design = prompts.select("prompt_id") if file is None else pl.read_csv(file, infer_schema=False)
    columns = [pl.lit(None, pl.String).alias(name) for name in ("half", "family") if name not in design.columns]
    design = design.with_columns(columns).select("prompt_id", "half", "family")
    joined = prompts.join(design, on="prompt_id", how="left").join(matched, on="prompt_id", how="left")
    return joined.select(
        "prompt_id",
        pl.col("half").fill_null("test"),
        pl.coalesce("family", "matched", "prompt_id").alias("family"),
    )
