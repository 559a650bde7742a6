"""Stages mitigations, attacks and scores on a part of the canary."""

import shutil

import polars as pl
import pytest
from PIL import Image

from fbmem_core.evaluation.scores import mitigation_score
from fbmem_core.store.tables import Store
from tests.assets.conftest import CANARY, NUM_SEEDS, SLICE_PROMPTS, SLICE_REFERENCES

METHODS = ("random", "nemo_c", "fade")
MEMORIZED = tuple(p for p in SLICE_PROMPTS if not p.startswith("public"))


@pytest.fixture(scope="module")
def tables(audited):
    assert audited[2].exit_code == 0, audited[2].stderr
    store = Store(audited[0])
    [key] = store.partitions("checkpoints")
    return lambda name: store.read(name, key)


def labels(tables, method):
    rows = tables("labels").filter(
        (pl.col("method") == method) & (pl.col("masking") == "masked") & (pl.col("rule") == "paper")
    )
    return {
        (prompt_id, seed): label for prompt_id, seed, label in rows.select("prompt_id", "seed", "label").iter_rows()
    }


def test_every_method_has_the_images_of_the_model_as_it_is(tables):
    images = tables("generations").group_by("method").agg(pl.struct("prompt_id", "seed").sort()).to_dicts()
    of = {row["method"]: row["prompt_id"] for row in images}
    assert set(of) == {"none", *METHODS}
    assert all(of[method] == of["none"] for method in METHODS)
    assert len(of["none"]) == NUM_SEEDS * len(SLICE_PROMPTS)
    masked = {image_id.split("/")[0] for image_id in tables("masks")["image_id"] if "/" in image_id}
    assert masked == set(of)


def test_random_neurons_leave_the_memory_and_chosen_ones_remove_it(tables):
    scores = {row["method"]: row for row in tables("mitigation_scores").to_dicts() if row["weights"] == "severity"}
    assert scores["random"]["score"] <= 0.15 * scores["random"]["achievable"]
    for method in ("nemo_c", "fade"):
        assert scores[method]["score"] >= 0.6 * scores[method]["achievable"]


def test_scores_are_those_of_the_labels_matched_by_prompt_and_seed(tables):
    before = {key: label for key, label in labels(tables, "none").items() if key[0] in MEMORIZED}
    for row in tables("mitigation_scores").to_dicts():
        after = {key: label for key, label in labels(tables, row["method"]).items() if key[0] in MEMORIZED}
        expected = mitigation_score(before, after, weights=row["weights"])
        assert {name: row[name] for name in vars(expected)} == vars(expected)


def test_transitions_count_every_image_once(tables):
    table = tables("label_transitions")
    assert set(table.group_by("method").agg(pl.col("num_generations").sum()).iter_rows()) == {
        (method, NUM_SEEDS * len(MEMORIZED)) for method in METHODS
    }


def test_what_a_method_switches_off_is_in_the_tables(tables):
    facts = {row["method"]: row for row in tables("mitigations").to_dicts()}
    assert set(facts) == set(METHODS)
    off = tables("mitigated_neurons")
    assert set(off["factor"]) == {0.0}
    sizes = {m: dict(off.filter(pl.col("method") == m).group_by("prompt_id").len().iter_rows()) for m in METHODS}
    refined = tables("neurons").filter(pl.col("stage") == "refined").group_by("prompt_id").len()
    assert sizes["random"] == dict(refined.iter_rows())
    assert {"clockwork_owl-0", "zibble-0"} <= set(sizes["fade"])  # two seeds are few; a background needs more
    assert all(0 < facts[method]["share"] < 0.13 for method in METHODS)


