"""Neuron files are lossless in every format, NeMo's own included."""

import csv

import pytest

from fbmem_core.errors import InputError
from fbmem_core.neurons.files import (
    nemo_row,
    read_nemo_csv,
    read_neuron_sets,
    read_safetensors,
    write_nemo_csv,
    write_neuron_sets,
    write_safetensors,
)
from fbmem_core.neurons.layers import NeuronSet, union

LAYERS = [f"layer_{number}" for number in range(7)]
# as NeMo's code writes them: top-k neurons follow the outliers, unsorted, and may come twice
NEMO = (
    "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\r\n"
    '"The; ""Hunger"" Games";http://a/b.jpg;[[5, 2, 5], [], [7], [], [], [], [1]];0.4123456789;'
    "[[5], [], [], [], [], [], []];0.41\r\n"
    "Ünmemorized;;[[], [], [], [], [], [], []];0;[[], [], [], [], [], [], []];0\r\n"
)


@pytest.fixture
def nemo_file(tmp_path):
    path = tmp_path / "memorization_statistics_v1_4.csv"
    path.write_bytes(NEMO.encode())
    return path


def test_nemos_file_comes_out_as_it_went_in(nemo_file):
    assert write_nemo_csv(read_nemo_csv(nemo_file)) == NEMO


def test_nemos_rows_become_neuron_sets_whose_unions_are_exact(nemo_file):
    rows = read_nemo_csv(nemo_file)
    assert [row.prompt for row in rows] == ['The; "Hunger" Games', "Ünmemorized"]
    initial = rows[0].neuron_set(LAYERS, "Initial Neurons")
    assert list(initial) == [("layer_0", 2), ("layer_0", 5), ("layer_2", 7), ("layer_6", 1)]
    assert list(rows[0].neuron_set(LAYERS)) == [("layer_0", 5)]
    assert union(row.neuron_set(LAYERS) for row in rows) == NeuronSet.of({"layer_0": [5]})


def test_our_neurons_are_written_as_nemo_reads_them(tmp_path):
    initial, refined = NeuronSet.of({"layer_1": [4, 2], "layer_6": [0]}), NeuronSet.of({"layer_1": [2]})
    path = tmp_path / "ours.csv"
    path.write_text(write_nemo_csv([nemo_row("a cat", initial, refined, LAYERS)]), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file, delimiter=";")
    assert row["Initial Neurons"] == "[[], [2, 4], [], [], [], [], [0]]"
    assert read_nemo_csv(path)[0].neuron_set(LAYERS) == refined
    with pytest.raises(InputError, match="Expected neurons of these 7 layers alone, but got up"):
        nemo_row("a cat", NeuronSet.of({"up": [1]}), refined, LAYERS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[5], [], [], [], [], [], []]", "[[5], __import__('os')]", "Expected a list of neurons for each layer"),
        ("[[5], [], [], [], [], [], []]", "[[-5], [], [], [], [], [], []]", "a list of neurons for each layer"),
        ("[[5], [], [], [], [], [], []]", "[[True], []]", "a list of neurons for each layer"),
        ("Refined Neurons", "Neurons", "Expected a column `Refined Neurons`, but got none"),
        ("Ünmemorized", '"The; ""Hunger"" Games"', "Expected each prompt once"),
        ("Ünmemorized;;", "Ünmemorized;", "Expected 6 columns"),
    ],
)
def test_a_damaged_file_is_one_clear_line(nemo_file, old, new, message):
    nemo_file.write_bytes(NEMO.replace(old, new).encode())
    with pytest.raises(InputError, match=message):
        read_nemo_csv(nemo_file)


def test_a_file_of_another_architecture_is_refused(nemo_file):
    with pytest.raises(InputError, match="Expected 16 lists of neurons, but got 7"):
        read_nemo_csv(nemo_file)[0].neuron_set(LAYERS + ["more"] * 9)


def test_safetensors_keep_names_layers_and_empty_sets(tmp_path):
    sets = {"p 1": NeuronSet.of({"b": [3, 1], "a": [2]}), "none": NeuronSet({})}
    write_safetensors(sets, tmp_path / "sets.safetensors")
    assert read_safetensors(tmp_path / "sets.safetensors") == sets
    assert list(read_safetensors(tmp_path / "sets.safetensors")["p 1"].indices) == ["b", "a"]
    (tmp_path / "sets.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="Expected neuron sets in safetensors"):
        read_safetensors(tmp_path / "sets.safetensors")


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".csv"])
def test_every_format_gives_back_the_sets(tmp_path, suffix):
    sets = {
        "a prompt; with signs": NeuronSet.of({"layer_0": [3, 1], "layer_6": [2]}),
        "b": NeuronSet.of({"layer_5": [0]}),
    }
    write_neuron_sets(sets, tmp_path / f"sets{suffix}", LAYERS)
    assert read_neuron_sets(tmp_path / f"sets{suffix}", LAYERS) == sets
    assert [path.name for path in tmp_path.iterdir()] == [f"sets{suffix}"]


def test_files_of_other_kinds_are_one_clear_line(tmp_path):
    path = tmp_path / "sets.txt"
    with pytest.raises(InputError, match=r"Expected a file of \.parquet, \.safetensors, \.csv, but got `sets\.txt`"):
        write_neuron_sets({}, path, LAYERS)
    with pytest.raises(InputError, match="Expected a file of"):
        read_neuron_sets(path, LAYERS)
    (tmp_path / "sets.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match="Expected neuron sets in Parquet"):
        read_neuron_sets(tmp_path / "sets.parquet", LAYERS)
