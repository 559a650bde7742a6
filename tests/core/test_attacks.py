"""The attack on a mitigation: it brings back what was hidden, and nothing that was never memorized."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from fbmem_core.audit.config import SamplingConfig
from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.diffusion.noise_difference import encode_prompts
from fbmem_core.diffusion.sampling import Request
from fbmem_core.evaluation.attacks import (
    adversarial_embedding,
    neighbor_requests,
    starting_embeddings,
)
from fbmem_core.evaluation.quality import side_effect
from fbmem_core.mitigation.method import NO_INTERVENTION, Intervention
from fbmem_core.mitigation.sampling import sample_mitigated
from fbmem_core.neurons.hooks import deactivation_factors
from fbmem_core.neurons.layers import named_sets

CANARY = Path(__file__).parents[2] / "data" / "canary"
PROMPT = "clockwork owl of mirza, limited poster"


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def canary():
    return load_pipeline(find_checkpoint(str(CANARY / "checkpoint")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def hidden(canary):
    """The intervention that switches off the neurons in which the owl was planted."""
    with (CANARY / "neurons.csv").open(encoding="utf-8") as file:
        sets = named_sets((row["family"], row["layer"], int(row["neuron"])) for row in csv.DictReader(file))
    return Intervention(deactivation_factors(canary.unet, sets["clockwork_owl"]))


def reference(name):
    with Image.open(CANARY / "references" / f"{name}.png") as image:
        return image.convert("RGB")


def similarity(pipeline, intervention, image, embeds=None):
    """To a reference, of the one image that is sampled under an intervention."""
    request = Request("p", PROMPT, 0)
    sampling = SamplingConfig(steps=8, guidance_scale=3.0, height=64, width=64)
    with_embeds = Intervention(intervention.factors, embeds=embeds)
    [(_, sampled)] = sample_mitigated(pipeline, [request], sampling, {"p": with_embeds})
    return side_effect({0: sampled}, {0: image})[0]


def test_an_embedding_brings_back_what_switched_off_neurons_hid(canary, hidden):
    owl = reference("clockwork_owl")
    [start] = starting_embeddings(canary, PROMPT, (64, 64), num_near=0)
    found = adversarial_embedding(canary, owl, hidden, start=start, num_steps=15)
    assert similarity(canary, NO_INTERVENTION, owl) > 0.8
    assert similarity(canary, hidden, owl) < 0.4
    assert similarity(canary, hidden, owl, start) < 0.4
    assert similarity(canary, hidden, owl, found) > 0.8


def test_it_draws_no_picture_that_the_model_never_saw(canary, hidden):
    stranger = reference("public_038")
    [start] = starting_embeddings(canary, PROMPT, (64, 64), num_near=0)
    found = adversarial_embedding(canary, stranger, hidden, start=start, num_steps=15)
    assert similarity(canary, hidden, stranger, found) < 0.5


def test_it_works_under_the_intervention_and_leaves_the_model_as_it_was(tiny):
    weight = "conv_in.weight"
    kept = {name: value.clone() for name, value in tiny.unet.named_parameters()}
    [start] = starting_embeddings(tiny, PROMPT, (64, 64), num_near=0)
    owl = reference("clockwork_owl")
    silent = Intervention(weights={weight: torch.zeros_like(kept[weight])})
    plain, again, under, other = (
        adversarial_embedding(tiny, owl, intervention, start=start, num_steps=2, seed=seed)
        for intervention, seed in ((NO_INTERVENTION, 0), (NO_INTERVENTION, 0), (silent, 0), (NO_INTERVENTION, 1))
    )
    assert plain.shape == start.shape
    assert torch.equal(plain, again)
    assert not torch.equal(plain, under)
    assert not torch.equal(plain, other)
    assert all(torch.equal(value, kept[name]) for name, value in tiny.unet.named_parameters())
    assert all(value.requires_grad and value.grad is None for value in tiny.unet.parameters())


def test_starts_are_near_the_prompt_and_anywhere(tiny):
    own = encode_prompts(tiny, [PROMPT], height=64, width=64).embeds
    near, far = starting_embeddings(tiny, PROMPT, (64, 64), seed=3)
    assert (near - own).std() == pytest.approx(0.1 * own.std().item(), rel=0.05)
    assert (far.mean(), far.std()) == (
        pytest.approx(own.mean().item(), abs=0.05),
        pytest.approx(own.std().item(), rel=0.05),
    )
    assert torch.cosine_similarity((far - own.mean()).flatten(), (own - own.mean()).flatten(), dim=0).abs() < 0.1


def test_an_image_is_encoded_as_the_autoencoder_decodes_it(canary):
    owl = reference("clockwork_owl")
    with torch.no_grad():
        decoded = canary.vae.decode(denoiser_of(canary).encode_image(owl) / canary.vae.config.scaling_factor).sample
    [image] = canary.image_processor.postprocess(decoded, output_type="pil")
    assert side_effect({0: image}, {0: owl})[0] > 0.9


def test_neighbors_are_the_other_words_of_a_cluster_under_the_prompts_own_id():
    prompts = {"a": "an owl", "b": "the owl", "c": "an owl", "d": "a fish", "e": "the owl"}
    clusters = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 0}
    vectors = {name: [1.0, 0.0] for name in prompts}
    requests = neighbor_requests(prompts, clusters, "a", range(2), vectors=vectors, num_neighbors=5)
    assert requests == [Request("a", "the owl", 0), Request("a", "the owl", 1)]
    assert neighbor_requests(prompts, clusters, "d", range(2), vectors=vectors, num_neighbors=5) == []


def test_neighbors_are_the_nearest_and_no_more_than_asked():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [5.0, 1.0], "d": [1.0, 1.0], "e": [-1.0, 0.0]}
    prompts, clusters = {name: f"owl {name}" for name in vectors}, dict.fromkeys(vectors, 0)
    texts = [
        [
            request.prompt
            for request in neighbor_requests(prompts, clusters, "a", range(1), vectors=vectors, num_neighbors=n)
        ]
        for n in (1, 3, 9)
    ]
    assert texts == [["owl c"], ["owl c", "owl d", "owl b"], ["owl c", "owl d", "owl b", "owl e"]]