def test_the_price_is_measured_or_says_why_not(tables):
    rows = {(r["method"], r["prompts"], r["metric"]): r for r in tables("image_quality").to_dicts()}
    assert rows["none", "non-memorized", "side_effect"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert 0 < rows["fade", "non-memorized", "side_effect"]["value"] <= 1
    for row in rows.values():
        assert (row["value"] is None) == row["status"].startswith("not measured"), row
    assert rows["none", "memorized", "clip"]["value"] is None  # its weights cannot be had here


def test_an_attack_has_a_row_for_each_prompt_that_has_neighbours(tables):
    attacks = tables("attacks")
    clusters = dict(tables("prompt_clusters").select("prompt_id", "cluster").iter_rows())
    expected = {
        (method, prompt_id)
        for method in METHODS
        for prompt_id in MEMORIZED
        if list(clusters.values()).count(clusters[prompt_id]) > 1
    }
    assert set(attacks.select("method", "prompt_id").iter_rows()) == expected
    assert (attacks["num_returned"] <= attacks["num_attempts"]).all()


@pytest.fixture
def controlled(audited, tmp_path):
    """A copy of the audit that asks for the control, too."""
    from fbmem_assets.orchestration.resources import AuditStore

    store = AuditStore(root=str(shutil.copytree(audited[0], tmp_path / "store")))
    [key] = store.tables.partitions("checkpoints")
    audit = store.open(key)
    mitigations = audit.config.mitigations.model_copy(
        update={"attacks": ["paraphrase", "adversarial", "control"], "held_out": CANARY / "held_out"}
    )
    audit.config = audit.config.model_copy(update={"mitigations": mitigations})
    return audit


def test_the_control_aims_at_a_picture_that_the_model_never_saw(controlled):
    from fbmem_assets.definitions import attacks

    targets = attacks._attacked(controlled)
    assert [row["prompt_id"] for row in targets["control"]] == [row["prompt_id"] for row in targets["adversarial"]]
    for target, control in zip(targets["adversarial"], targets["control"], strict=True):
        assert target["reference"] in target["own"]
        assert set(target["own"]) <= set(SLICE_REFERENCES)
        assert control["own"] == [control["reference"]]
        assert (CANARY / "held_out" / control["reference"]).is_file()


def test_only_a_likeness_to_the_pictures_that_are_aimed_at_counts(controlled):
    from fbmem_assets.definitions import attacks
    from fbmem_assets.stages.neighbors import reference_planes
    from fbmem_core.audit.results import MITIGATED

    paths = [CANARY / "references" / f"{name}.png" for name in ("clockwork_owl", "zibble")]
    paths += sorted((CANARY / "held_out").iterdir())[:1]
    images = [Image.open(path).convert("RGB") for path in paths]
    planes = reference_planes(controlled, MITIGATED)
    assert attacks._label(controlled, images, "one", planes, ["clockwork_owl"]) == ["VM", "NM", "NM"]
    assert attacks._label(controlled, images, "two", planes, ["clockwork_owl", "zibble"]) == ["VM", "VM", "NM"]
    strange = attacks._held_out_planes(controlled)
    assert attacks._label(controlled, images, "three", strange, [paths[2].name]) == ["NM", "NM", "VM"]


def test_shares_of_attacks_have_an_exact_interval_over_things(tables):
    shares = tables("attack_shares").to_dicts()
    assert {row["method"] for row in shares} == set(tables("attacks")["method"])
    for row in shares:
        assert row["low"] <= row["share"] == row["num_returned"] / row["num_units"] <= row["high"]


def test_the_command_ends_with_the_table_of_methods(audited):
    assert "mitigations of slice" in audited[2].stdout
    assert all(method in audited[2].stdout for method in METHODS)


def test_the_table_of_methods_can_be_written(audited, fbmem, tmp_path):
    run = fbmem("mitigations", tmp_path / "table.csv", "--store", audited[0])
    assert run.exit_code == 0, run.stderr
    table = pl.read_csv(tmp_path / "table.csv")
    assert table["method"].to_list() == ["none", *METHODS]
    assert run.stdout.splitlines()[0] == "| " + " | ".join(table.columns) + " |"
    none = table.row(0, named=True)
    assert (none["score"], none["side_effect"]) == (None, pytest.approx(1.0, abs=1e-5))
    assert none["VM"] + none["FM"] + none["BM"] == pytest.approx(1.0, abs=1e-5)


def test_a_table_that_is_not_there_is_one_line_and_status_2(fbmem, tmp_path):
    run = fbmem("mitigations", "--store", tmp_path)
    assert run.exit_code == 2
    assert run.stderr.startswith("fbmem: Expected one partition of `mitigation_scores`")
