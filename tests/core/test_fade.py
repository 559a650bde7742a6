"""FADE on the shipped canary, and the agreement that it goes by."""

import csv
from dataclasses import replace

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.fade import Fade, regional_cosine
from fbmem_core.mitigation.method import Evidence
from fbmem_core.neurons.hooks import scale_neurons
from fbmem_core.neurons.layers import NO_NEURONS, value_layers
from tests.assets.conftest import CANARY

SEEDS = range(3)


@pytest.fixture(scope="module")
def evidence():
    pipeline = load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")
    with (CANARY / "prompts.csv").open(encoding="utf-8", newline="") as file:
        prompts = {row["prompt_id"]: row["prompt"] for row in csv.DictReader(file)}
    asked = {name: prompts[name] for name in ("gormund-0", "gormund-1", "captain_pumice-0", "public-00")}
    matte = torch.zeros(1, 64, 64)
    matte[:, 16:48, 16:48] = 1  # about where objects stand
    return Evidence(
        pipeline=pipeline, prompts=asked, memorized=frozenset(asked) - {"public-00"}, neurons={},
        clusters={"gormund-0": 0, "gormund-1": 0, "captain_pumice-0": 1, "public-00": 1},
        layers=value_layers(pipeline),
        non_memorized=(CANARY / "non_memorized_prompts.txt").read_text("utf-8").splitlines()[:20],
        height=64, width=64, seeds=SEEDS, num_steps=50,
        mattes={name: dict.fromkeys(SEEDS, matte) for name in asked if name != "gormund-1"},
        guidance=Guidance(3.0), num_inference_steps=25,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fade(evidence):
    return Fade(evidence, num_non_memorized=20, num_steps=3)


def test_a_copied_foreground_that_has_no_outlier_neurons_gets_some_and_a_public_prompt_gets_none(evidence, fade):
    assert 0 < len(fade.own_neurons("gormund-0")) <= 64
    assert 0 < len(fade.own_neurons("captain_pumice-0")) <= 64
    assert fade.own_neurons("public-00") == NO_NEURONS
    # what was found is kept: another one over the same evidence need not search
    assert evidence.searches.get("gormund-0") == fade.own_neurons("gormund-0")


def test_with_its_neurons_off_no_seed_comes_to_what_it_remembered(evidence, fade):
    search = fade._search_of("gormund-0", evidence.mattes["gormund-0"])
    assert search.memorized[:, 0].all()  # the foreground, by every seed
    assert (search.likeness(search.memory, search.memory) > 0.999).all()
    with scale_neurons(evidence.pipeline.unet, fade.intervention("gormund-0").factors):
        likeness = search.likeness(search.model.clean_latents(search.condition, torch.arange(3)), search.memory)
    assert (likeness < search.target)[search.memorized].all()


@pytest.mark.parametrize("needed", [9, 10, 13, 16])
def test_of_the_last_neurons_as_few_as_are_enough_are_switched_off(evidence, fade, monkeypatch, needed):
    search = fade._search_of("gormund-0", evidence.mattes["gormund-0"])
    monkeypatch.setattr(search, "left_without", lambda off: search.memorized & (len(off) < needed))
    assert 8 + search._shortest(range(8), range(8, 16)) == needed


def test_every_prompt_of_a_cluster_gets_the_neurons_of_all(evidence, fade):
    assert fade.own_neurons("gormund-1") == NO_NEURONS  # it has no mattes
    assert fade.neurons("gormund-1") == fade.neurons("gormund-0") == fade.own_neurons("gormund-0")
    union = {*fade.own_neurons("gormund-0"), *fade.own_neurons("captain_pumice-0")}
    off = {
        (layer, neuron)
        for layer, factors in fade.everywhere("public-00").factors.items()
        for neuron in (factors == 0).nonzero().flatten().tolist()
    }
    assert off == union


def test_it_chooses_from_all_blocks(evidence, fade):
    assert METHODS["fade"] is Fade
    layers = fade.layers
    assert set(evidence.layers) < set(layers)
    assert any(layer.startswith("up_blocks") for layer in layers)


def test_too_few_non_memorized_prompts_are_one_line(evidence):
    few = replace(evidence, non_memorized=evidence.non_memorized[:3])
    with pytest.raises(InputError, match="at least 20 non-memorized prompts"):
        Fade(few)._search_of("gormund-0", evidence.mattes["gormund-0"])


def test_at_full_scale_the_gradient_is_that_of_the_likeness_to_other_seeds(evidence, fade):
    search = fade._search_of("gormund-0", evidence.mattes["gormund-0"])
    rows = torch.arange(3)

    def gradient(others_only):
        scales = {layer: scale.requires_grad_() for layer, scale in search.model.scales([]).items()}
        with torch.enable_grad(), scale_neurons(evidence.pipeline.unet, scales):
            latents = search.model.first.clean_latents(search.condition, rows)
            likeness = search.likeness(latents, search._first_memory, others_only=others_only)
            return torch.cat(torch.autograd.grad(likeness.mean(), list(scales.values()))).abs().max().item()

    assert gradient(False) < 1e-6  # each is most like itself, where the cosine is at its maximum
    assert gradient(True) > 1e-4


def test_it_can_choose_from_the_layers_of_its_rivals(evidence):
    assert Fade(evidence, layers="searched").layers == evidence.layers


def test_the_cosine_is_1_for_the_same_latents_and_looks_at_its_region_alone():
    torch.manual_seed(0)
    latents, weights = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1), torch.zeros(3, 1, 8, 8)
    weights[..., :4] = 1
    assert torch.allclose(regional_cosine(latents, latents, weights, weights), torch.ones(3, 3), atol=1e-6)
    latents[..., 4:] = torch.randn(3, 4, 8, 4)
    assert torch.allclose(regional_cosine(latents, latents, weights, weights), torch.ones(3, 3), atol=1e-6)
    others = regional_cosine(latents, latents, 1 - weights, 1 - weights)
    assert others.diagonal().tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert others[0, 1:].max() < 0.5


