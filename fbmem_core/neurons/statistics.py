"""Statistics over non-memorized prompts: activations of value neurons and similarities of noise differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.conditioning import MASK, Conditioning
from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.noise_difference import FirstStep, pairwise_similarity
from fbmem_core.errors import InputError
from fbmem_core.neurons.layers import layer_sizes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MIN_PROMPTS = 20  # below, mean and deviation say little
NUM_STDDEVS = 3.0


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean and standard deviation of each neuron's activation, by layer [features], over `num_prompts` prompts."""

    mean: Mapping[str, Tensor]
    stddev: Mapping[str, Tensor]
    num_prompts: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in the order of the network."""
        return tuple(self.mean)

    def z_scores(self, activations: Mapping[str, Float[Tensor, "n features"]]) -> dict[str, Tensor]:
        """Standard deviations by which activations exceed the mean; 0 for a neuron that never varies."""
        scores = {}
        for layer, values in activations.items():
            mean, stddev = self.mean[layer].to(values.device), self.stddev[layer].to(values.device)
            scores[layer] = ((values - mean) / stddev).nan_to_num(0.0, 0.0, 0.0)
        return scores


def activations(
    pipeline: DiffusionPipeline, layers: Sequence[str], condition: Conditioning
) -> dict[str, Float[Tensor, "n features"]]:
    """The activation of each value neuron: mean over the tokens, padding left out, of its absolute value.

    A U-Net needs no pass for it, a transformer one; see `Denoiser.value_outputs`.

    Returns:
        By layer [n, features], float32.
    """
    outputs = denoiser_of(pipeline).value_outputs(layers, condition)
    mask = condition.added.get(MASK)
    if mask is None:
        return {layer: values.float().abs().mean(dim=1) for layer, values in outputs.items()}
    weights = (mask / mask.sum(dim=1, keepdim=True)).float()[:, :, None]
    return {layer: (values.float().abs() * weights).sum(dim=1) for layer, values in outputs.items()}


def activation_statistics(
    pipeline: DiffusionPipeline, layers: Sequence[str], conditions: Iterable[Conditioning]
) -> ActivationStatistics:
    """Mean and (sample) standard deviation over the prompts of all batches.

    Raises:
        InputError: There are fewer than 20 prompts.
    """
    num, denoiser = 0, denoiser_of(pipeline)
    total, squares = (
        {layer: torch.zeros(size, dtype=torch.float64) for layer, size in layer_sizes(denoiser.network, layers).items()}
        for _ in range(2)
    )
    for condition in conditions:
        num += len(condition)
        for layer, values in activations(pipeline, layers, condition).items():
            total[layer] += values.double().sum(dim=0).cpu()
            squares[layer] += values.double().square().sum(dim=0).cpu()
    check_number(num)
    mean = {layer: value / num for layer, value in total.items()}
    variance = {layer: (squares[layer] - num * mean[layer] ** 2).clamp_min(0) / (num - 1) for layer in layers}
    return ActivationStatistics(
        {layer: value.float().to(denoiser.device) for layer, value in mean.items()},
        {layer: value.sqrt().float().to(denoiser.device) for layer, value in variance.items()},
        num,
    )


@dataclass(frozen=True)
class SimilarityThreshold:
    """Threshold of the similarity of noise differences, from which on a prompt counts as memorized.

    `value` is `mean` + `num_stddevs` * `stddev` of each prompt's highest pairwise similarity; `pairs_value` is NeMo's,
    mean + 1 standard deviation over all pairs.
    """

    value: float
    mean: float
    stddev: float
    pairs_value: float
    num_prompts: int


def calibrate_threshold(
    step: FirstStep, conditions: Iterable[Conditioning], *, num_stddevs: float = NUM_STDDEVS
) -> SimilarityThreshold:
    """Calibrate on non-memorized prompts, one condition each.

    NeMo takes mean + 1 standard deviation over all pairs, but decides by a prompt's highest pair: of 45 pairs one in
    six lies above, so that nearly every prompt would count as memorized. Here it is calibrated on what is decided by.

    Raises:
        InputError: There are fewer than 20 prompts.
    """
    highest, pairs = [], []
    for condition in conditions:
        table = pairwise_similarity(_noise_differences(step, condition))
        of_prompt = table[tuple(torch.triu_indices(len(table), len(table), 1))]
        highest.append(of_prompt.max())
        pairs.append(of_prompt)
    check_number(len(highest))
    highest_values, pair_values = torch.stack(highest).double(), torch.cat(pairs).double()
    mean, stddev = highest_values.mean().item(), highest_values.std().item()
    pairs_value = (pair_values.mean() + pair_values.std()).item()
    return SimilarityThreshold(mean + num_stddevs * stddev, mean, stddev, pairs_value, len(highest))


def _noise_differences(step: FirstStep, condition: Conditioning) -> Tensor:
    """Noise differences of every seed, in as many passes as the device's memory asks for."""
    device = step.latents.device
    batches = step.denoiser.batches("noise differences", len(step.latents))
    parts = batches.run(
        lambda rows: step.noise_difference(condition, torch.tensor(rows, device=device)), range(len(step.latents))
    )
    return torch.cat(list(parts))


def check_number(num: int) -> None:
    """Raise InputError unless there are enough non-memorized prompts."""
    if num < MIN_PROMPTS:
        cure = "Name a file of more in `neurons.non_memorized_prompts`."
        raise InputError(f"at least {MIN_PROMPTS} non-memorized prompts", num, cure=cure)
