"""`fbmem score`: folders of images alone."""

import re
import shlex
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from PIL import Image

from fbmem_core.canary.pictures import Picture, draw, random_creature, random_scenery
from fbmem_core.retrieval.label_images import COPIED_REGIONS, LABELS, NEIGHBORS, REJECTED, SSCD
from tests.assets.conftest import CANARY, PROJECT

SIDE = 176


def picture(seed):
    rng = np.random.default_rng(seed)
    return Picture("", random_creature(rng), random_scenery(rng))


def save(folder, name, drawn):
    """The picture, and its exact mask in a folder beside."""
    image, alpha = draw(drawn, size=SIDE)
    masks = folder.with_name(f"{folder.name}-masks")
    for directory in (folder, masks):
        directory.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(np.round(alpha * 255).astype(np.uint8)).save(masks / f"{name}.png")


@pytest.fixture
def folders(tmp_path):
    """(generated, references): one generation for each label."""
    castle, harbor, other = picture(1), picture(2), picture(3)
    generated, references = tmp_path / "generated", tmp_path / "training-images"
    for name, drawn in (("castle", castle), ("harbor", harbor), ("unrelated", picture(4))):
        save(references, name, drawn)
    save(generated, "whole", castle)
    save(generated, "object", replace(castle, scenery=other.scenery))
    save(generated, "scenery", replace(harbor, object=other.object))
    save(generated, "nothing", other)
    return generated, references


@pytest.fixture
def score(fbmem, folders, tmp_path):
    """Call `fbmem score` on both folders with their masks; gives the call and the path of the labels."""

    def call(*options, masks=("--generated-masks", "--reference-masks")):
        out = tmp_path / "labels.parquet"
        given = [part for name, folder in zip(masks, folders, strict=False) for part in (name, f"{folder}-masks")]
        return fbmem("score", *folders, "--out", out, "--size", SIDE, *given, *options), out

    return call


@pytest.mark.parametrize("rule", ["paper", "per_region"])
def test_every_image_has_its_label_and_the_references_it_came_from(score, rule):
    run, out = score("--rule", rule)
    assert run.exit_code == 0, run.stderr
    labels = pl.read_parquet(out)
    assert labels.schema == pl.Schema(LABELS)
    by_name = {row["generation"]: row for row in labels.to_dicts()}
    assert {name: row["label"] for name, row in by_name.items()} == {
        "whole": "VM", "object": "FM", "scenery": "BM", "nothing": "NM",
    }  # fmt: skip
    assert by_name["whole"]["full_reference"] == "castle"
    assert by_name["object"]["foreground_reference"] == "castle"
    assert by_name["scenery"]["background_reference"] == "harbor"
    assert "4 images, 0 rejected" in run.stdout


def test_what_is_copied_stands_beside_the_labels_region_by_region_with_a_picture(score):
    run, out = score()
    assert run.exit_code == 0, run.stderr
    table = pl.read_parquet(out.with_name("labels.copied_regions.parquet"))
    assert table.schema == pl.Schema(COPIED_REGIONS)
    best = table.filter((pl.col("generation") == "whole") & (pl.col("reference") == "castle"))
    assert set(best["region"]) >= {"image", "foreground", "background", "object 1", "reference object 1"}
    assert best["share_copied"].drop_nulls().min() > 0.95
    shares = table.filter(pl.col("transform") == "whole").rows_by_key(["generation", "reference", "region"], named=True)
    [copied], [new] = (shares["object", "castle", region] for region in ("object 1", "background"))
    assert copied["share_copied"] > 0.8
    assert new["share_copied"] < 0.3
    for path in table["map_path"].unique():
        with Image.open(out.with_name("labels.copies") / path) as picture:
            assert picture.size == (256, 256)
    assert set(pl.read_parquet(out)["searched"]) == {"in place, mirrored, shifted by up to 12 % of the side"}
    assert "searched: in place, mirrored" in run.stdout


def test_the_nearest_references_stand_beside_the_labels(score):
    run, out = score("--floor", 0, "--top-k", 2, "--alignment", "none")
    assert run.exit_code == 0, run.stderr
    neighbors = pl.read_parquet(out.with_name("labels.neighbors.parquet"))
    assert neighbors.schema == pl.Schema(NEIGHBORS)
    assert neighbors["complete"].all()
    counts = neighbors.group_by("generation", "region").len()
    assert len(counts) == 4 * 4
    assert set(counts["len"]) == {2}
    whole = neighbors.filter((pl.col("generation") == "whole") & (pl.col("rank") == 1))
    assert set(whole["reference"]) == {"castle"}
    assert whole["similarity"].min() > 0.99


def test_without_masks_the_segmenter_makes_them(score):
    run, out = score("--segmenter", CANARY / "segmenter.onnx", masks=())
    assert run.exit_code == 0, run.stderr
    assert dict(pl.read_parquet(out).select("generation", "label").iter_rows()) == {
        "whole": "VM", "object": "FM", "scenery": "BM", "nothing": "NM",
    }  # fmt: skip