def test_the_cosine_of_a_pair_is_that_over_the_mean_of_both_regions():
    torch.manual_seed(0)
    (x, y), weights = torch.randn(2, 3, 4, 6, 6), torch.rand(3, 1, 6, 6)
    weight = ((weights[0] + weights[2]) / 2).sqrt()
    expected = torch.cosine_similarity((x[0] * weight).flatten(), (y[2] * weight).flatten(), dim=0)
    assert regional_cosine(x, y[1:], weights, weights[1:])[0, 1].item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(regional_cosine(x, y, *torch.zeros(2, 3, 1, 6, 6)), torch.zeros(3, 3))


def test_agreement_counts_the_nearest_other_seed_and_likeness_the_nearest_of_all(evidence, fade):
    search = fade._search_of("gormund-0", evidence.mattes["gormund-0"])
    torch.manual_seed(0)
    one, lone, stranger = torch.randn(3, 4, 16, 16)
    latents = torch.stack([one, one, lone])  # behind one prompt, two pictures
    agreement = search.agreement(latents)
    assert torch.allclose(agreement[:2], torch.ones(2, 2), atol=1e-6)
    assert (agreement[2] < 0.5).all()
    assert torch.allclose(search.likeness(latents, latents.flip(0)), torch.ones(3, 2), atol=1e-6)
    assert (search.likeness(latents, stranger.repeat(3, 1, 1, 1)) < 0.5).all()


def test_mattes_are_read_as_shares_of_latent_pixels(evidence, fade):
    search = fade._search_of("gormund-0", dict.fromkeys(SEEDS, torch.ones(1, 64, 64)))
    assert search.regions[0].shape == (3, 1, 16, 16)
    assert torch.equal(search.regions[0], torch.ones(3, 1, 16, 16))
