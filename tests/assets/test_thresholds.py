"""Thresholds, second scores, near-duplicates and robustness, in the audit of a slice of the canary."""

import polars as pl
import pytest

from fbmem_core.audit.results import BASELINE, open_audit
from tests.assets.conftest import NUM_SEEDS, SLICE_PROMPTS, SLICE_REFERENCES


@pytest.fixture
def judged(audited):
    """(audit, output) of the slice."""
    store, _, run = audited
    return open_audit(store), run.stdout


def test_controls_come_from_references_declared_prompts_and_held_out_pictures(judged):
    controls = judged[0].read("control_similarities")
    counts = dict(controls.group_by("source").agg(pl.col("control_id").n_unique()).iter_rows())
    assert counts == {"references": len(SLICE_REFERENCES), "non_memorized": 1, "held_out": 12}
    assert controls.filter(source="non_memorized")["control_id"].unique().to_list() == ["none/public-00/0"]
    assert not controls["is_near_duplicate"].any()
    assert controls.filter(pl.col("control_id") == pl.col("reference_id")).is_empty()


def test_few_controls_give_no_calibrated_threshold_and_say_why(judged):
    audit, output = judged
    table = audit.read("thresholds")
    assert table["threshold"].null_count() == len(table)
    assert not table["is_headline"].any()
    row = table.filter(source="held_out", region="any").sort("num_references").row(-1, named=True)
    assert row["reason"].startswith("12 controls: below 100 there is no calibrated threshold")
    assert (row["num_references"], row["fixed_threshold"], row["num_controls"]) == (8, 0.8, 12)
    assert row["fixed_rate_high"] < 0.5
    assert "false copies: no calibrated threshold (non_memorized: 1 control" in output


def test_every_listed_pair_has_a_second_score_and_disagreements_are_listed(judged, tiny_sscd):
    audit, _ = judged
    scores = audit.read("sscd_similarities")
    pairs = audit.read("similarities", BASELINE).filter(masking="masked")
    pairs = pairs.select("prompt_id", "seed", "reference_id").unique()
    assert len(scores.filter("is_listed")) == len(pairs)
    nearest = scores.filter("is_nearest").group_by("prompt_id", "seed").len()
    assert nearest["len"].to_list() == [1] * len(SLICE_PROMPTS) * NUM_SEEDS
    assert scores["network"].unique().to_list()[0].startswith(tiny_sscd.name)
    assert scores["sscd_full"].is_between(-1.0001, 1.0001).all()
    # an untrained network finds everything alike
    table = audit.read("disagreements")
    for row in table.iter_rows(named=True):
        is_copy = row["label"] != "NM"
        assert row["kind"] == ("only_measure" if is_copy else "only_sscd")
    alike = scores.filter(pl.col("sscd_full") >= 0.75).select("prompt_id", "reference_id").rows()
    assert set(table.filter(kind="only_sscd").select("prompt_id", "reference_id").rows()) <= set(alike)


def test_labels_are_made_again_under_disturbances(judged):
    audit, _ = judged
    table = audit.read("robustness")
    assert set(table["changes"]) == {"image", "mask", "beta"}
    assert set(table["num_images"]) == {4}
    assert table.filter(disturbance="beta 0.03")["num_flips"].to_list() == [0]
    assert (table["low"] <= table["rate"]).all()
    assert (table["rate"] <= table["high"]).all()
    fragile = audit.read("fragile_labels")
    small = set(table.filter("is_small")["disturbance"])
    for row in fragile.iter_rows(named=True):
        assert row["is_fragile"] == bool(small & set(row["flips"]))
    flips = fragile.explode("flips").drop_nulls("flips").group_by("flips").len()
    assert dict(flips.iter_rows()) == dict(
        table.filter(pl.col("num_flips") > 0).select("disturbance", "num_flips").iter_rows()
    )
