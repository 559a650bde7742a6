"""Hooks on a real U-Net: they do what they say, and are gone afterwards."""

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.errors import InputError
from fbmem_core.neurons.hooks import deactivation_factors, record_outputs, scale_neurons
from fbmem_core.neurons.layers import NeuronSet, value_layers
from fbmem_core.neurons.replay import record_segments, replay_segments


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def step(pipeline):
    return FirstStep(pipeline, range(3), height=64, width=64)


@pytest.fixture(scope="module")
def condition(pipeline):
    return encode_prompts(pipeline, ["a red circle on blue waves"], height=64, width=64)


@pytest.fixture(scope="module")
def layers(pipeline):
    return value_layers(pipeline, "all")


def num_hooks(unet):
    return sum(len(module._forward_hooks) + ("forward" in vars(module)) for module in unet.modules())


def test_outputs_are_recorded_as_the_layer_gives_them(pipeline, step, condition, layers):
    with record_outputs(pipeline.unet, layers[:2]) as found:
        step.noise(condition)
    assert list(found) == list(layers[:2])
    expected = pipeline.unet.get_submodule(layers[0])(condition.embeds)
    assert torch.allclose(found[layers[0]][0], expected.expand(3, -1, -1), atol=1e-6)


def test_a_factor_of_zero_is_a_neuron_without_weights(pipeline, step, condition, layers):
    neurons = NeuronSet.of({layers[0]: [1, 5], layers[-1]: [0]})
    before = step.noise(condition)
    with scale_neurons(pipeline.unet, deactivation_factors(pipeline.unet, neurons)):
        hooked = step.noise(condition)
    weights = {layer: pipeline.unet.get_submodule(layer).weight for layer in neurons.indices}
    kept = {layer: weight.data.clone() for layer, weight in weights.items()}
    for layer, some in neurons.indices.items():
        weights[layer].data[sorted(some)] = 0
    zeroed = step.noise(condition)
    for layer, weight in kept.items():
        weights[layer].data.copy_(weight)
    assert torch.allclose(hooked, zeroed, atol=1e-6)
    assert not torch.allclose(hooked, before, atol=1e-6)


def test_factors_of_a_sample_touch_that_sample_alone(pipeline, step, condition, layers):
    factors = torch.ones(3, 8)
    factors[1] = 0
    before = step.noise(condition)
    with scale_neurons(pipeline.unet, {layers[1]: factors}):
        after = step.noise(condition)
    assert torch.allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert not torch.allclose(after[1], before[1], atol=1e-6)


def test_hooks_are_gone_after_an_exception(pipeline, condition, step, layers):
    clean = num_hooks(pipeline.unet)
    with record_segments(pipeline.unet, layers[5]) as recording:
        step.noise(condition)

    def fail():
        assert num_hooks(pipeline.unet) > clean
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), record_outputs(pipeline.unet, layers):
        fail()
    with pytest.raises(KeyboardInterrupt), scale_neurons(pipeline.unet, {layers[0]: torch.zeros(8)}):
        fail()
    with pytest.raises(KeyboardInterrupt), record_segments(pipeline.unet, layers[5]):
        fail()
    with pytest.raises(KeyboardInterrupt), replay_segments(pipeline.unet, recording, torch.arange(3)):
        fail()
    assert num_hooks(pipeline.unet) == clean


@pytest.mark.parametrize("index", [0, 3, 6, 9, 15])
def test_replaying_what_comes_before_a_layer_changes_nothing(pipeline, step, condition, layers, index):
    layer, rows = layers[index], torch.tensor([2, 0, 2, 1])
    factors = torch.ones(4, 8)
    factors[1:, :6] = 0
    with record_segments(pipeline.unet, layer) as recording:
        step.noise(condition)
    with scale_neurons(pipeline.unet, {layer: factors}):
        whole = step.noise(condition, rows)
        with replay_segments(pipeline.unet, recording, rows):
            replayed = step.noise(condition, rows)
    assert torch.allclose(whole, replayed, atol=1e-5)
    assert not torch.allclose(whole[0], whole[2], atol=1e-6)


@pytest.mark.parametrize("index", [0, 6, 15])
def test_replaying_leaves_out_all_that_comes_before(pipeline, step, condition, layers, index):
    unet, layer = pipeline.unet, layers[index]
    with record_segments(unet, layer) as recording:
        step.noise(condition)
    block = layer.removesuffix(".attn2.to_v")
    before = ["conv_in", f"{block}.attn1.to_v", f"{block}.attn2.to_q", *layers[:index]]
    watched = [*before, *layers[index:], f"{block}.ff"]
    with record_outputs(unet, watched) as ran, replay_segments(unet, recording, torch.arange(3)):
        step.noise(condition)
    # a replayed segment's own hooks run, those of what it is made of do not
    assert not any(ran[name] for name in before if name not in recording)
    assert all(ran[name] for name in (*layers[index:], f"{block}.ff"))
    assert {"conv_in", f"{block}.attn1", f"{block}.attn2.to_q", f"{block}.attn2.to_k"} <= set(recording)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"down_blocks.0.nothing": torch.ones(8)}, "Expected a layer `down_blocks.0.nothing`"),
        ({"mid_block.attentions.0.transformer_blocks.0.attn2.to_v": torch.ones(7)}, "Expected 8 factors, but got 7"),
    ],
)
def test_factors_that_do_not_fit_are_one_clear_line(pipeline, step, condition, factors, message):
    with pytest.raises(InputError, match=message), scale_neurons(pipeline.unet, factors):
        step.noise(condition)


def test_neurons_that_the_checkpoint_lacks_are_one_clear_line(pipeline, layers):
    with pytest.raises(InputError, match="Expected neurons from 0 to 7, but got 3 to 8"):
        deactivation_factors(pipeline.unet, NeuronSet.of({layers[0]: [3, 8]}))
