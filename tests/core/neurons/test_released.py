"""`released` gives the neurons of the authors' scripts, where their threshold is reached and where it is not."""

import csv
import os
from pathlib import Path

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import encode_prompts, window_size
from fbmem_core.neurons.layers import value_layers
from fbmem_core.neurons.released import calibrate_released_threshold, localize_released, released_step
from fbmem_core.neurons.statistics import ActivationStatistics, activation_statistics
from tests.core.neurons.plain_released_nemo import PlainReleasedNemo

CANARY = Path(__file__).parents[3] / "data" / "canary"
SIZE = {"height": 64, "width": 64}
NUM_SEEDS = 2
with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
PROMPTS = {row["prompt_id"]: row["prompt"] for row in ROWS}
NON_MEMORIZED = (CANARY / "non_memorized_prompts.txt").read_text().splitlines()[:40]


@pytest.fixture(scope="module")
def pipeline():
    """In float64: batches of another size round otherwise in float32, which a similarity at the threshold shows."""
    return load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def statistics(pipeline):
    return activation_statistics(pipeline, value_layers(pipeline), [encode(pipeline, *NON_MEMORIZED)])


def encode(pipeline, *prompts):
    return encode_prompts(pipeline, prompts, **SIZE)


def plain_nemo(pipeline, **settings):
    size = pipeline.unet.config.sample_size
    return PlainReleasedNemo(pipeline, window=window_size(size), num_samples=NUM_SEEDS, **settings)


def both(pipeline, statistics, prompt, threshold):
    """The scripts' result and ours, over the layers of the statistics."""
    plain = plain_nemo(pipeline, threshold=threshold)
    plain.layers = [pipeline.unet.get_submodule(layer) for layer in statistics.layers]
    expected = plain.localize(prompt, (list(statistics.mean.values()), list(statistics.stddev.values())))
    step = released_step(pipeline, num_seeds=NUM_SEEDS, num_steps=50, **SIZE)
    return expected, localize_released(step, encode(pipeline, prompt), statistics, threshold=threshold)


def assert_same(expected, result, layers):
    assert [sorted(set(neurons)) for neurons in expected.initial] == [
        sorted(result.initial.at(layer)) for layer in layers
    ]
    assert [sorted(set(neurons)) for neurons in expected.refined] == [
        sorted(result.refined.at(layer)) for layer in layers
    ]
    assert result.is_reached == expected.reached
    assert result.num_seeds == expected.num_seeds
    assert result.refined_similarity == pytest.approx(expected.refined_similarity, abs=1e-6)


def test_the_neurons_are_those_of_the_scripts_where_the_threshold_is_reached(pipeline, statistics):
    prompt = PROMPTS["clockwork_owl-0"]
    plain = plain_nemo(pipeline)
    differences = plain.noise_difference(prompt)
    threshold = 0.98 * plain.similarity(differences[:1], differences[1:]).item()
    expected, result = both(pipeline, statistics, prompt, threshold)
    assert expected.reached
    assert 0 < len(result.refined) < len(result.initial)
    assert_same(expected, result, statistics.layers)


def test_the_neurons_are_those_of_the_scripts_where_it_is_not_reached(pipeline, statistics):
    layers = [statistics.layers[0]]  # fewer to test
    mean, stddev = ({layer: values[layer] for layer in layers} for values in (statistics.mean, statistics.stddev))
    expected, result = both(pipeline, ActivationStatistics(mean, stddev, 40), PROMPTS["brundle-0"], 0.428)
    assert not expected.reached
    assert (result.z_score_threshold, result.num_top_neurons) == (1.25, 15)
    assert any(len(set(neurons)) < len(neurons) for neurons in expected.initial)
    assert 0 < len(result.refined) < len(result.initial)
    assert_same(expected, result, layers)


@pytest.mark.slow
def test_a_diffuse_prompt_of_the_canary_gets_the_neurons_of_the_scripts(pipeline, statistics):
    expected, result = both(pipeline, statistics, PROMPTS["brundle-0"], 0.428)
    assert not expected.reached
    assert (result.z_score_threshold, result.num_top_neurons) == (1.25, 15)
    assert_same(expected, result, statistics.layers)


@pytest.mark.skipif(not os.environ.get("FBMEM_ALL_PROMPTS"), reason="takes many minutes; FBMEM_ALL_PROMPTS=1 runs it")
@pytest.mark.parametrize("prompt_id", PROMPTS)
def test_every_prompt_of_the_canary_gets_the_neurons_of_the_scripts(pipeline, statistics, prompt_id):
    expected, result = both(pipeline, statistics, PROMPTS[prompt_id], 0.428)
    if expected is None:
        assert result.num_seeds == 0
    else:
        assert_same(expected, result, statistics.layers)


def test_a_prompt_below_the_threshold_gets_none(pipeline, statistics):
    expected, result = both(pipeline, statistics, NON_MEMORIZED[-1], 0.99)
    assert expected is None
    assert (result.num_seeds, len(result.refined)) == (0, 0)


def test_the_threshold_is_mean_plus_deviation_of_the_scripts_similarities(pipeline):
    prompts = NON_MEMORIZED[:20]
    pairs = plain_nemo(pipeline).pairwise_similarities(prompts).double()
    step = released_step(pipeline, num_seeds=NUM_SEEDS, num_steps=50, **SIZE)
    threshold = calibrate_released_threshold(
        step, (encode(pipeline, prompt) for prompt in prompts), encode(pipeline, "")
    )
    assert threshold.value == pytest.approx((pairs.mean() + pairs.std()).item(), abs=1e-6)


def test_a_statistic_of_two_sides(pipeline, statistics):
    """An activation far below its mean is an outlier for the scripts, which take absolute values."""
    plain = plain_nemo(pipeline)
    usual = list(statistics.mean.values()), list(statistics.stddev.values())
    lists = plain.select(PROMPTS["clockwork_owl-0"], usual, 2.0, 0)
    values = plain.activations(PROMPTS["clockwork_owl-0"])
    below = [
        neuron
        for chosen, value, mean in zip(lists, values, usual[0], strict=True)
        for neuron in chosen
        if value[neuron] < mean[neuron]
    ]
    assert below
    assert torch.isfinite(values[0]).all()
