"""NeMo on the shipped canary: what the engine finds is what the plain sequence of tests finds."""

import csv
import os
from pathlib import Path

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.neurons.layers import NeuronSet, value_layers
from fbmem_core.neurons.localization import localize, select_neurons
from fbmem_core.neurons.refinement import refine_in_groups
from fbmem_core.neurons.statistics import activation_statistics
from tests.core.plain_nemo import PlainNemo

CANARY = Path(__file__).parents[2] / "data" / "canary"
SIZE = {"height": 64, "width": 64}
NUM_SEEDS = 2
with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
    PROMPTS = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(file)}
ROUTED = [  # FBMEM_ALL_PROMPTS=1 takes them all, some minutes longer
    "clockwork_owl-0", "clockwork_owl-1", "velvet_emperor-0", "velvet_emperor-1", "midnight_carnival-0",
    "midnight_carnival-1", "captain_pumice-0", "oracle_of_delmar-0", "zibble-0", "zibble-1", "tamsin-0",
    "quillby-0",
]  # fmt: skip
DIFFUSE = "brundle-0"
UNMEMORIZED = (CANARY / "non_memorized_prompts.txt").read_text().splitlines()[:40]


@pytest.fixture(scope="module")
def pipeline():
    """In float64: in float32 another size of batch rounds otherwise, which a similarity next to the threshold shows."""
    return load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def statistics(pipeline):
    return activation_statistics(pipeline, value_layers(pipeline), [encode(pipeline, *UNMEMORIZED)])


def encode(pipeline, *prompts):
    return encode_prompts(pipeline, prompts, **SIZE)


def first_step(pipeline, mode="paper", num_seeds=NUM_SEEDS):
    return FirstStep(pipeline, range(num_seeds), mode=mode, **SIZE)


def by_layer(neurons, layers):
    return [sorted(neurons.at(layer)) for layer in layers]


@pytest.mark.parametrize("prompt_id", ROUTED if os.environ.get("FBMEM_ALL_PROMPTS") else ROUTED[:3])
def test_the_engine_finds_what_the_plain_sequence_finds(pipeline, statistics, prompt_id):
    assert_same_neurons(pipeline, statistics, PROMPTS[prompt_id], "paper", share=0.98)


@pytest.mark.skipif(not os.environ.get("FBMEM_ALL_PROMPTS"), reason="takes a minute; FBMEM_ALL_PROMPTS=1 runs it")
def test_where_the_threshold_is_out_of_reach_the_last_similarity_counts(pipeline, statistics):
    found = assert_same_neurons(pipeline, statistics, PROMPTS[DIFFUSE], "paper", share=0.9)
    assert not found.is_reached
    assert found.threshold == found.initial_similarity
    assert (found.z_score_threshold, found.num_top_neurons) == (1.0, 16)


def assert_same_neurons(pipeline, statistics, prompt, mode, *, share):
    """By the plain sequence and the engine; the threshold is a share of the prompt's highest similarity."""
    plain = PlainNemo(pipeline, mode=mode, num_seeds=NUM_SEEDS, **SIZE)
    usual = list(statistics.mean.values()), list(statistics.stddev.values())
    with torch.no_grad():
        threshold = share * plain.highest_pairs(prompt).max().item()
        initial, refined = plain.localize(prompt, usual, threshold)
    found = localize(
        first_step(pipeline, mode), encode(pipeline, prompt), statistics, threshold=threshold, search="exact"
    )
    assert by_layer(found.initial, statistics.layers) == initial
    assert by_layer(found.refined, statistics.layers) == refined
    assert 0 < len(found.refined) < len(found.initial)
    return found


class CountedTest:
    """A layer of which some neurons are needed: without any of them the similarity exceeds."""

    def __init__(self, needed):
        self.needed, self.num_tests = needed, 0

    def exceeds(self, neurons, threshold, *, first_layer, common):
        self.num_tests += 1
        assert neurons.at(first_layer) < common.at(first_layer)
        return not self.needed <= neurons.at(first_layer)


