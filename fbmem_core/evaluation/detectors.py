"""Detectors of memorized prompts that need no reference image, under one protocol: same seeds, sizes and steps.

Every detector gives a prompt one number, higher if it is memorized, on average over the seeds. Two of them also draw
maps of what is copied. `DETECTORS` names them; `measure` runs one on a prompt and takes its time.

Notation: x_T the initial latents of a seed; eps_c, eps_u the noise that is predicted with the prompt and without; d =
eps_c - eps_u, up to a factor the difference of the two scores; noise_t the share of noise at a step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Schedule, Step, clean_from_output, noise_from_output
from fbmem_core.diffusion.seed_agreement import predict_clean_latents, seed_agreement
from fbmem_core.errors import InputError
from fbmem_core.evaluation.attention import end_token_attention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_TINY = 1e-12
_LATE_STEP = -3  # anisotropy: the timestep of low noise at which pure noise is looked at


@dataclass(frozen=True)
class Subject:
    """A prompt that is measured.

    Attributes:
        condition: Its encoding.
        mattes: [n, 1, s, s] foregrounds of its images at the protocol's seeds, in [0, 1]; None where they are unknown.
    """

    condition: Conditioning
    mattes: Float[Tensor, "n 1 s s"] | None = None


@dataclass(frozen=True)
class Trajectory:
    """One guided sampling of a prompt.

    Attributes:
        differences: [steps, n, c, h, w], d at every step.
        attention: [n, h, w], attention of the last step to the last token of the prompt; None without such layers.
        seconds: That it took.
    """

    differences: Tensor
    attention: Tensor | None
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Model, settings and layers that all detectors have in common.

    Attributes:
        pipeline: The audited model.
        seeds: Of the initial latents, the same for every prompt.
        height: Of the images in px.
        width: Of the images in px.
        guidance: As in sampling.
        num_inference_steps: Of the sampling.
        num_agreement_steps: After which seed agreement is taken.
    """

    pipeline: DiffusionPipeline
    seeds: Sequence[int]
    height: int
    width: int
    guidance: Guidance
    num_inference_steps: int
    num_agreement_steps: int = 7
    _last: dict[int, Trajectory] = field(default_factory=dict)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditions of prompts."""
        return denoiser_of(self.pipeline).encode(prompts, height=self.height, width=self.width)

    @cached_property
    def unconditional(self) -> Conditioning:
        """Condition that guidance compares a prompt with."""
        denoiser = denoiser_of(self.pipeline)
        return denoiser.encode_unconditional(self.guidance.negative_prompt, height=self.height, width=self.width)

    @cached_property
    def schedule(self) -> Schedule:
        """Steps of the sampling."""
        denoiser = denoiser_of(self.pipeline)
        return denoiser.schedule(self.num_inference_steps, height=self.height, width=self.width)

    @cached_property
    def latents(self) -> Float[Tensor, "n c h w"]:
        """x_T of every seed."""
        denoiser = denoiser_of(self.pipeline)
        noise = denoiser.initial_latents(self.seeds, height=self.height, width=self.width)
        return (self.schedule.initial_scale * noise).to(denoiser.dtype)

    def noise(self, latents: Float[Tensor, "n c h w"], step: Step, condition: Conditioning) -> Float[Tensor, "n c h w"]:
        """Predicted noise, float32 or more; gradients pass."""
        many = condition.repeat(len(latents)) if len(condition) == 1 else condition
        output = denoiser_of(self.pipeline).predict(latents, step, many)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return noise_from_output(output, latents.to(output), step, self.schedule.prediction)

    def difference(self, step: Step, subject: Subject) -> Float[Tensor, "n c h w"]:
        """d at x_T."""
        return self.noise(self.latents, step, subject.condition) - self._unconditional_noise(step)

    def _unconditional_noise(self, step: Step) -> Float[Tensor, "n c h w"]:
        return self.noise(self.latents, step, self.unconditional)

    @torch.no_grad()
    def trajectory(self, subject: Subject) -> Trajectory:
        """The sampling of a prompt, kept until another one is asked for."""
        key = id(subject)
        if key not in self._last:
            self._last.clear()
            self._last[key] = self._sample(subject)
        return self._last[key]

    def _sample(self, subject: Subject) -> Trajectory:
        began = time.perf_counter()
        latents, differences, steps = self.latents.float(), [], self.schedule.steps
        attention = None
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            if following is None:
                with end_token_attention(denoiser_of(self.pipeline).network) as maps:
                    conditional = self._output(latents, step, subject.condition)
                attention = maps.average(self.latents.shape[-2:])
            else:
                conditional = self._output(latents, step, subject.condition)
            unconditional = self._output(latents, step, self.unconditional)
            noises = [
                noise_from_output(output, latents, step, self.schedule.prediction)
                for output in (conditional, unconditional)
            ]
            differences.append(noises[0] - noises[1])
            guided = unconditional + self.guidance.scale * (conditional - unconditional)
            noise = noise_from_output(guided, latents, step, self.schedule.prediction)
            clean = clean_from_output(guided, latents, step, self.schedule.prediction)
            if following is not None:
                latents = following.signal * clean + following.noise * noise
        return Trajectory(torch.stack(differences), attention, time.perf_counter() - began)

    def _output(self, latents: Tensor, step: Step, condition: Conditioning) -> Tensor:
        denoiser = denoiser_of(self.pipeline)
        many = condition.repeat(len(latents))
        return denoiser.predict(latents.to(denoiser.dtype), step, many).float()


class Detector(ABC):
    """One detector. `calibrate` is called once, with non-memorized prompts that are not scored afterwards."""

    name: ClassVar[str]
    source: ClassVar[str]
    needs_trajectory: ClassVar[bool] = False

    def calibrate(self, probe: Probe, subjects: Sequence[Subject]) -> None:  # noqa: B027
        """Measure what is usual, where the score depends on it."""

    @abstractmethod
    def score(self, probe: Probe, subject: Subject) -> float:
        """Higher if the prompt is memorized."""

    def maps(self, probe: Probe, subject: Subject) -> Float[Tensor, "n h w"] | None:
        """Higher where a seed's image is copied; None from detectors that draw no maps."""
        return None


