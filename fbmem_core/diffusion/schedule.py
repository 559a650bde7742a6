"""The steps of sampling as a pipeline's own scheduler has them, and what a model's output says at each of them.

Notation: x_t = signal x_0 + noise eps are the latents that the model is given, x_0 the clean latents, eps the noise.
signal^2 + noise^2 = 1 for every scheduler of a noise schedule beta, however it stores its latents (those of Euler are
divided by sqrt(sigma^2 + 1) before the model is given them); signal + noise = 1 for flow matching.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.schedule_names import EPSILON, FLOW, VELOCITY, prediction_of
from fbmem_core.errors import InputError

MIN_SIGNAL = 0.01  # below it the latents are noise alone: alpha_bar < 1e-4


@dataclass(frozen=True)
class Step:
    """One step: what the model is told (`timestep`), and the shares of x_0 and eps in its latents.

    Numbers; tensors [n] and [n, 1, 1, 1] where each sample is at a step of its own.
    """

    timestep: float | Tensor
    signal: float | Tensor
    noise: float | Tensor


@dataclass(frozen=True)
class Schedule:
    """The steps of sampling, the noisiest first.

    Attributes:
        steps: Each once; second-order schedulers visit some twice.
        prediction: What the model's output is: one of PREDICTIONS.
        initial_scale: What unit noise is multiplied by to be the first latents.
        clip: x_0 is clipped to [-clip, clip] at each step; None: it is not.
    """

    steps: tuple[Step, ...]
    prediction: str
    initial_scale: float
    clip: float | None


def read_schedule(scheduler: Any, num_inference_steps: int, **settings: Any) -> Schedule:
    """The schedule of a diffusers scheduler, which is left as it is.

    Args:
        scheduler: One of SCHEDULERS, of a beta schedule or of flow matching.
        num_inference_steps: Of the whole sampling.
        settings: What the pipeline passes to `set_timesteps` besides: `sigmas`, `mu`.

    Raises:
        InputError: The scheduler gives no such number of steps.
    """
    scheduler, config = copy.deepcopy(scheduler), scheduler.config
    number = {} if "sigmas" in settings else {"num_inference_steps": num_inference_steps}
    try:
        scheduler.set_timesteps(**number, device="cpu", **settings)
    except ValueError as error:
        cure = "Change `sampling.steps`."
        raise InputError(f"{type(scheduler).__name__} to give {num_inference_steps} steps", error, cure=cure) from None
    timesteps = scheduler.timesteps.tolist()
    shares = _shares(scheduler, timesteps)
    steps = {timestep: Step(timestep, *share) for timestep, share in zip(timesteps, shares, strict=False)}
    ordered = tuple(sorted(steps.values(), key=lambda step: float(step.timestep), reverse=True))
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    return Schedule(
        steps=ordered,
        prediction=prediction_of(config, type(scheduler).__name__),
        initial_scale=1.0 if scale == 1.0 else scale * float(ordered[0].signal),
        clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None,
    )


def clean_from_output(
    output: Float[Tensor, "n c h w"], latents: Float[Tensor, "n c h w"], step: Step, prediction: str
) -> Float[Tensor, "n c h w"]:
    """x_0 from a model's output; gradients pass. `v = signal eps - noise x_0` and flow is `eps - x_0`."""
    if prediction == EPSILON:
        return (latents - step.noise * output) / step.signal
    if prediction == VELOCITY:
        return step.signal * latents - step.noise * output
    if prediction == FLOW:
        return latents - step.noise * output
    return output


def noise_from_output(
    output: Float[Tensor, "n c h w"], latents: Float[Tensor, "n c h w"], step: Step, prediction: str
) -> Float[Tensor, "n c h w"]:
    """eps from a model's output; gradients pass."""
    if prediction == EPSILON:
        return output
    if prediction == VELOCITY:
        return step.signal * output + step.noise * latents
    if prediction == FLOW:
        return latents + step.signal * output
    return (latents - step.signal * output) / step.noise


def _shares(scheduler: Any, timesteps: list[float]) -> list[tuple[float, float]]:
    """(signal, noise) at each timestep."""
    config, sigmas = scheduler.config, getattr(scheduler, "sigmas", None)
    if sigmas is None:
        alphas = scheduler.alphas_cumprod
        return [(float(alphas[int(t)]) ** 0.5, (1 - float(alphas[int(t)])) ** 0.5) for t in timesteps]
    is_flow = prediction_of(config, type(scheduler).__name__) == FLOW or config.get("use_flow_sigmas", False)
    if is_flow:
        return [(1 - sigma, sigma) for sigma in sigmas.tolist()]
    return [((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5) for sigma in sigmas.tolist()]


def output_from_both(
    clean: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], step: Step, prediction: str
) -> Float[Tensor, "n c h w"]:
    """The output that a perfect model would give for x_0 and eps: what training aims at."""
    if prediction == EPSILON:
        return noise
    if prediction == VELOCITY:
        return step.signal * noise - step.noise * clean
    if prediction == FLOW:
        return noise - clean
    return clean
