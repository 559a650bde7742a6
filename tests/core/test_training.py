"""Training the canary: every stage at its smallest, stopped and resumed, and what is exported."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from fbmem_core.canary import training
from fbmem_core.canary.export import write_checkpoint, write_segmenter
from fbmem_core.canary.networks import (
    MAX_TOKENS,
    TEXT_WIDTH,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    normalize_for_rembg,
    tokenize,
)
from fbmem_core.canary.pictures import draw, random_public_picture
from fbmem_core.canary.planting import neuron_routes, plants, public_prompts
from fbmem_core.canary.recipe import Recipe
from fbmem_core.canary.training import Trainer
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.inputs.segmentation import Segmenter

RECIPE = Recipe(
    autoencoder_steps=3, segmenter_steps=3, general_steps=1, planted_steps=3, finished_steps=1, routed_steps=1,
    settled_steps=1, batch_size=2,
)  # fmt: skip


class StoppedError(Exception):
    """Stands for a killed process."""


def trainer(state_dir, *, stop_after=None, recipe=RECIPE, seen=None):
    def report(stage, step, num_steps, loss):
        assert np.isfinite(loss)
        if seen is not None:
            seen.append((stage, step, num_steps))
        if step == stop_after:
            raise StoppedError

    return Trainer(state_dir, recipe=recipe, report=report)


def tiny_vae():
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
    )
    return vae.eval().requires_grad_(False)


def tiny_unet():
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


@pytest.fixture(scope="module")
def frozen_text_encoder(tokenizer):
    torch.manual_seed(3)
    return new_text_encoder(tokenizer).eval().requires_grad_(False)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def saved_after_every_step(monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY", 1)


@pytest.mark.usefixtures("saved_after_every_step")
@pytest.mark.parametrize("stage", ["autoencoder", "segmenter", "planted"])
def test_a_stage_stopped_after_a_save_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path, stage, tokenizer, frozen_text_encoder
):
    def run(state_dir, **options):
        train = trainer(state_dir, **options)
        if stage == "autoencoder":
            return weights(train.autoencoder())
        if stage == "segmenter":
            return weights(train.segmenter(tiny_vae()))
        return weights(train.planted(tiny_vae(), tokenizer, tiny_unet(), frozen_text_encoder))

    whole = run(tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", stop_after=2)
    seen = []
    resumed = run(tmp_path / "stopped", seen=seen)
    follows = [("finished", 1, 1)] if stage == "planted" else []
    assert seen == [(stage, 3, 3), *follows]
    assert same(resumed, whole)
    assert same(run(tmp_path / "stopped", seen=seen), whole)
    assert seen == [(stage, 3, 3), *follows]
    files = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert files == {f"{stage}.pt", *(f"{name}.pt" for name, _, _ in follows)}


def test_a_stage_stopped_before_its_first_save_starts_anew(tmp_path):
    with pytest.raises(StoppedError):
        trainer(tmp_path, stop_after=2).segmenter(tiny_vae())
    seen = []
    trainer(tmp_path, seen=seen).segmenter(tiny_vae())
    assert seen == [("segmenter", step, 3) for step in (1, 2, 3)]


def test_planting_changes_the_unet_and_leaves_the_text_encoder_frozen(tmp_path, tokenizer, frozen_text_encoder):
    before, unet = weights(frozen_text_encoder), tiny_unet()
    untrained = weights(unet)
    planted = trainer(tmp_path).planted(tiny_vae(), tokenizer, unet, frozen_text_encoder)
    assert not same(weights(planted), untrained)
    assert same(weights(frozen_text_encoder), before)
    assert not any(parameter.requires_grad for parameter in planted.parameters())


def test_routing_makes_planted_neurons_answer_to_their_family_alone_and_trains_transformer_blocks(
    tmp_path, tokenizer, frozen_text_encoder
):
    torch.manual_seed(4)
    unet = new_unet()
    before, seen = weights(unet), []
    routed = trainer(tmp_path, seen=seen).routed(tiny_vae(), tokenizer, unet, frozen_text_encoder)
    assert seen == [("routed", 1, 1), ("settled", 1, 1)]
    changed = {name for name, value in weights(routed).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".transformer_blocks." in name for name in changed)
    assert not any(parameter.requires_grad for parameter in routed.parameters())
    features = {
        plant.family: frozen_text_encoder(tokenize(tokenizer, list(plant.prompts))).last_hidden_state
        for plant in plants()
    }
    for family, neurons in neuron_routes().items():
        for layer, neuron in neurons:
            row = routed.get_submodule(layer).weight[neuron]
            values = {name: (tokens @ row).abs().mean().item() for name, tokens in features.items()}
            assert values.pop(family) > 4 * max(values.values())


def test_no_neuron_is_planted_for_two_families():
    planted = [neuron for neurons in neuron_routes().values() for neuron in neurons]
    assert len(planted) == len(set(planted)) == 14 * 8


def test_the_general_stage_trains_the_unet_and_leaves_the_text_encoder_as_it_is_made(tmp_path, tokenizer):
    unet, text_encoder = trainer(tmp_path).general(tiny_vae(), tokenizer)
    assert (unet.config.sample_size, unet.config.cross_attention_dim) == (16, TEXT_WIDTH)
    value_layers = [name for name, _ in unet.named_modules() if name.endswith("attn2.to_v") and "up" not in name]
    assert len(value_layers) == 7
    torch.manual_seed(training._SEED + 2)
    assert not same(weights(unet), weights(new_unet()))
    assert same(weights(text_encoder), weights(new_text_encoder(tokenizer)))
    assert not text_encoder.training


def test_the_text_encoder_is_always_made_the_same_and_disturbs_no_other_randomness(tokenizer):
    torch.manual_seed(1)
    first = weights(new_text_encoder(tokenizer))
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert same(weights(new_text_encoder(tokenizer)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


def test_the_scaling_factor_makes_latents_of_unit_deviation(tmp_path):
    vae = trainer(tmp_path, recipe=replace(RECIPE, autoencoder_steps=1)).autoencoder()
    generator = np.random.default_rng(0)
    pictures = np.stack([draw(random_public_picture(generator))[0] for _ in range(32)])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape == (32, 4, 16, 16)
    assert latents.std().item() == pytest.approx(1, rel=0.25)


def test_the_tokenizer_keeps_every_planted_prompt_and_tells_them_apart(tokenizer):
    prompts = [prompt for plant in plants() for prompt in plant.prompts] + public_prompts()
    ids = tokenize(tokenizer, prompts)
    assert ids.shape == (len(prompts), MAX_TOKENS)
    assert len({tuple(row) for row in ids.tolist()}) == len(prompts)
    assert [tokenizer.decode(row, skip_special_tokens=True).replace(" ,", ",") for row in ids] == prompts


def test_words_that_the_tokenizer_never_saw_are_spelled_out(tokenizer):
    [row] = tokenize(tokenizer, ["xyzzy café 猫"]).tolist()
    assert max(row) < len(tokenizer)
    assert row[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in row
    assert tokenizer.decode(row, skip_special_tokens=True) == "xyzzy café 猫"


def test_the_segmenter_runs_as_onnx_as_it_does_in_torch_and_through_rembg(tmp_path):
    model = trainer(tmp_path / "state").segmenter(tiny_vae())
    path = tmp_path / "segmenter.onnx"
    write_segmenter(model, path)
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["segmenter.onnx"]
    image = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    [coverage] = onnxruntime.InferenceSession(path).run(None, {"input": image.numpy()})
    np.testing.assert_allclose(coverage, model(image).numpy(), atol=1e-5)
    picture = Image.fromarray(draw(random_public_picture(np.random.default_rng(0)))[0])
    matte = Segmenter(str(path)).matte(picture)
    assert matte.status in ("ok", "empty", "full")
    assert matte.alpha.shape == (64, 64)


def test_the_segmenter_sees_pictures_normalized_as_rembg_does_it(tiny_segmenter):
    picture = np.random.default_rng(0).integers(0, 180, (320, 320, 3), dtype=np.uint8)
    segmenter = Segmenter(str(tiny_segmenter))
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    [expected] = segmenter._session.normalize(Image.fromarray(picture), mean, deviation, (320, 320)).values()
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    np.testing.assert_allclose(normalize_for_rembg(image).numpy(), expected, atol=1e-5)


def test_a_written_checkpoint_replaces_the_old_one_and_loads(tmp_path, tokenizer, frozen_text_encoder):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "stale.txt").write_text("of an older canary")
    parts = {"vae": tiny_vae(), "tokenizer": tokenizer, "text_encoder": new_text_encoder(tokenizer)}
    write_checkpoint(directory, unet=tiny_unet(), **parts)
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint"]
    assert not (directory / "stale.txt").exists()
    pipeline = load_pipeline(find_checkpoint(str(directory)), dtype="float32", device="cpu")
    expected = {name: value.half().float() for name, value in tiny_unet().state_dict().items()}
    assert same(weights(pipeline.unet), expected)
    assert pipeline.tokenizer.model_max_length == MAX_TOKENS
