"""Initial noise that escapes a memory: Han et al., arXiv 2510.08625 (NeurIPS 2025), the adjustment per sample.

Notation: gap = ||eps_cond - eps_uncond||_2 at the first step. Where it is small the sampling starts outside the basin
in which guidance leads to the memorized image.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.gradients import gradients_of
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts, encode_unconditional
from fbmem_core.errors import InputError
from fbmem_core.mitigation.method import ImageMethod, Intervention
from fbmem_core.mitigation.options import Count, Options, Rate, TargetOptions
from fbmem_core.neurons.hooks import frozen
from fbmem_core.neurons.statistics import check_number

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class NoiseOptions(TargetOptions):
    """The released code's rate and limit; its target of 0.9 holds for Stable Diffusion at 512 px."""

    learning_rate: Rate = 0.01
    max_steps: Count = 1000


class LatentMethod(ImageMethod):
    """A mitigation that moves the initial latents of every image until a loss of it is at or below a target."""

    @classmethod
    def check(cls, pipeline: DiffusionPipeline) -> None:
        """Refuse networks whose pipeline takes latents packed into tokens."""
        if denoiser_of(pipeline).num_packed != 1:
            cure = f"Leave out `{cls.name}`."
            raise InputError("a pipeline that takes latents", type(pipeline).__name__, where=cls.name, cure=cure)

    def loss(
        self, step: FirstStep, conditions: tuple[Conditioning, Conditioning], latents: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """Loss that is lowered, by image; `conditions` are the empty prompt's and the prompt's."""
        raise NotImplementedError

    def optimizer(self, latents: Tensor) -> torch.optim.Optimizer:
        """Optimizer of the latents."""
        raise NotImplementedError

    @cached_property
    def target(self) -> float:
        """Loss at or below which it is usual.

        Raises:
            InputError: There are fewer than 20 non-memorized prompts.
        """
        if self.options.target is not None:
            return self.options.target
        evidence = self.evidence
        texts = list(evidence.non_memorized)[: self.options.num_non_memorized]
        check_number(len(texts))
        step, latents = self._step(tuple(evidence.seeds)), self._unit_noise(tuple(evidence.seeds))
        conditions = self._encode(*texts)
        with torch.no_grad():
            losses = [self.loss(step, (self._empty, conditions.rows(row)), latents).mean() for row in range(len(texts))]
        usual = torch.stack(losses).double()
        return (usual.mean() + self.options.num_stddevs * usual.std()).item()

    def compute(self, prompt_id: str) -> Intervention:
        """The latents of the images whose loss was above the target."""
        evidence = self.evidence
        seeds = evidence.seeds_of(prompt_id)
        step = self._step(seeds)
        conditions = self._empty, self._encode(evidence.prompts[prompt_id])
        moved, is_moved = self._optimise(step, seeds, conditions)
        kept = {seed: latents for seed, latents, was in zip(seeds, moved, is_moved.tolist(), strict=True) if was}
        return Intervention(latents=kept)

    def _optimise(
        self, step: FirstStep, seeds: tuple[int, ...], conditions: tuple[Conditioning, Conditioning]
    ) -> tuple[Tensor, Tensor]:
        """Latents after the optimisation, and which images moved. An image rests once it is at the target."""
        own = self._unit_noise(seeds)
        latents = own.clone().requires_grad_()
        optimizer = self.optimizer(latents)
        result, is_moved = own.clone(), torch.zeros(len(latents), dtype=torch.bool)
        is_done = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        with torch.enable_grad(), frozen(step.network):
            for number in range(self.options.max_steps + 1):
                loss = self.loss(step, conditions, latents)
                is_done |= loss.detach() <= self.target
                if is_done.all() or number == self.options.max_steps:
                    break
                [latents.grad] = gradients_of(loss.sum(), [latents], step.denoiser.dtype)
                optimizer.step()
                active = ~is_done
                result[active] = latents.detach()[active]
                is_moved |= active.cpu()
        return result, is_moved

    def _step(self, seeds: tuple[int, ...]) -> FirstStep:
        evidence = self.evidence
        return FirstStep(
            evidence.pipeline,
            seeds,
            height=evidence.height,
            width=evidence.width,
            num_steps=evidence.num_inference_steps,
        )

    def _unit_noise(self, seeds: tuple[int, ...]) -> Float[Tensor, "n c h w"]:
        evidence = self.evidence
        return (
            denoiser_of(evidence.pipeline).initial_latents(seeds, height=evidence.height, width=evidence.width).float()
        )

    def _encode(self, *prompts: str) -> Conditioning:
        evidence = self.evidence
        return encode_prompts(evidence.pipeline, prompts, height=evidence.height, width=evidence.width)

    @cached_property
    def _empty(self) -> Conditioning:
        evidence = self.evidence
        negative = evidence.guidance.negative_prompt
        return encode_unconditional(evidence.pipeline, negative, height=evidence.height, width=evidence.width)


class InitialNoise(LatentMethod):
    """Lower every image's gap by AdamW on its latents until it is at or below the target."""

    name = "initial_noise"
    options_type: ClassVar[type[Options]] = NoiseOptions
    strength = "num_stddevs"
    strengths = (4.0, 2.0, 1.0, 0.0, -1.0)

    def loss(
        self, step: FirstStep, conditions: tuple[Conditioning, Conditioning], latents: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """The gap."""
        return guidance(step, conditions, latents).flatten(1).norm(dim=1)

    def optimizer(self, latents: Tensor) -> torch.optim.Optimizer:
        """AdamW, as released."""
        return torch.optim.AdamW([latents], lr=self.options.learning_rate)


def guidance(
    step: FirstStep, conditions: tuple[Conditioning, Conditioning], latents: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """eps_cond - eps_uncond at the first step for these latents, in float32; gradients pass.

    Args:
        step: The first step of sampling.
        conditions: Of the empty prompt and of the prompt, one each.
        latents: In the place of the step's own, of unit variance.
    """
    scaled = (step.schedule.initial_scale * latents).to(step.denoiser.dtype)
    empty, prompt = (step.noise_at(scaled, condition) for condition in conditions)
    return (prompt - empty).float()
