"""Parts of a report: copy maps, ways of elicitation, mitigations, settings that differ."""

import json

import numpy as np
import pytest
from PIL import Image

from fbmem_core.report.evidence import gather
from fbmem_core.report.maps import aligned, map_of_copies, parsed_transform
from fbmem_core.report.mitigated import pareto
from fbmem_core.report.page import write_report
from fbmem_core.similarity.alignment import Transform, shifted
from tests.core.evidence import KEY, blank, drawn_store, settings_of


@pytest.fixture
def picture():
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    return coarse.resize((256, 256), Image.Resampling.BICUBIC)


def _share(generation, reference, transform):
    _, regions = map_of_copies(generation, reference, transform=transform)
    return regions[0]["share_copied"]


def test_the_map_of_a_moved_copy_is_that_of_the_reference_as_it_was_moved(picture):
    moved = shifted(0.0625, -0.03125, mirrored=True)
    generation = Image.fromarray(moved.apply(np.asarray(picture)))
    assert _share(generation, picture, str(moved)) > 0.95
    assert _share(generation, picture, "whole") < 0.5
    x, y, covered = aligned(generation, picture, str(moved))
    assert np.abs(x.astype(int) - y)[covered].mean() < 4
    assert 0.85 < covered.mean() < 0.95


def test_the_map_shows_which_half_is_copied(picture):
    pixels = np.asarray(picture).copy()
    pixels[:, 128:] = np.random.default_rng(5).permutation(pixels[:, 128:].reshape(-1, 3)).reshape(256, 128, 3)
    drawn, regions = map_of_copies(Image.fromarray(pixels), picture, transform=None)
    orange = np.asarray(drawn).astype(int)[..., 0] - np.asarray(drawn)[..., 2] > 40
    assert orange[:, :120].mean() > 0.9
    assert orange[:, 136:].mean() < 0.1
    assert regions[0]["region"] == "image"


@pytest.mark.parametrize("words", ["whole", "mirrored", "shifted +5.0% -2.0%", "scaled 1.20, turned +5.0 degrees"])
def test_a_transform_is_read_as_it_is_said(words):
    transform = parsed_transform(words)
    assert isinstance(transform, Transform)
    assert str(transform) == words


def mitigated_store(root):
    """The drawn store, with one method that removes the owl and leaves the mug, attacked once."""
    store = drawn_store(root)
    rows = store.read("labels", KEY).drop("checkpoint").to_dicts()
    after = [row | {"method": "off"} | ({"label": "NM"} if row["prompt_id"] == "owl" else {}) for row in rows]
    store.write("labels", KEY, after, shard="mitigated")
    images = [row | {"method": "off"} for row in store.read("generations", KEY).drop("checkpoint").to_dicts()]
    store.write("generations", KEY, images, shard="mitigated")
    store.write("attack_shares", KEY, [
        blank("attack_shares", method="off", attack=attack, num_units=2, num_returned=k, share=k / 2, low=low, high=0.9)
        for attack, k, low in (("paraphrase", 0, 0.0), ("adversarial", 1, 0.1), ("control", 1, 0.1))
    ])  # fmt: skip
    return store


METHODS = [
    {"method": "none", "score": None, "low": None, "high": None, "achievable": None, "side_effect": 1.0},
    {"method": "off", "score": 0.5, "low": 0.25, "high": 1.0, "achievable": 1.0, "side_effect": 0.9},
]  # fmt: skip


def test_ways_of_elicitation_are_never_added_up(tmp_path):
    rows = gather(mitigated_store(tmp_path), KEY).elicited
    told = [(row["method"], row["way"], row["k"], row["n"]) for row in rows]
    assert told == [
        ("none", "ordinary", 3, 4), ("off", "ordinary", 2, 3),
        ("off", "adversarial", 1, 2), ("off", "control", 1, 2), ("off", "paraphrase", 0, 2),
    ]  # fmt: skip
    assert rows[0]["low"] == pytest.approx(0.194, abs=1e-3)  # exact, of 3 of 4