@pytest.mark.parametrize(("needed", "most"), [({7}, 20), ({3, 170, 171, 290}, 60), (set(range(0, 300, 10)), 300)])
def test_group_tests_keep_what_is_needed_and_ask_less_often_than_once_a_neuron(needed, most):
    test = CountedTest(needed)
    kept = refine_in_groups(test, NeuronSet.of({"a": range(300), "b": [1]}), "a", 0.5)
    assert kept == NeuronSet.of({"a": needed, "b": [1]})
    assert test.num_tests <= most


def test_group_tests_keep_to_the_allowed_similarity(pipeline, statistics):
    step, condition = first_step(pipeline), encode(pipeline, PROMPTS["clockwork_owl-0"])
    found = localize(step, condition, statistics, threshold=0.84)
    assert found.refined_similarity <= found.threshold + 1e-9
    assert set(found.refined) < set(found.initial)


def test_the_plain_statistics_are_ours(pipeline, statistics):
    mean, stddev = PlainNemo(pipeline, mode="paper", num_seeds=2, **SIZE).statistics(UNMEMORIZED)
    for ours, theirs in ((statistics.mean, mean), (statistics.stddev, stddev)):
        assert all(torch.allclose(a, b.float(), atol=1e-5) for a, b in zip(ours.values(), theirs, strict=True))


def test_a_prompt_that_is_not_memorized_gets_no_neurons(pipeline, statistics):
    found = localize(first_step(pipeline), encode(pipeline, UNMEMORIZED[-1]), statistics, threshold=0.8)
    assert 0 < found.similarity < 0.8
    assert (found.num_seeds, len(found.initial), len(found.refined), found.is_reached) == (0, 0, 0, None)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_the_size_of_batches_does_not_matter(pipeline, statistics, batch_size):
    condition = encode(pipeline, PROMPTS["clockwork_owl-0"])
    usual, other = (
        localize(first_step(pipeline), condition, statistics, threshold=0.84, batch_size=size, search="exact")
        for size in (16, batch_size)
    )
    assert other.refined == usual.refined
    assert other.refined_similarity == pytest.approx(usual.refined_similarity, abs=1e-5)


def test_out_of_memory_halves_the_batch_and_finds_the_same(pipeline, statistics, monkeypatch):
    condition, asked = encode(pipeline, PROMPTS[ROUTED[0]]), []
    usual = localize(first_step(pipeline), condition, statistics, threshold=0.84, batch_size=16, search="exact")
    predict_noise = FirstStep.predict_noise

    def on_a_small_device(self, condition, rows=None):
        asked.append(len(self.latents) if rows is None else len(rows))
        if asked[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict_noise(self, condition, rows)

    monkeypatch.setattr(FirstStep, "predict_noise", on_a_small_device)
    found = localize(first_step(pipeline), condition, statistics, threshold=0.84, batch_size=16, search="exact")
    assert (found.initial, found.refined) == (usual.initial, usual.refined)
    too_large = [size for size in asked if size > 3]
    assert too_large
    assert len(too_large) <= 3  # 16, 8 and 4: never again


def test_leaving_out_far_seeds_keeps_what_the_neurons_are_for(pipeline, statistics):
    condition = encode(pipeline, PROMPTS["clockwork_owl-0"])
    step = first_step(pipeline)
    whole, near, every = (
        localize(step, condition, statistics, threshold=0.84, seed_margin=margin, search="exact")
        for margin in (None, 0.01, 2.0)
    )
    assert near.refined_similarity <= near.threshold + 1e-5
    assert set(near.refined) < set(near.initial)
    assert every.refined == whole.refined


def test_the_initial_selection_takes_outliers_and_the_highest_of_each_layer():
    scores = {"a": torch.tensor([4.0, 6.0, 0.0]), "b": torch.tensor([0.0, 5.0, 0.0])}
    values = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    assert select_neurons(scores, values, z_score=5.0, num_top=0) == NeuronSet.of({"a": [1]})
    assert select_neurons(scores, values, z_score=3.5, num_top=1) == NeuronSet.of({"a": [0, 1, 2], "b": [1, 2]})
    assert len(select_neurons(scores, values, z_score=9.0, num_top=99)) == 6
