"""Stages seed_agreement, clusters and neurons on a part of the canary, and the commands that use what they find."""

import csv

import polars as pl
import pytest

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.neurons.files import read_neuron_sets
from fbmem_core.neurons.layers import value_layers
from fbmem_core.store.tables import Store
from tests.assets.conftest import CANARY, SLICE_PROMPTS

ROUTED = ("clockwork_owl-0", "zibble-0", "hotel_azul-0")


@pytest.fixture(scope="module")
def tables(audited):
    store = Store(audited[0])
    [folder] = (store.root / "tables" / "neurons").iterdir()
    key = folder.name.removeprefix("partition=")
    return lambda name: store.read(name, key)


def planted(family):
    with (CANARY / "neurons.csv").open(encoding="utf-8", newline="") as file:
        return {(row["layer"], int(row["neuron"])) for row in csv.DictReader(file) if row["family"] == family}


def refined(tables):
    rows = tables("neurons").filter(pl.col("stage") == "refined")
    return {
        prompt_id: set(some.select("layer", "neuron").iter_rows()) for (prompt_id,), some in rows.group_by("prompt_id")
    }


def test_planted_prompts_get_neurons_and_the_public_one_gets_none(tables):
    summaries = tables("localizations")
    assert summaries["prompt_id"].to_list() == sorted(SLICE_PROMPTS)
    assert set(refined(tables)) == set(ROUTED)
    public = summaries.row(by_predicate=pl.col("prompt_id") == "public-00", named=True)
    assert (public["num_seeds"], public["num_refined"], public["is_reached"]) == (0, 0, None)


@pytest.mark.parametrize("prompt_id", ROUTED)
def test_the_neurons_that_are_found_are_those_that_were_planted(tables, prompt_id):
    found, truth = refined(tables)[prompt_id], planted(prompt_id.rpartition("-")[0])
    total = len(tables("activation_statistics"))
    hits = len(found & truth)
    # as many by chance: found * planted / total
    assert hits >= 2
    assert hits > 5 * len(found) * len(truth) / total


def test_every_refined_neuron_was_selected_first_and_has_its_z_score(tables):
    rows = tables("neurons")
    initial = set(rows.filter(pl.col("stage") == "initial").select("prompt_id", "layer", "neuron").iter_rows())
    assert {(p, *neuron) for p, some in refined(tables).items() for neuron in some} < initial
    assert rows["z_score"].is_finite().all()
    assert (rows["activation"] >= 0).all()


def test_unions_over_clusters_are_exact(tables):
    cluster_of = dict(tables("prompt_clusters").select("prompt_id", "cluster").iter_rows())
    expected = {}
    for prompt_id, neurons in refined(tables).items():
        for neuron in neurons:
            expected[cluster_of[prompt_id], *neuron] = expected.get((cluster_of[prompt_id], *neuron), 0) + 1
    found = {(c, layer, n): num for c, layer, n, num in tables("cluster_neurons").drop("checkpoint").iter_rows()}
    assert found == expected


def test_every_prompt_has_a_cluster_and_other_numbers_were_tried(tables):
    assert tables("prompt_clusters")["prompt_id"].to_list() == sorted(SLICE_PROMPTS)
    sensitivity = tables("cluster_sensitivity")
    assert sensitivity["count"].to_list() == [2, 3]
    assert (sensitivity["max_union"] > 0).all()


def test_seeds_agree_where_the_model_remembers(tables):
    rows = {row["prompt_id"]: row for row in tables("seed_agreement").to_dicts()}
    assert set(rows) == set(SLICE_PROMPTS)
    public = rows["public-00"]
    assert all(max(rows[p]["inside"], rows[p]["outside"]) > max(public["inside"], public["outside"]) for p in ROUTED)
    assert rows["zibble-0"]["inside"] > rows["zibble-0"]["outside"]
    assert public["predicted_label"] == "NM"
    assert rows["clockwork_owl-0"]["predicted_label"] == "VM"


@pytest.mark.parametrize("suffix", ["parquet", "safetensors", "csv"])
def test_neuron_sets_can_be_taken_out_of_the_store(tables, audited, fbmem, tmp_path, suffix):
    run = fbmem("neurons", tmp_path / f"sets.{suffix}", "--store", audited[0])
    assert run.exit_code == 0, run.stderr
    layers = value_layers(load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu"))
    sets = read_neuron_sets(tmp_path / f"sets.{suffix}", layers)
    assert {name: set(neurons) for name, neurons in sets.items()} == refined(tables)
    assert "3 sets" in run.stdout


def test_neurons_are_switched_off_in_a_copy_of_the_checkpoint(audited, fbmem, tmp_path):
    file = tmp_path / "sets.parquet"
    fbmem("neurons", file, "--by", "cluster", "--store", audited[0])
    assert set(pl.read_parquet(file)["name"]) <= {"0", "1", "2"}
    fbmem("neurons", file, "--store", audited[0])
    run = fbmem("deactivate", CANARY / "checkpoint", file, tmp_path / "quiet", "--name", "zibble-0")
    assert run.exit_code == 0, run.stderr
    [neurons] = (sets for name, sets in read_neuron_sets(file, ()).items() if name == "zibble-0")
    unet = load_pipeline(find_checkpoint(str(tmp_path / "quiet")), dtype="float32", device="cpu").unet
    for layer, some in neurons.indices.items():
        assert f"{layer}.weight: {len(some)} rows" in run.stdout
        assert not unet.get_submodule(layer).weight[sorted(some)].any()


def test_a_set_or_a_partition_that_is_not_there_is_one_line_and_status_2(audited, fbmem, tmp_path):
    file = tmp_path / "sets.parquet"
    fbmem("neurons", file, "--store", audited[0])
    for arguments, message in (
        (
            ["deactivate", CANARY / "checkpoint", file, tmp_path / "out", "--name", "nobody"],
            "Expected the name of a set",
        ),
        (
            ["neurons", file, "--partition", "other-000000000000", "--store", audited[0]],
            "Expected one partition of `activation_statistics`",
        ),
        (["neurons", file, "--store", tmp_path], "Run `fbmem audit` first."),
        (["neurons", tmp_path / "none" / "sets.csv", "--store", audited[0]], "Expected a folder to write into"),
    ):
        run = fbmem(*arguments)
        assert run.exit_code == 2
        assert message in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1
