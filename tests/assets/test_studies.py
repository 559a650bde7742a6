"""Stages detectors and studies on a part of the canary."""

import numpy as np
import polars as pl
import pytest

from fbmem_core.audit.results import open_audit
from fbmem_core.errors import InputError
from fbmem_core.evaluation.detection import detection
from tests.assets.conftest import SLICE_PROMPTS


@pytest.fixture(scope="module")
def audit(audited):
    assert audited[2].exit_code == 0, audited[2].stderr
    return open_audit(audited[0])


def test_every_detector_scores_every_prompt_over_the_same_seeds(audit):
    scores = audit.read("detector_scores")
    names = audit.config.detection.detectors
    assert set(scores.select("detector", "prompt_id").iter_rows()) == {
        (name, prompt_id) for name in names for prompt_id in SLICE_PROMPTS
    }
    assert scores["num_seeds"].unique().to_list() == [audit.config.detection.num_seeds]
    assert (scores["seconds"] > 0).all()


def test_the_table_of_detectors_is_made_of_the_scores_and_labels(audit):
    memorized = set(audit.memorized_prompts)
    for row in audit.read("detectors").iter_rows(named=True):
        scores = audit.read("detector_scores").filter(detector=row["detector"])
        expected = detection(scores["score"].to_list(), [name in memorized for name in scores["prompt_id"]])
        assert (row["half"], row["status"]) == ("test", "measured")
        assert row["auc"] == pytest.approx(expected.auc)
        assert (row["num_memorized"], row["num_non_memorized"]) == (len(memorized), len(SLICE_PROMPTS) - len(memorized))
        assert row["seconds"] == pytest.approx(scores["seconds"].mean())


def test_every_study_ends_in_a_sentence(audit):
    rows = audit.read("studies")
    assert set(rows["study"]) >= {"cluster_range", "domains", "foreground_probe", "policy"}
    assert all(sentence.endswith(".") for sentence in rows["sentence"])
    intervals = rows.drop_nulls("low")
    assert (intervals["low"] <= intervals["high"]).all()
    # one checkpoint alone has none to be compared with, and the slice too few foregrounds for a probe
    assert rows.filter(study="consistency").is_empty()
    assert rows.filter(pl.col("study") == "foreground_probe")["value"].is_null().all()


def test_without_a_policy_all_copies_weigh_what_they_are(audit):
    from fbmem_core.labels import SEVERITY

    labels = audit.summary_labels().drop_nulls("label")
    means = labels.with_columns(pl.col("label").replace_strict(SEVERITY, return_dtype=pl.Float64)).group_by("prompt_id")
    expected = means.agg(pl.col("label").mean())["label"].mean()
    [row] = audit.read("studies").filter(study="policy", subject="all prompts").to_dicts()
    assert row["value"] == pytest.approx(expected)


@pytest.mark.parametrize("content", ["- a list", "person: heavy", "person: 2"])
def test_a_policy_is_a_mapping_of_weights_from_0_to_1(tmp_path, content):
    from fbmem_assets.stages.studies import read_policy

    file = tmp_path / "policy.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="Expected a mapping of tags to weights from 0 to 1"):
        read_policy(file)
    file.write_text("person: 1\npublic_domain: 0\n")
    assert read_policy(file) == {"person": 1.0, "public_domain": 0.0}


def test_the_shape_of_a_foreground_is_its_size_place_and_form():
    from fbmem_assets.stages.studies import _shape

    matte = np.zeros((10, 20))
    matte[0:5, 0:10] = 1
    size, distance, form = _shape(matte)
    assert (size, form) == (0.25, 2.0)
    assert distance == pytest.approx(np.hypot(0.3, 0.275))
    assert _shape(np.zeros((4, 4))) is None