def test_the_grid_says_what_each_method_leaves_of_each_prompt(tmp_path):
    store = mitigated_store(tmp_path)
    evidence = gather(store, KEY, mitigations=METHODS)
    cells = {row["prompt_id"]: [(c["label"], c["k"], c["n"]) for c in row["cells"]] for row in evidence.grid}
    assert cells == {
        "owl": [("VM", 2, 3), ("NM", 0, 3)], "mug": [("FM", 2, 2), ("FM", 2, 2)], "bay": [("BM", 1, 3), ("BM", 1, 3)],
    }  # fmt: skip
    page = write_report(store, evidence).read_text("utf-8")
    assert "off: 50% of the severity left, side effect 0.90" in page
    assert "optimised embedding (reconstruction)" in page


def test_a_method_that_another_beats_in_both_is_no_best_one():
    worse = METHODS[1] | {"method": "worse", "score": 0.4, "side_effect": 0.8}
    best = {point["method"]: point["is_best"] for point in pareto([*METHODS, worse])}
    assert best == {"off": True, "worse": False}


def test_settings_that_differ_stand_above_what_changed(tmp_path):
    store = drawn_store(tmp_path)
    for table in ("checkpoints", "prompts", "labels", "audit_settings", "generations", "masks", "reference_images"):
        rows = store.read(table, KEY).drop("checkpoint").to_dicts()
        if table == "audit_settings":
            settings = settings_of(store)
            settings["similarity"]["tau"] = 0.9
            rows = [rows[0] | {"settings": json.dumps(settings), "tau": 0.9}]
        store.write(table, "drawn-older", rows, shard="none")
    evidence = gather(store, KEY, compare="drawn-older")
    assert evidence.changes["differing"] == [{"name": "similarity.tau", "before": 0.9, "after": 0.8}]
    assert "1 setting differs" in write_report(store, evidence).read_text("utf-8")


def test_controls_duplicates_robustness_and_disagreements_are_shown_and_withheld(tmp_path):
    store = drawn_store(tmp_path)
    image = {"method": "none", "prompt_id": "sky", "seed": 0, "reference_id": "r1"}
    store.write("thresholds", KEY, [
        blank("thresholds", source="references", region="any", num_references=size, num_controls=60, threshold=value,
              fixed_num_above=2, is_headline=size == 3)
        for size, value in ((2, 0.77), (3, 0.83))
    ])  # fmt: skip
    twins = {"source": "references", "full_similarity": 0.97, "is_near_duplicate": True}
    store.write("control_similarities", KEY, [
        blank("control_similarities", **twins, control_id=one, reference_id=two)
        for one, two in (("r1", "r2"), ("r2", "r1"))
    ])  # fmt: skip
    store.write("robustness", KEY, [
        blank("robustness", disturbance="blur", changes="image", is_small=False, num_images=12, num_flips=1),
    ])  # fmt: skip
    store.write("disagreements", KEY, [blank("disagreements", **image, kind="only_sscd", sscd_similarity=0.9)])
    evidence = gather(store, KEY)
    assert [row["threshold"] for row in evidence.controls] == [0.83]
    assert [(row["reference_id"], row["twin_reference_id"]) for row in evidence.duplicates] == [("r1", "r2")]
    page = write_report(store, evidence).read_text("utf-8")
    for text in ("0.830", "r1 and r2 (0.970)", "1 of 12", "1 pairs on which a second score"):
        assert text in page
    redacted = write_report(store, evidence, redacted=True).read_text("utf-8")
    assert "sky" not in redacted
    assert "r1 and r2" not in redacted


def test_the_kept_copy_map_and_its_regions_are_those_of_the_pair_that_the_finding_names(tmp_path):
    store = drawn_store(tmp_path)
    Image.new("RGB", (32, 32), (230, 159, 0)).save(tmp_path / "map.png")
    image = {"method": "none", "prompt_id": "owl", "seed": 0}
    store.write("copied_regions", KEY, [
        blank("copied_regions", **image, reference_id=reference, transform=transform, region="object 1", area=0.25,
              share_copied=share, map_path="map.png")
        for reference, transform, share in (("r0", "whole", 0.5), ("r0", "mirrored", 0.625), ("r2", "whole", 0.75))
    ])  # fmt: skip
    evidence = gather(store, KEY)
    transform = evidence.images["owl"][0]["transform"]
    assert [row["share_copied"] for row in evidence.places["owl"]] == [0.625 if transform == "mirrored" else 0.5]
    assert set(evidence.places) == {"owl"}
    page = write_report(store, evidence).read_text("utf-8")
    assert '<td class="num">50%</td>' in page.split('id="owl"')[1].split("</details>")[0]
