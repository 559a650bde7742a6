"""The entry point that Dagster loads. STAGES is the pipeline, in order."""

from __future__ import annotations

import warnings

import dagster as dg

warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from fbmem_assets import (  # noqa: E402
    audit_diff,
    cluster_neurons,
    cluster_sensitivity,
    clusters,
    generations,
    labels,
    masks,
    mitigations,
    neighbors,
    neurons,
    prompts,
    report,
    retriggers,
    scores,
    seed_agreement,
    similarities,
)
from fbmem_assets.executors import choose_executor  # noqa: E402
from fbmem_assets.resources import AuditStore, store_root  # noqa: E402
from fbmem_assets.sensors import JOB, changed_checkpoints, reaudit  # noqa: E402

STAGES = (
    prompts, generations, masks, neighbors, similarities, labels, seed_agreement, clusters, neurons, cluster_neurons,
    mitigations, retriggers, scores, cluster_sensitivity, audit_diff, report,
)  # fmt: skip

assets = dg.load_assets_from_modules(STAGES)
checks = dg.load_asset_checks_from_modules(STAGES)
audit_job = dg.define_asset_job(
    JOB,
    selection=dg.AssetSelection.all(),
    description="The whole audit of one checkpoint. In one process, which loads a model once, unless told otherwise.",
)

defs = dg.Definitions(
    assets=assets,
    asset_checks=checks,
    jobs=[audit_job],
    sensors=[changed_checkpoints],
    schedules=[reaudit],
    resources={"store": AuditStore(root=store_root())},
    executor=choose_executor(),
)
