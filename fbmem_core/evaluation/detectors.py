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
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.schedule import Step
from fbmem_core.diffusion.seed_agreement import predict_clean_latents, seed_agreement
from fbmem_core.errors import InputError

if TYPE_CHECKING:
    pass
from fbmem_core.evaluation.probe import Probe, Subject

_TINY = 1e-12
_LATE_STEP = -3  # anisotropy: the timestep of low noise at which pure noise is looked at


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
