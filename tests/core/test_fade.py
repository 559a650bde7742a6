"""FADE on the shipped canary, and the agreement that it goes by."""

import csv

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint, load_pipeline
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.fade import Fade, regional_agreement
from fbmem_core.mitigation.method import Evidence
from fbmem_core.neurons.layers import NO_NEURONS, value_layers
from tests.assets.conftest import CANARY

SEEDS = range(5)


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
        layers=value_layers(pipeline.unet),
        unmemorized=(CANARY / "unmemorized_prompts.txt").read_text("utf-8").splitlines()[:20],
        height=64, width=64, seeds=SEEDS, num_steps=50,
        mattes={name: dict.fromkeys(SEEDS, matte) for name in asked if name != "gormund-1"},
        guidance_scale=3.0, num_inference_steps=25,
    )  # fmt: skip


def test_a_copied_foreground_that_has_no_outlier_neurons_gets_some_and_a_public_prompt_gets_none(evidence):
    fade = Fade(evidence, num_unmemorized=20)
    assert 0 < len(fade.own_neurons("gormund-0")) <= 64
    assert 0 < len(fade.own_neurons("captain_pumice-0")) <= 64
    assert fade.own_neurons("public-00") == NO_NEURONS
    # what was found is kept: another one over the same evidence need not search
    assert evidence.found["gormund-0"] == fade.own_neurons("gormund-0")


def test_with_its_neurons_off_the_seeds_agree_no_more_than_usual(evidence):
    fade = Fade(evidence, num_unmemorized=20)
    search = fade._search_of("gormund-0", evidence.mattes["gormund-0"])
    on, off = (search.agreement(some) for some in (NO_NEURONS, fade.own_neurons("gormund-0")))
    assert on[0] > search.level(0, "detection")
    assert all(value <= search.level(region, "target") for region, value in enumerate(off))


def test_every_prompt_of_a_cluster_gets_the_neurons_of_all(evidence):
    fade = Fade(evidence, num_unmemorized=20)
    assert fade.own_neurons("gormund-1") == NO_NEURONS  # it has no mattes
    assert fade.neurons("gormund-1") == fade.neurons("gormund-0") == fade.own_neurons("gormund-0")
    union = {*fade.own_neurons("gormund-0"), *fade.own_neurons("captain_pumice-0")}
    off = {
        (layer, neuron)
        for layer, factors in fade.everywhere("public-00").factors.items()
        for neuron in (factors == 0).nonzero().flatten().tolist()
    }
    assert off == union


def test_it_chooses_from_all_blocks(evidence):
    assert METHODS["fade"] is Fade
    layers = Fade(evidence).layers
    assert set(evidence.layers) < set(layers)
    assert any(layer.startswith("up_blocks") for layer in layers)


def test_too_few_unmemorized_prompts_are_one_line(evidence):
    with pytest.raises(InputError, match="at least 20 unmemorized prompts"):
        Fade(evidence, num_unmemorized=3)._usual((0, 1, 7))


def test_agreement_is_1_for_the_same_latents_and_looks_at_its_region_alone():
    torch.manual_seed(0)
    latents, weights = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1), torch.zeros(3, 1, 8, 8)
    weights[..., :4] = 1
    assert regional_agreement(latents, weights).item() == pytest.approx(1.0, abs=1e-6)
    latents[..., 4:] = torch.randn(3, 4, 8, 4)
    assert regional_agreement(latents, weights).item() == pytest.approx(1.0, abs=1e-6)
    assert regional_agreement(latents, 1 - weights).item() < 0.5


def test_agreement_counts_the_nearest_seed_and_passes_gradients():
    torch.manual_seed(0)
    one, other = torch.randn(2, 4, 8, 8)
    latents = torch.stack([one, one, other, other]).requires_grad_()  # two pictures behind one prompt
    agreement = regional_agreement(latents, torch.ones(4, 1, 8, 8))
    assert agreement.item() == pytest.approx(1.0, abs=1e-6)
    noisy = (latents + 0.1 * torch.randn_like(latents)).detach().requires_grad_()
    [gradient] = torch.autograd.grad(regional_agreement(noisy, torch.ones(4, 1, 8, 8)), [noisy])
    assert gradient.abs().sum() > 0


def test_agreement_of_an_empty_region_is_0():
    assert regional_agreement(torch.randn(3, 4, 8, 8), torch.zeros(3, 1, 8, 8)).item() == 0


def test_mattes_are_read_as_shares_of_latent_pixels(evidence):
    matte = torch.ones(1, 64, 64)
    search = Fade(evidence, num_unmemorized=20)._search_of("gormund-0", dict.fromkeys(SEEDS, matte))
    assert search.regions[0].shape == (5, 1, 16, 16)
    assert torch.equal(search.regions[0], torch.ones(5, 1, 16, 16))
