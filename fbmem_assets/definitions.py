"""The entry point that Dagster loads. STAGES is the pipeline, in order."""

from __future__ import annotations

import warnings

import dagster as dg

warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from fbmem_assets.orchestration.executors import choose_executor  # noqa: E402
from fbmem_assets.orchestration.progress import announce_stages  # noqa: E402
from fbmem_assets.orchestration.resources import AuditStore, store_root  # noqa: E402
from fbmem_assets.orchestration.sensors import JOB, changed_checkpoints, reaudit  # noqa: E402
from fbmem_assets.stages import (  # noqa: E402
    agreement,
    attacks,
    changes,
    cluster_neurons,
    clusters,
    copied_regions,
    detectors,
    generations,
    image_quality,
    labels,
    masks,
    mitigations,
    neighbors,
    neurons,
    prompts,
    report,
    robustness,
    scores,
    sensitivity,
    similarities,
    sscd,
    studies,
    thresholds,
)

STAGES = (
    prompts, generations, masks, neighbors, similarities, labels, copied_regions, sscd, thresholds, robustness,
    agreement, detectors, clusters, neurons, cluster_neurons, mitigations, attacks, scores, image_quality, sensitivity,
    studies, changes, report,
)  # fmt: skip


def stage_names() -> list[str]:
    """The stages in order, each once."""
    return list(dict.fromkeys(module.STAGE for module in STAGES))


assets = dg.load_assets_from_modules(STAGES)
checks = dg.load_asset_checks_from_modules(STAGES)
announce_stages(stage_names(), assets)
audit_job = dg.define_asset_job(
    JOB,
    selection=dg.AssetSelection.all(),
    description="The whole audit of one checkpoint. In one process, which loads a model once, unless told otherwise.",
)


def audit_job_in_process(selection: dg.AssetSelection) -> dg.JobDefinition:
    """The job `audit` of these assets and their checks, for the command line, which runs it in its own process."""
    job = dg.define_asset_job(JOB, selection=selection, executor_def=dg.in_process_executor)
    parts = dg.Definitions(
        assets=assets, asset_checks=checks, jobs=[job], resources={"store": AuditStore(root=store_root())}
    )
    return parts.resolve_job_def(JOB)


defs = dg.Definitions(
    assets=assets,
    asset_checks=checks,
    jobs=[audit_job],
    sensors=[changed_checkpoints],
    schedules=[reaudit],
    resources={"store": AuditStore(root=store_root())},
    executor=choose_executor(),
)
