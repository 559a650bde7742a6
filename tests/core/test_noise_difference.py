"""Noise differences: NeMo's definition, for every kind of U-Net, and the window that fits the latents."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import (
    FirstStep,
    difference_similarity,
    encode_prompts,
    pairwise_similarity,
    scaled,
    window_size,
)
from fbmem_core.errors import InputError

SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


@pytest.mark.parametrize(("mode", "timestep"), [("paper", 999), ("released", 979)])
def test_modes_differ_in_the_timestep_alone(pipeline, mode, timestep):
    step = FirstStep(pipeline, [4], mode=mode, **SIZE)
    condition = encode_prompts(pipeline, ["a cat"], **SIZE)
    assert step.step.timestep == timestep
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    assert torch.equal(step.latents, latents)
    noise = pipeline.unet(latents, timestep, condition.embeds).sample
    assert torch.allclose(step.noise_difference(condition), scaled(noise - latents), atol=1e-6)
    clean = (latents - step.step.noise * noise) / step.step.signal
    assert torch.allclose(step.clean_latents(condition), clean, atol=1e-3)


def test_the_latents_are_those_that_sampling_begins_with(pipeline):
    drawn = pipeline.prepare_latents(
        1, 4, 64, 64, torch.float32, torch.device("cpu"), torch.Generator("cpu").manual_seed(7)
    )
    assert torch.equal(FirstStep(pipeline, [7], **SIZE).latents, drawn)


def test_a_model_that_predicts_velocity_gives_the_noise_that_follows_from_it(pipeline):
    condition = encode_prompts(pipeline, ["a cat"], **SIZE)
    step = FirstStep(pipeline, [1], **SIZE)
    velocity, share = step.noise(condition), step.step
    step.schedule = replace(step.schedule, prediction="v_prediction")
    expected = share.signal * velocity + share.noise * step.latents
    assert torch.allclose(step.noise(condition), expected, atol=1e-6)


def test_stable_diffusion_xl_gets_its_pooled_text_and_its_sizes(pipeline):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(pipeline.tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, projection_dim=8,
        eos_token_id=pipeline.tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 8,
    )  # fmt: skip
    xl = StableDiffusionXLPipeline(
        AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)), CLIPTextModel(config),
        CLIPTextModelWithProjection(config), pipeline.tokenizer, pipeline.tokenizer, unet, EulerDiscreteScheduler(),
    )  # fmt: skip
    condition = encode_prompts(xl, ["a cat", "a dog", "a bird"], height=32, width=32)
    assert condition.embeds.shape == (3, 32, 16)
    assert condition.added["text_embeds"].shape == (3, 8)
    assert condition.added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 3
    step = FirstStep(xl, [0, 1], height=32, width=32)
    one, other = (step.noise(condition.rows(row)) for row in (0, 1))
    assert one.shape == (2, 4, 32, 32)
    assert not torch.allclose(one, other)


def test_scaling_is_by_sample_and_channel_and_a_constant_plane_is_zero():
    planes = torch.randn(2, 3, 5, 5) * torch.tensor([1, 10, 100.0])[:, None, None]
    planes[0, 1] = 4
    found = scaled(planes)
    assert torch.equal(found[0, 1], torch.zeros(5, 5))
    rest = torch.cat([found[0, [0, 2]], found[1]])
    assert torch.equal(rest.amin(dim=(1, 2)), torch.zeros(5))
    assert torch.allclose(rest.amax(dim=(1, 2)), torch.ones(5))


def test_at_the_size_of_stable_diffusion_the_similarity_is_nemos():
    x, y = torch.rand(2, 3, 4, 64, 64)
    expected = multiscale_structural_similarity_index_measure(
        x, y, kernel_size=11, betas=(0.33, 0.33, 0.33), data_range=1.0, reduction="none"
    )
    assert torch.allclose(difference_similarity(x, y), expected)
    assert torch.allclose(difference_similarity(x, x), torch.ones(3))
    assert torch.allclose(difference_similarity(x[:1], y[:1]), expected[:1], atol=1e-6)


@pytest.mark.parametrize(("side", "window"), [(96, 11), (64, 11), (44, 11), (43, 9), (32, 7), (16, 3), (12, 3)])
def test_small_latents_get_the_largest_window_that_fits(side, window):
    assert window_size(side) == window
    planes = torch.rand(2, 4, side, side)
    assert torch.allclose(difference_similarity(planes, planes), torch.ones(2))


def test_latents_that_hold_no_window_are_refused():
    with pytest.raises(InputError, match="Expected latents of at least 12 px, but got 11 px"):
        window_size(11)


def test_every_pair_is_compared_once():
    x = torch.rand(3, 4, 16, 16)
    table = pairwise_similarity(x)
    assert torch.equal(table, table.T)
    assert torch.equal(table.diag(), torch.zeros(3))
    assert table[0, 2] == pytest.approx(difference_similarity(x[:1], x[2:]).item(), abs=1e-6)
    assert torch.equal(pairwise_similarity(x[:1]), torch.zeros(1, 1))
