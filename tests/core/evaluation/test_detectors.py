"""Detectors on a tiny real pipeline: each is what its source says, by hand."""

import warnings

import pytest
import torch

from fbmem_core.diffusion.checkpoint import find_checkpoint
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.loading import load_pipeline
from fbmem_core.evaluation import DetectorName
from fbmem_core.evaluation.alignment import prompt_alignment
from fbmem_core.evaluation.attention import end_token_attention
from fbmem_core.evaluation.detectors import DETECTORS, measure
from fbmem_core.evaluation.probe import Probe, Subject
from fbmem_core.mitigation.wen import detection_metric

SEEDS = range(2)
PROMPT = "clockwork owl of mirza"


@pytest.fixture(scope="module")
def probe(tiny_checkpoint):
    pipeline = load_pipeline(find_checkpoint(str(tiny_checkpoint)), dtype="float32", device="cpu")
    return Probe(pipeline, SEEDS, height=64, width=64, guidance=Guidance(3.0), num_inference_steps=5)


@pytest.fixture(scope="module")
def subject(probe):
    return Subject(probe.encode([PROMPT]))


def test_every_detector_is_named_in_the_settings_and_scores_every_prompt(probe, subject):
    assert set(DETECTORS) == set(DetectorName.__args__)
    for name, detector_type in DETECTORS.items():
        assert detector_type.name == name
        result = measure(detector_type(), probe, subject)
        assert torch.isfinite(torch.tensor(result.score))
        assert result.seconds > 0


def test_the_empty_prompt_has_no_gap_and_a_prompt_that_of_wens_metric(probe, subject):
    wen = DETECTORS["wen"]()
    assert wen.score(probe, Subject(probe.encode([""]))) == 0
    [expected] = detection_metric(probe.pipeline, [PROMPT], height=64, width=64, num_seeds=2)
    # that metric takes the first of 50 steps, the protocol the first of the sampling
    steps = Probe(probe.pipeline, SEEDS, 64, 64, Guidance(3.0), num_inference_steps=50)
    assert wen.score(steps, subject) == pytest.approx(expected, rel=1e-4)


def test_sails_quotient_is_the_derivative_along_the_difference_of_the_scores(probe, subject):
    step = probe.schedule.steps[0]
    unet = probe.pipeline.unet

    def difference(latents):
        outputs = [probe.noise(latents, step, one) for one in (subject.condition, probe.unconditional)]
        return -(outputs[0] - outputs[1]) / step.noise

    latents = probe.latents.float()
    direction = difference(latents).detach()
    with warnings.catch_warnings(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # forward derivatives use torch.jit.script
        _, expected = torch.func.jvp(difference, (latents,), (direction,))
    unet.zero_grad()
    exact = expected.flatten(1).norm(dim=1).mean().item()
    assert DETECTORS["sail"]().score(probe, subject) == pytest.approx(exact, rel=0.05)


def test_anisotropy_counts_both_parts_in_deviations_of_usual_prompts(probe, subject):
    detector = DETECTORS["anisotropy"]()
    usual = [Subject(probe.encode([text])) for text in ("a red star", "a blue fish", "a green hat on dots")]
    detector.calibrate(probe, usual)
    scores = torch.tensor([detector.score(probe, one) for one in usual])
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    parts = torch.stack([detector._parts(probe, one) for one in usual])
    assert ((parts - parts.mean(0)) / parts.std(0)).sum(1).tolist() == pytest.approx(scores.tolist(), abs=1e-4)


def test_attention_to_the_last_token_is_a_share_and_the_map_has_the_latents_size(probe, subject):
    attention = probe.trajectory(subject).attention
    assert attention.shape == (2, 16, 16)
    assert (attention >= 0).all()
    assert (attention <= 1).all()
    hooks = sum(len(module._forward_pre_hooks) for module in probe.pipeline.unet.modules())
    assert hooks == 0
    with end_token_attention(torch.nn.Linear(2, 2)) as maps:
        pass
    assert maps.average((4, 4)) is None


def test_the_sampling_behind_maps_is_the_pipelines_own(probe, subject):
    """The differences of the trajectory are those of the latents that the pipeline goes through."""
    differences = probe.trajectory(subject).differences
    first = probe.difference(probe.schedule.steps[0], subject)
    assert differences.shape == (5, 2, 4, 16, 16)
    assert torch.allclose(differences[0], first, atol=1e-5)
    assert not torch.allclose(differences[1], first, atol=1e-5)


def test_copies_of_one_seed_agree_and_mattes_divide_the_image(probe, subject):
    agreement = DETECTORS["seed_agreement"]()
    twice = Probe(probe.pipeline, [3, 3], 64, 64, Guidance(3.0), num_inference_steps=5, num_agreement_steps=2)
    assert agreement.score(twice, subject) == pytest.approx(1, abs=1e-4)
    mattes = torch.zeros(2, 1, 64, 64)
    mattes[..., :32] = 1
    assert agreement.score(probe, Subject(subject.condition, mattes)) >= agreement.score(probe, subject) - 0.5


def test_alignment_is_a_share_and_the_same_each_time(probe):
    image = probe.pipeline(PROMPT, num_inference_steps=2, height=64, width=64).images[0]
    others = ["a red star", "a blue fish", "a green hat on dots", PROMPT]
    [first] = prompt_alignment(probe.pipeline, [image], [PROMPT], others, num_draws=2)
    [second] = prompt_alignment(probe.pipeline, [image], [PROMPT], others[::-1], num_draws=2)
    assert first == second
    assert first in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
