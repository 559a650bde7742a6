"""Stage report: the DuckDB file that analysts open, and the page that people read."""

from pathlib import Path
from typing import Any

import dagster as dg

from fbmem_assets.orchestration.partitions import checkpoint_partitions
from fbmem_assets.orchestration.provenance import CODE_VERSION
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_assets.orchestration.tables import OWNER, markdown_table
from fbmem_assets.stages.scores import method_table
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.views import VIEWS

STAGE = "report"
_AFTER = [
    "one_to_many", "copied_regions", "mitigated_copied_regions", "seed_agreement", "cluster_neurons",
    "cluster_sensitivity", "detectors", "cluster_range", "domains",
    "foreground_traits", "checkpoint_consistency", "policy", "mitigated_one_to_many", "mitigation_scores",
    "image_quality", "attacks", "memorization_rates", "thresholds", "robustness", "disagreements",
]  # fmt: skip


@dg.asset(
    group_name=STAGE,
    deps=_AFTER,
    kinds={"html"},
    owners=[OWNER],
    tags={"fbmem/stage": STAGE},
    code_version=CODE_VERSION,
    partitions_def=checkpoint_partitions,
)
def report(context: dg.AssetExecutionContext, store: AuditStore) -> dg.MaterializeResult:
    """One page per checkpoint for people: what is memorized, the pictures, how sure it is and how it was made.

    `report.html` needs no network; `findings.csv` and `report.json` beside it hold the same numbers.
    """
    key = context.partition_key
    path, headline = write_page(store, key)
    return dg.MaterializeResult(
        metadata={
            "summary": dg.MetadataValue.md(f"**{headline['sentence']}** {headline['images']}.\n\n{headline['limits']}"),
            "report": dg.MetadataValue.url(path.as_uri()),
            "dagster/uri": dg.MetadataValue.path(str(path)),
            "prompts with copies": headline["num_prompts_copied"],
            "images that are copies": headline["num_copies"],
        }
    )


@dg.asset(
    group_name=STAGE,
    deps=[*_AFTER, "report"],
    kinds={"duckdb"},
    owners=[OWNER],
    tags={"fbmem/stage": STAGE},
    code_version=CODE_VERSION,
)
def warehouse(store: AuditStore) -> dg.MaterializeResult:
    """The rows of every table and the views over them, of every audited checkpoint: `fbmem.duckdb`, in one file."""
    from fbmem_core.store.warehouse import build_warehouse, query

    path = build_warehouse(store.tables)
    counts = query(
        store.tables, " UNION ALL ".join(f"SELECT '{t}' AS name, count(*) AS n FROM \"{t}\"" for t in (*VIEWS, *TABLES))
    )
    num = dict(counts.iter_rows()) if counts is not None else {}
    grains = {name: part.grain for name, part in VIEWS.items()} | {name: part.grain for name, part in TABLES.items()}
    rows = [{"table": name, "rows": num.get(name), "grain": grain} for name, grain in grains.items()]
    return dg.MaterializeResult(
        metadata={"dagster/uri": dg.MetadataValue.path(str(path)), "tables": markdown_table(rows)}
    )


def write_page(store: AuditStore, key: str, **choices: Any) -> tuple[Path, dict[str, Any]]:
    """Write the report of one checkpoint with its manifest.

    `choices`: `compare`, another partition; `out`, another file; `redacted`, without pictures and names.

    Returns:
        The path of the page and the numbers of its first screen.
    """
    from fbmem_core.report.evidence import gather
    from fbmem_core.report.page import write_report
    from fbmem_core.store.manifest import write_manifest

    tables = store.tables
    has_scores = not tables.read("mitigation_scores", key).is_empty()
    mitigations = method_table(store.open(key)).to_dicts() if has_scores else []
    evidence = gather(tables, key, compare=choices.get("compare"), mitigations=mitigations)
    path = write_report(tables, evidence, out=choices.get("out"), redacted=choices.get("redacted", False))
    write_manifest(tables, key, path)
    return path, evidence.headline


def write_evidence(store: AuditStore, key: str) -> Path:
    """The report and `fbmem.duckdb`, whatever stages an audit came to. Returns the path of the report."""
    from fbmem_core.store.warehouse import build_warehouse

    path, _ = write_page(store, key)
    build_warehouse(store.tables)
    return path


def report_path(store: AuditStore, key: str) -> Path:
    """Path of the report of a checkpoint."""
    from fbmem_core.report.page import REPORTS_DIR

    return store.tables.root / REPORTS_DIR / key / "report.html"
