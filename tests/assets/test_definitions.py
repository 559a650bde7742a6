"""The graph: its names are public, its order is STAGES."""

import subprocess
import sys

import dagster as dg

from fbmem_assets.definitions import STAGES, defs

GRAPH = {
    "prompts": set(),
    "reference_images": set(),
    "generations": {"prompts", "reference_images"},
    "generation_masks": {"generations"},
    "reference_masks": {"reference_images"},
    "neighbors": {"generation_masks", "reference_masks"},
    "similarities": {"neighbors"},
    "labels": {"similarities"},
    "one_to_many": {"similarities"},
    "copied_regions": {"similarities"},
    "sscd_similarities": {"similarities", "reference_masks"},
    "disagreements": {"sscd_similarities"},
    "control_similarities": {"similarities", "reference_masks"},
    "thresholds": {"control_similarities"},
    "robustness": {"labels", "reference_masks"},
    "seed_agreement": {"prompts", "generation_masks", "labels"},
    "prompt_clusters": {"prompts"},
    "activation_statistics": {"labels"},
    "similarity_thresholds": {"labels"},
    "neurons": {"prompts", "activation_statistics", "similarity_thresholds"},
    "cluster_neurons": {"prompt_clusters", "neurons"},
    "cluster_sensitivity": {"prompt_clusters", "neurons", "mitigation_scores"},
    "prompt_labels": {"prompts", "labels"},
    "audit_diff": {"prompt_labels"},
    "memorization_rates": {"audit_diff"},
    "mitigated_generations": {"labels", "prompt_clusters", "neurons"},
    "mitigated_generation_masks": {"mitigated_generations"},
    "mitigated_neighbors": {"mitigated_generation_masks", "reference_masks"},
    "mitigated_similarities": {"mitigated_neighbors"},
    "mitigated_labels": {"mitigated_similarities"},
    "mitigated_one_to_many": {"mitigated_similarities"},
    "mitigated_copied_regions": {"mitigated_similarities"},
    "attacks": {"labels", "mitigated_labels", "reference_masks"},
    "mitigation_scores": {"labels", "mitigated_labels"},
    "image_quality": {"mitigation_scores", "labels", "mitigated_labels"},
    "detectors": {"prompts", "generation_masks", "labels"},
    "cluster_range": {"mitigation_scores", "cluster_sensitivity"},
    "domains": {"prompt_clusters", "neurons", "labels"},
    "foreground_traits": {"mitigated_labels", "generation_masks"},
    "checkpoint_consistency": {"neurons", "labels", "one_to_many"},
    "policy": {"labels", "reference_images"},
    "report": {
        "one_to_many",
        "copied_regions",
        "mitigated_copied_regions",
        "seed_agreement",
        "cluster_neurons",
        "cluster_sensitivity",
        "detectors",
        "cluster_range",
        "domains",
        "foreground_traits",
        "checkpoint_consistency",
        "policy",
        "mitigated_one_to_many",
        "mitigation_scores",
        "image_quality",
        "attacks",
        "memorization_rates",
        "thresholds",
        "robustness",
        "disagreements",
    },
    "warehouse": {
        "report",
        "one_to_many",
        "copied_regions",
        "mitigated_copied_regions",
        "seed_agreement",
        "cluster_neurons",
        "cluster_sensitivity",
        "detectors",
        "cluster_range",
        "domains",
        "foreground_traits",
        "checkpoint_consistency",
        "policy",
        "mitigated_one_to_many",
        "mitigation_scores",
        "image_quality",
        "attacks",
        "memorization_rates",
        "thresholds",
        "robustness",
        "disagreements",
    },
}


def _all_specs():
    return [spec for asset in defs.assets for spec in asset.specs]


def test_the_graph_has_these_assets_and_edges():
    found = {spec.key.to_user_string(): {d.asset_key.to_user_string() for d in spec.deps} for spec in _all_specs()}
    assert found == GRAPH


def test_the_definitions_can_be_loaded():
    dg.Definitions.validate_loadable(defs)


def test_every_parent_belongs_to_an_earlier_or_the_same_stage():
    order = [module.STAGE for module in STAGES]
    stage_of = {spec.key: order.index(spec.group_name) for spec in _all_specs()}
    for spec in _all_specs():
        for dependency in spec.deps:
            assert stage_of[dependency.asset_key] <= stage_of[spec.key]


def test_every_asset_says_what_it_is_and_every_table_states_its_grain():
    for spec in _all_specs():
        assert spec.description
        if spec.key.to_user_string() not in ("report", "warehouse"):
            assert spec.metadata["grain"].startswith("One row per")
            assert spec.metadata["dagster/column_schema"].columns
            assert spec.partitions_def is not None


def test_every_stage_that_counts_rows_has_a_check():
    checked = {check.asset_key.to_user_string() for checks in defs.asset_checks for check in checks.check_keys}
    assert checked == {
        "prompts", "reference_images", "generations", "generation_masks", "reference_masks", "neighbors",
        "similarities", "labels", "copied_regions", "mitigated_copied_regions", "detectors", "thresholds",
        "one_to_many", "seed_agreement", "neurons", "cluster_neurons", "mitigated_generations",
        "mitigated_generation_masks", "mitigated_neighbors", "mitigated_similarities", "mitigated_labels",
        "mitigation_scores", "memorization_rates",
    }  # fmt: skip


def test_loading_the_definitions_does_not_import_torch():
    code = (
        "import sys, fbmem_assets.definitions; print([m for m in ('torch', 'diffusers', 'rembg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