class Wen(Detector):
    """||d|| at the first step."""

    name, source = "wen", "arXiv 2407.21720"

    @torch.no_grad()
    def score(self, probe: Probe, subject: Subject) -> float:
        """Mean over the seeds."""
        return _norms(probe.difference(probe.schedule.steps[0], subject)).mean().item()


class WenAllSteps(Detector):
    """||d|| on average over the whole sampling, which is its 50-step variant."""

    name, source, needs_trajectory = "wen_all_steps", "arXiv 2407.21720", True

    def score(self, probe: Probe, subject: Subject) -> float:
        """Mean over steps and seeds."""
        return probe.trajectory(subject).differences.flatten(2).norm(dim=2).mean().item()

    def maps(self, probe: Probe, subject: Subject) -> Float[Tensor, "n h w"]:
        """The score-difference map: ||d||^2 of each latent pixel, on average over the steps (arXiv 2605.26756)."""
        return probe.trajectory(subject).differences.square().sum(dim=2).mean(dim=0)


class Sail(Detector):
    """||H (s_c - s_u)||, H the Hessian that the two log-densities differ by: SAIL's sharpness at the first step.

    H v is the derivative of s_c - s_u along v, s = -eps / noise_t, taken as a difference quotient: forward derivatives
    do not exist for every attention kernel. Its step is 0.01 of the length of x_T.
    """

    name, source = "sail", "arXiv 2412.04140"
    _RELATIVE_STEP = 0.01

    @torch.no_grad()
    def score(self, probe: Probe, subject: Subject) -> float:
        """Mean over the seeds."""
        step, latents = probe.schedule.steps[0], probe.latents.float()
        direction = -probe.difference(step, subject) / step.noise
        length = self._RELATIVE_STEP * _norms(latents) / _norms(direction).clamp_min(_TINY)
        shift = length.view(-1, 1, 1, 1) * direction
        ahead, behind = (
            self._score_difference(probe, latents + sign * shift, step, subject.condition) for sign in (1, -1)
        )
        return (_norms(ahead - behind) / (2 * length)).mean().item()

    @staticmethod
    def _score_difference(probe: Probe, latents: Tensor, step: Step, condition: Conditioning) -> Tensor:
        latents = latents.to(probe.latents.dtype)
        difference = probe.noise(latents, step, condition) - probe.noise(latents, step, probe.unconditional)
        return -difference / step.noise