def test_the_command_of_the_readme_runs(fbmem, folders, tmp_path, monkeypatch):
    [command] = re.findall(r"^\$ fbmem (score .+)$", (PROJECT / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    run = fbmem(*shlex.split(command), "--segmenter", CANARY / "segmenter.onnx", "--size", SIDE)
    assert run.exit_code == 0, run.stderr
    assert (tmp_path / "labels.parquet").is_file()


def test_files_that_cannot_be_used_are_counted_rows(score, folders):
    generated, references = folders
    content = (references / "castle.png").read_bytes()
    (references / "castle_again.png").write_bytes(content)
    (references / "broken.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (1, 1), "red").save(generated / "dot.png")
    run, out = score()
    assert run.exit_code == 0, run.stderr
    rejected = pl.read_parquet(out.with_name("labels.rejected.parquet"))
    assert rejected.schema == pl.Schema(REJECTED)
    reasons = dict(rejected.select("item", "reason").iter_rows())
    assert set(reasons) == {"castle_again.png", "broken.png", "dot.png"}
    assert reasons["castle_again.png"] == "the same file as castle"
    assert "truncated" in reasons["broken.png"]
    assert reasons["dot.png"] == "only 1x1 px"
    assert "3 rejected" in run.stdout
    assert run.stderr.count("rejected: ") == 3


def test_images_of_any_shape_are_compared(score, folders):
    generated, _ = folders
    wide = Image.open(generated / "whole.png").resize((20_000, 40))
    wide.save(generated / "wide.png")
    Image.new("L", wide.size, 255).save(generated.with_name("generated-masks") / "wide.png")
    Image.new("RGB", (300, 200)).save(generated / "black.png")  # what a safety filter leaves
    Image.new("L", (300, 200)).save(generated.with_name("generated-masks") / "black.png")
    run, out = score()
    assert run.exit_code == 0, run.stderr
    assert dict(pl.read_parquet(out).select("generation", "label", "undecided").rows_by_key("generation"))["black"] == [
        (None, "background")
    ]
    assert "nothing in it can be recognised: background 1; 1 of these images have no label" in run.stdout
    assert len(pl.read_parquet(out)) == 6


def refused(run, *parts):
    assert run.exit_code == 2
    [line] = [line for line in run.stderr.splitlines() if line.startswith("fbmem: ")]
    for part in parts:
        assert part in line
    return True


def test_an_empty_folder_is_refused(score, folders):
    for file in folders[0].iterdir():
        file.unlink()
    assert refused(score()[0], "Expected images", "but got none", str(folders[0]))


def test_a_folder_of_unusable_files_is_refused_with_the_first_reason(score, folders):
    for file in folders[1].iterdir():
        file.write_bytes(b"not a picture")
    assert refused(score()[0], "usable references", "UnidentifiedImageError", str(folders[1]))


def test_a_missing_folder_is_refused(fbmem, folders, tmp_path):
    run = fbmem("score", folders[0], tmp_path / "nowhere", "--out", tmp_path / "labels.parquet")
    assert refused(run, "a folder of images", "nowhere")


def test_a_mask_of_another_size_is_refused(score, folders):
    mask = folders[0].with_name("generated-masks") / "object.png"
    Image.new("L", (SIDE, SIDE + 1)).save(mask)
    assert refused(score()[0], "a mask of 176x176 px", "176x177", "object.png")


def test_a_missing_mask_is_refused(score, folders):
    (folders[1].with_name("training-images-masks") / "harbor.png").unlink()
    assert refused(score()[0], "a mask for harbor.png", "Add it")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--floor", 0.9), ("floor to be at most tau (0.8)", "`0.9`")),
        (("--size", 100), ("size to be greater than or equal to 161", "`100`")),
        (("--top-k", 0), ("top_k", "`0`")),
    ],
)
def test_impossible_options_are_refused(score, options, parts):
    assert refused(score(*options)[0], *parts)


def test_sscd_gives_its_own_nearest_references(score, folders, tiny_sscd):
    run, out = score("--sscd", tiny_sscd)
    assert run.exit_code == 0, run.stderr
    found = pl.read_parquet(out.with_name("labels.sscd.parquet"))
    assert found.schema == pl.Schema(SSCD)
    nearest = {(row["generation"], row["region"]): row for row in found.to_dicts()}
    assert len(nearest) == 4 * 3
    assert nearest["whole", "full"]["reference"] == "castle"
    assert nearest["whole", "full"]["similarity"] == pytest.approx(1, abs=1e-5)
    assert nearest["object", "foreground"]["reference"] == "castle"
    assert nearest["object", "foreground"]["similarity"] > 0.99
    assert "320x320" in nearest["whole", "full"]["network"]


def test_a_missing_sscd_network_is_named_with_the_cure(score, tmp_path):
    assert refused(score("--sscd", tmp_path / "no.pt")[0], "an SSCD network", "no.pt", "Download")
