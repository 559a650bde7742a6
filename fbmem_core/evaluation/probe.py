"""Probe of a model: its steps, predictions and trajectories on a prompt, which all detectors share.

Notation as in `detectors`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.diffusion.schedule import Schedule, Step, clean_from_output, noise_from_output
from fbmem_core.evaluation.attention import end_token_attention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