class Anisotropy(Detector):
    """||d|| at the first step plus the cosine of eps_u and d, channel against channel, late in the schedule.

    Both on x_T itself. The authors weigh the two by numbers tuned for each model (1 and 2, or 1 and 0.1); here both
    count in their deviations over non-memorized prompts.
    """

    name, source = "anisotropy", "arXiv 2601.20642"

    def __init__(self) -> None:
        self._usual = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def calibrate(self, probe: Probe, subjects: Sequence[Subject]) -> None:
        """Mean and deviation of the two."""
        parts = torch.stack([self._parts(probe, subject) for subject in subjects])
        self._usual = parts.mean(dim=0), parts.std(dim=0).clamp_min(_TINY)

    def score(self, probe: Probe, subject: Subject) -> float:
        """Sum of the two in deviations."""
        mean, stddev = self._usual
        return ((self._parts(probe, subject) - mean) / stddev).sum().item()

    @torch.no_grad()
    def _parts(self, probe: Probe, subject: Subject) -> Float[Tensor, " parts"]:
        steps = probe.schedule.steps
        late = steps[max(_LATE_STEP, -len(steps))]
        difference = probe.difference(late, subject)
        cosine = F.cosine_similarity(probe._unconditional_noise(late), difference, dim=1).mean()
        return torch.stack([_norms(probe.difference(steps[0], subject)).mean(), cosine]).double().cpu()


class BrightEnding(Detector):
    """||d o m|| / mean(m) on average over the sampling, m the attention of its last step to the last token."""

    name, source, needs_trajectory = "bright_ending", "arXiv 2410.21665", True

    def score(self, probe: Probe, subject: Subject) -> float:
        """Mean over steps and seeds.

        Raises:
            InputError: The network has no cross-attention.
        """
        mask = self.maps(probe, subject)
        masked = probe.trajectory(subject).differences * mask[:, None]
        lengths = masked.flatten(2).norm(dim=2).mean(dim=0)
        return (lengths / mask.mean(dim=(1, 2)).clamp_min(_TINY)).mean().item()

    def maps(self, probe: Probe, subject: Subject) -> Float[Tensor, "n h w"]:
        """The attention."""
        attention = probe.trajectory(subject).attention
        if attention is None:
            cure = "Leave out `bright_ending`."
            raise InputError("a network with cross-attention", "none", where="its blocks", cure=cure)
        return attention


class Agreement(Detector):
    """Seed agreement, ours: the cosine of each seed's predicted clean latents with the nearest other seed's.

    The higher of inside and outside the foregrounds of the prompt's images; over the whole latents without mattes.
    """

    name, source = "seed_agreement", "docs/seed-agreement.md"

    def score(self, probe: Probe, subject: Subject) -> float:
        """After some steps of guided sampling."""
        latents = predict_clean_latents(
            probe.pipeline,
            probe.latents,
            (probe.unconditional, subject.condition),
            guidance=probe.guidance,
            num_inference_steps=probe.num_inference_steps,
            num_steps=min(probe.num_agreement_steps, len(probe.schedule.steps)),
        )[-1]
        mattes = subject.mattes
        if mattes is None:
            mattes = torch.ones(len(latents), 1, *latents.shape[-2:])
        agreement = seed_agreement(latents, mattes.to(latents.device))
        return max(value for value in (agreement.inside, agreement.outside, -1.0) if value is not None)


DETECTORS: Mapping[str, type[Detector]] = {
    detector.name: detector for detector in (Wen, WenAllSteps, Sail, Anisotropy, BrightEnding, Agreement)
}


@dataclass(frozen=True)
class Measurement:
    """Scores that a detector gives a prompt, and the seconds that it took, its sampling included."""

    score: float
    seconds: float


def measure(detector: Detector, probe: Probe, subject: Subject) -> Measurement:
    """Run a detector on a prompt.

    Args:
        detector: Calibrated.
        probe: The protocol.
        subject: The prompt.

    Raises:
        InputError: The detector cannot look into this model.
    """
    trajectory = probe._last.get(id(subject))
    began = time.perf_counter()
    score = detector.score(probe, subject)
    seconds = time.perf_counter() - began
    if detector.needs_trajectory and trajectory is not None:
        seconds += trajectory.seconds
    return Measurement(score, seconds)


def _norms(planes: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    return planes.flatten(1).norm(dim=1)
