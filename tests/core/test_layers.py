"""Value layers are found by name in every U-Net with cross-attention; neuron sets behave as sets."""

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from fbmem_core.errors import InputError
from fbmem_core.neurons.layers import NeuronSet, layer_sizes, union, value_layers

SD1_LAYERS = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]


def unet(**changes):
    settings = {
        "sample_size": 8, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 2, "cross_attention_dim": 8,
        "attention_head_dim": 2, "norm_num_groups": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes})


def layers_of(network, layers="released"):
    """Of a pipeline with this network and nothing else."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(
        unet=network, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), requires_safety_checker=False, **parts
    )
    return value_layers(pipeline, layers)


def test_stable_diffusion_1_has_seven_released_layers_and_sixteen_in_all():
    model = unet()
    expected = [*SD1_LAYERS, "mid_block.attentions.0"]
    released = layers_of(model)
    assert list(released) == [f"{name}.transformer_blocks.0.attn2.to_v" for name in expected]
    every = layers_of(model, "all")
    assert every[:7] == released
    assert len(every) == 16
    assert all(name.startswith("up_blocks.") for name in every[7:])
    assert layer_sizes(model, released[:1]) == {released[0]: 8}


def test_an_xl_unet_has_its_deeper_transformers_in_order():
    model = unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        transformer_layers_per_block=(1, 3),
        use_linear_projection=True,
    )
    names = [name.removesuffix(".attn2.to_v") for name in layers_of(model)]
    down = [f"down_blocks.1.attentions.{a}.transformer_blocks.{t}" for a in range(2) for t in range(3)]
    assert names == down + [f"mid_block.attentions.0.transformer_blocks.{t}" for t in range(3)]


def test_a_unet_without_cross_attention_is_refused():
    model = unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        block_out_channels=(8, 8),
    )
    with pytest.raises(
        InputError, match="Expected a network with value projections of its text, but got none in UNet2DConditionModel"
    ):
        layers_of(model)


def test_neuron_sets_unite_and_keep_the_order_of_layers():
    one, other = NeuronSet.of({"b": [3, 1], "a": []}), NeuronSet.of({"a": [2], "b": [1]})
    assert list(one) == [("b", 1), ("b", 3)]
    assert set(union([one, other])) == {("a", 2), ("b", 1), ("b", 3)}
    assert len(one | other) == 3
    assert ("b", 3) in one
    assert ("a", 3) not in one
    assert one.replaced("b", ()) == NeuronSet({})
    assert one.at("a") == frozenset()
