"""Every architecture that can be audited: predictions are those of its own pipeline, and methods reach its neurons."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.noise_difference import FirstStep
from fbmem_core.diffusion.sampling import Request, sample
from fbmem_core.diffusion.schedule import (
    Step,
    clean_from_output,
    noise_from_output,
    output_from_both,
    read_schedule,
)
from fbmem_core.diffusion.schedule_names import PREDICTIONS
from fbmem_core.diffusion.seed_agreement import predict_clean_latents
from fbmem_core.diffusion.settings import SamplingConfig
from fbmem_core.neurons.hooks import deactivation_factors, scale_neurons
from fbmem_core.neurons.layers import NeuronSet, value_layers
from fbmem_core.neurons.statistics import activations
from tests.tiny_models import BETAS, MODELS, make_pipeline, sd

SIZE = {"height": 64, "width": 64}
PROJECT = Path(__file__).parents[2]
PROMPT, SEEDS = "a red cat", (3, 4)
SAMPLING = SamplingConfig(steps=2, guidance_scale=3.0, batch_size=2, **SIZE)
AUDITED = [name for name in MODELS if name not in ("img2img", "inpaint")]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=AUDITED)
def pipeline(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(request.param)


def stock(pipeline, **changes):
    """What diffusers itself draws."""
    arguments = {
        "prompt": [PROMPT] * 2, "num_inference_steps": SAMPLING.steps, "output_type": "np", **SIZE,
        "generator": [torch.Generator().manual_seed(seed) for seed in SEEDS],
        **denoiser_of(pipeline).call_arguments(Guidance(3.0)),
    }  # fmt: skip
    return pipeline(**{**arguments, **changes}).images


def passes(network, action):
    """(latents, output) of every pass of a network during an action."""
    seen = []

    def keep(_module, arguments, named, output):
        given = arguments[0] if arguments else named["hidden_states"]
        seen.append((given.clone(), (output[0] if isinstance(output, tuple) else output.sample).clone()))

    hook = network.register_forward_hook(keep, with_kwargs=True)
    try:
        action()
    finally:
        hook.remove()
    return seen


def test_the_first_step_is_the_pipelines_own_and_images_are_those_of_diffusers(pipeline):
    denoiser, images = denoiser_of(pipeline), []
    theirs = passes(denoiser.network, lambda: images.extend(stock(pipeline)))
    latents = denoiser.initial_latents(SEEDS, **SIZE) * denoiser.schedule(SAMPLING.steps, **SIZE).initial_scale
    conditions = denoiser.encode_unconditional(**SIZE), denoiser.encode([PROMPT], **SIZE)
    settings = {"guidance": Guidance(3.0), "num_inference_steps": SAMPLING.steps, "num_steps": 1}
    [ours] = passes(denoiser.network, lambda: predict_clean_latents(pipeline, latents, conditions, **settings))
    first = theirs[0]
    if len(ours[0]) > len(first[0]):  # a pipeline that asks for prompt and negative prompt one after the other
        first = tuple(torch.cat([theirs[1][part], theirs[0][part]]) for part in (0, 1))
    for part in (0, 1):
        assert torch.allclose(ours[part], first[part], atol=1e-5)
    requests = [Request(str(seed), PROMPT, seed) for seed in SEEDS]
    for (_, image), expected in zip(sample(pipeline, requests, SAMPLING), images, strict=True):
        assert np.abs(np.asarray(image).astype(int) - (expected * 255).round()).max() <= 1
    embeds = conditions[1].embeds
    for (_, image), expected in zip(sample(pipeline, requests, SAMPLING, embeds=embeds), images, strict=True):
        assert np.abs(np.asarray(image).astype(int) - (expected * 255).round()).max() <= 1


def test_prompts_move_the_noise_difference_and_neurons_that_are_off_do(pipeline):
    step, denoiser = FirstStep(pipeline, [0, 1], **SIZE), denoiser_of(pipeline)
    one, other = (step.noise_difference(denoiser.encode([text], **SIZE)) for text in (PROMPT, "blue waves on a clock"))
    assert one.shape == (2, *denoiser.latent_shape(**SIZE))
    assert (one - other).abs().max() > 1e-4
    layers = value_layers(pipeline)
    values = activations(pipeline, layers, denoiser.encode([PROMPT, "an owl"], **SIZE))
    assert all(value.shape[0] == 2 and (value > 0).any() for value in values.values())
    off = NeuronSet.of({layer: range(values[layer].shape[1]) for layer in layers})
    with scale_neurons(step.network, deactivation_factors(step.network, off)):
        assert (step.noise_difference(denoiser.encode([PROMPT], **SIZE)) - one).abs().max() > 1e-6
    assert torch.equal(step.noise_difference(denoiser.encode([PROMPT], **SIZE)), one)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_and_clean_latents_follow_from_the_output_of_each_kind(prediction):
    clean, noise = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64)
    for signal in (0.1, 0.8):
        share = 1 - signal if prediction == "flow_prediction" else (1 - signal**2) ** 0.5
        step = Step(500, signal, share)
        latents = signal * clean + share * noise
        output = output_from_both(clean, noise, step, prediction)
        assert torch.allclose(clean_from_output(output, latents, step, prediction), clean)
        assert torch.allclose(noise_from_output(output, latents, step, prediction), noise)


@pytest.mark.parametrize(
    "kind",
    [
        DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler,
        LMSDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler,
    ],
)  # fmt: skip
def test_every_scheduler_begins_with_the_same_latents_and_the_share_of_its_own_step(kind):
    torch.manual_seed(0)
    options = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    spaced = {} if kind is DDIMScheduler or kind is PNDMScheduler else {"timestep_spacing": "linspace"}
    pipeline = sd(kind(**BETAS, **options, **spaced, steps_offset=1))
    pipeline.set_progress_bar_config(disable=True)
    denoiser = denoiser_of(pipeline)
    schedule = read_schedule(pipeline.scheduler, 4)
    first = passes(denoiser.network, lambda: stock(pipeline, num_inference_steps=4))[0]
    latents = denoiser.initial_latents(SEEDS, **SIZE) * schedule.initial_scale
    assert torch.allclose(first[0], torch.cat([latents, latents]), atol=1e-5)
    assert all(abs(step.signal**2 + step.noise**2 - 1) < 1e-6 for step in schedule.steps)
    assert [step.timestep for step in schedule.steps] == sorted({*(s.timestep for s in schedule.steps)}, reverse=True)
    assert schedule.steps[0].signal < schedule.steps[-1].signal


def test_zero_terminal_snr_and_flow_matching_do_not_hide_memory():
    """The noise that follows from velocity at pure noise is the latents whatever the prompt: nothing would be found."""
    for name in ("sd_zero_snr", "sd3"):
        step = FirstStep(make_pipeline(name), [0, 1], **SIZE)
        assert step.step.signal == 0
        condition = step.denoiser.encode([PROMPT], **SIZE)
        planes = step.noise_difference(condition)
        assert planes.std() > 0.05
        assert torch.allclose(step.latents - step.noise(condition), step.clean_latents(condition), atol=1e-5)


def test_conditions_are_padded_to_the_longest_where_they_have_masks():
    parts = [Conditioning(torch.ones(1, n, 3), {"mask": torch.ones(1, n)}) for n in (2, 5)]
    both = Conditioning.cat(parts)
    assert both.embeds.shape == (2, 5, 3)
    assert both.added["mask"].sum(dim=1).tolist() == [2, 5]


def test_no_code_outside_of_its_room_names_a_network():
    named = re.compile(r"\.unet\b|[\"']unet[\"']|UNet2D|Transformer2D|\.transformer\b")
    files = [*(PROJECT / "fbmem_core").rglob("*.py"), *(PROJECT / "fbmem_assets").rglob("*.py")]
    outside = [path for path in files if path.parts[-2] not in ("diffusion", "families", "canary")]
    assert len(outside) > 50
    assert [path.name for path in outside if named.search(path.read_text(encoding="utf-8"))] == []
