"""Activations without a U-Net pass, their statistics, and a threshold that few non-memorized prompts exceed."""

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts, pairwise_similarity
from fbmem_core.errors import InputError
from fbmem_core.neurons.hooks import record_outputs
from fbmem_core.neurons.layers import value_layers
from fbmem_core.neurons.statistics import activation_statistics, activations, calibrate_threshold

SIZE = {"height": 64, "width": 64}
PROMPTS = [f"a {color} {shape} on blue waves" for color in ("red", "green", "pink", "white") for shape in
           ("circle", "star", "square", "heart", "moon", "ring")]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def layers(pipeline):
    return value_layers(pipeline)


@pytest.fixture(scope="module")
def condition(pipeline):
    return encode_prompts(pipeline, PROMPTS, **SIZE)


def test_activations_are_those_of_a_pass_of_the_unet(pipeline, layers, condition):
    found = activations(pipeline, layers, condition.rows(slice(0, 2)))
    step = FirstStep(pipeline, [0, 1], **SIZE)
    with record_outputs(pipeline.unet, layers) as recorded:
        step.noise(condition.rows(slice(0, 2)))
    for layer in layers:
        assert torch.allclose(found[layer], recorded[layer][0].abs().mean(dim=1), atol=1e-6)


def test_statistics_do_not_depend_on_batches(pipeline, layers, condition):
    values = activations(pipeline, layers, condition)
    found = activation_statistics(pipeline, layers, (condition.rows(slice(at, at + 5)) for at in range(0, 24, 5)))
    assert found.num_prompts == 24
    assert found.layers == layers
    for layer in layers:
        assert torch.allclose(found.mean[layer], values[layer].mean(dim=0), atol=1e-6)
        assert torch.allclose(found.stddev[layer], values[layer].std(dim=0), atol=1e-6)


def test_z_scores_count_standard_deviations_and_a_constant_neuron_has_none(pipeline, layers, condition):
    found = activation_statistics(pipeline, layers, [condition])
    layer = layers[0]
    found.stddev[layer][3] = 0
    values = {name: found.mean[name][None] + 2 * found.stddev[name][None] for name in layers}
    scores = found.z_scores(values)[layer][0]
    assert scores[3] == 0
    assert torch.allclose(scores[[0, 1, 2, 4, 5, 6, 7]], torch.full((7,), 2.0), atol=1e-3)


def test_the_threshold_is_that_of_each_prompts_highest_pair(pipeline, condition):
    step = FirstStep(pipeline, range(4), **SIZE)
    found = calibrate_threshold(step, (condition.rows(row) for row in range(24)), num_stddevs=2)
    tables = [pairwise_similarity(step.noise_difference(condition.rows(row))) for row in range(24)]
    highest = torch.stack([table.max() for table in tables])
    pairs = torch.cat([table[tuple(torch.triu_indices(4, 4, 1))] for table in tables])
    assert found.value == pytest.approx((highest.mean() + 2 * highest.std()).item(), abs=1e-6)
    assert found.pairs_value == pytest.approx((pairs.mean() + pairs.std()).item(), abs=1e-6)
    assert found.num_prompts == 24


def test_too_few_prompts_are_refused(pipeline, layers, condition):
    few = condition.rows(slice(0, 19))
    with pytest.raises(InputError, match="Expected at least 20 non-memorized prompts, but got 19"):
        activation_statistics(pipeline, layers, [few])
    with pytest.raises(InputError, match="Expected at least 20 non-memorized prompts, but got 2"):
        calibrate_threshold(FirstStep(pipeline, range(2), **SIZE), (few.rows(row) for row in range(2)))
