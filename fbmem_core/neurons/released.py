"""NeMo as its authors' scripts run it, choice by choice, for neurons that can be compared with published ones.

Source: the scripts 2 and 3 of ml-research/localizing_memorization_in_diffusion_models (commit f952ede). Where they
differ from the paper (arXiv 2406.02366), `localize` follows the paper and this module the scripts:

1. All initial latents of a prompt come from one generator of seed 1; `localize` draws one generator a seed.
2. DDIM's second timestep, whatever the pipeline's scheduler, is evaluated on latents that no step has touched.
3. The outlier score is two-sided, |activation - mean| / stddev.
4. The search for the initial selection ends when its z-score threshold has become 1, so the last round that is
   evaluated takes neurons beyond 1.25 and the top 15 of each layer; the paper's last round takes 1.0 and 16.
5. The refinement removes a layer or a neuron if the similarity is below the allowed one, not at it, and tests the
   neurons of a layer in the order of their lists: outliers by index, then the top ones by activation.
6. A neuron that is on both lists stands twice in its layer. Its first test removes one of the two, which changes
   nothing: it passes only if an earlier removal has brought the similarity below the allowed one. Only then is the
   neuron itself ever tested; otherwise it stays.
7. MS-SSIM takes its data range from the data, at every scale anew and over all samples that are compared at once, as
   torchmetrics does by default: values are lower than with a fixed range, so thresholds of the two do not compare.
8. The pairwise similarities behind the threshold are taken with guidance 7 whose two parts are swapped; the detection
   of a prompt is taken without guidance. For Stable Diffusion v1.4 the scripts use the constant 0.428.

Departures: the dtype is the pipeline's (the scripts use float16 autocast), latents have the audit's size, and the
window of MS-SSIM shrinks where latents are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.noise_difference import (
    SCALE_WEIGHTS,
    FirstStep,
    gaussian_sigma,
    scaled,
    window_size,
)
from fbmem_core.diffusion.schedule import read_schedule
from fbmem_core.diffusion.schedule_names import FLOW
from fbmem_core.errors import InputError
from fbmem_core.neurons.blocked_similarity import BlockedSimilarity
from fbmem_core.neurons.layers import NeuronSet
from fbmem_core.neurons.localization import (
    BATCH_SIZE,
    MAX_Z_SCORE,
    Z_SCORE_STEP,
    Localization,
)
from fbmem_core.neurons.statistics import ActivationStatistics, SimilarityThreshold, activations, check_number

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SD14_THRESHOLD = 0.428
_SEED = 1
_NUM_ROUNDS = 16  # z-score thresholds 5.0, 4.75, ..., 1.25
_STATISTICS_GUIDANCE = 7.0


def released_step(pipeline: DiffusionPipeline, *, num_seeds: int, height: int, width: int, num_steps: int) -> FirstStep:
    """The step that the scripts evaluate: the second timestep, `num_seeds` latents of one generator.

    Args:
        pipeline: The audited model.
        num_seeds: Samples of a prompt, 10 in the scripts.
        height: Of the images in px.
        width: Of the images in px.
        num_steps: Of the DDIM schedule, 50 in the scripts.

    Raises:
        InputError: The model is one of flow matching, for which there is no DDIM schedule.
    """
    from diffusers import DDIMScheduler

    step = FirstStep(pipeline, range(num_seeds), height=height, width=width, num_steps=num_steps)
    if step.schedule.prediction == FLOW:
        cure = "Set `neurons.mode: paper`."
        raise InputError("a model of a noise schedule", "one of flow matching", where="mode `released`", cure=cure)
    step.schedule = read_schedule(DDIMScheduler.from_config(pipeline.scheduler.config), num_steps)
    step.step = step.schedule.steps[1]
    drawn = torch.randn(step.latents.shape, generator=torch.Generator("cpu").manual_seed(_SEED))
    step.latents = drawn.to(step.latents)
    return step


def calibrate_released_threshold(
    step: FirstStep, conditions: Iterable[Conditioning], empty: Conditioning
) -> SimilarityThreshold:
    """Mean + 1 standard deviation of the similarity of every two samples over non-memorized prompts.

    Args:
        step: See `released_step`.
        conditions: Of one prompt each.
        empty: Of the empty prompt.

    Raises:
        InputError: There are fewer than 20 prompts.
    """
    without = step.noise(empty)
    pairs = []
    for condition in conditions:
        prompt = step.noise(condition)
        guided = prompt + _STATISTICS_GUIDANCE * (without - prompt)  # the scripts swap the two
        differences = scaled((guided - step.latents).to(torch.promote_types(guided.dtype, torch.float32)))
        first, second = torch.triu_indices(len(differences), len(differences), 1)
        pairs.append(script_similarity(differences[first], differences[second]).cpu())
    check_number(len(pairs))
    all_pairs = torch.cat(pairs).double()
    mean, stddev = all_pairs.mean().item(), all_pairs.std().item()
    return SimilarityThreshold(mean + stddev, mean, stddev, mean + stddev, len(pairs))


def localize_released(
    step: FirstStep,
    condition: Conditioning,
    statistics: ActivationStatistics,
    *,
    threshold: float = SD14_THRESHOLD,
    batch_size: int = BATCH_SIZE,
) -> Localization:
    """The neurons that the scripts give for one prompt; arguments as of `localize`."""
    differences = step.noise_difference(condition)
    highest_by_seed = _highest_by_seed(differences)
    seeds = (highest_by_seed > threshold).nonzero()[:, 0]
    similarity = highest_by_seed.max().item()
    if not len(seeds):
        return Localization(similarity)
    test = _ScriptTest(step, condition, seeds, differences[seeds], statistics.layers, batch_size)
    selection = _Selection(step, condition, statistics)
    number, initial_similarity = _first_sufficient_round(test, selection, threshold)
    is_reached = initial_similarity <= threshold
    allowed = threshold if is_reached else initial_similarity
    refined = _Refinement(test, allowed).refined(selection, number)
    refined_similarity = test.highest_similarity(refined)
    return Localization(
        similarity, len(seeds), selection.neurons(number), refined, initial_similarity, refined_similarity,
        allowed, is_reached, MAX_Z_SCORE - number * Z_SCORE_STEP, number,
    )  # fmt: skip


def script_similarity(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair with the range of the data (choice 7): it depends on what else is in the batch."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    window = window_size(min(x.shape[-2:]))
    return multiscale_structural_similarity_index_measure(
        x, y, kernel_size=window, sigma=gaussian_sigma(window), betas=SCALE_WEIGHTS, reduction="none"
    )


def _highest_by_seed(differences: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """The similarity of each sample with the one that is most like it."""
    num = len(differences)
    first, second = torch.triu_indices(num, num, 1)
    table = torch.zeros(num, num, dtype=differences.dtype)
    table[first, second] = table[second, first] = script_similarity(differences[first], differences[second]).cpu()
    return table.amax(dim=1)


class _ScriptTest(BlockedSimilarity):
    """Compares all seeds at once, because the range of the data is theirs together."""

    def highest_similarity(
        self, neurons: NeuronSet, *, first_layer: str | None = None, common: NeuronSet | None = None
    ) -> float:
        """Similarity of noise differences with and without these neurons switched off, the highest over the seeds."""
        pairs = [(neurons, seed) for seed in range(len(self.seeds))]
        blocked = self.blocked_differences(pairs, first_layer=first_layer, common=common)
        return script_similarity(self.differences, blocked).max().item()


def _first_sufficient_round(test: _ScriptTest, selection: _Selection, threshold: float) -> tuple[int, float]:
    """The first round that gets to the threshold, or the last one, and its highest similarity."""
    for number in range(_NUM_ROUNDS):
        value = test.highest_similarity(selection.neurons(number))
        if value <= threshold:
            break
    return number, value


class _Selection:
    """The lists of neurons of each round: round n takes outliers beyond 5 - n / 4 and the top n of each layer."""

    def __init__(self, step: FirstStep, condition: Conditioning, statistics: ActivationStatistics) -> None:
        self.layers = statistics.layers
        values = activations(step.denoiser.pipeline, self.layers, condition)
        self._values = {layer: value[0] for layer, value in values.items()}
        self._scores = {layer: z[0].abs() for layer, z in statistics.z_scores(values).items()}

    def outliers(self, number: int, layer: str) -> list[int]:
        """Neurons by index."""
        beyond = MAX_Z_SCORE - number * Z_SCORE_STEP
        return (self._scores[layer] > beyond).nonzero()[:, 0].tolist()

    def top(self, number: int, layer: str) -> list[int]:
        """Neurons by activation, the highest first."""
        values = self._values[layer]
        return values.topk(min(number, len(values))).indices.tolist()

    def neurons(self, number: int) -> NeuronSet:
        """Both lists of all layers."""
        return NeuronSet.of({layer: self.outliers(number, layer) + self.top(number, layer) for layer in self.layers})


class _Refinement:
    """Removes what is not needed. `_is_below` tells whether any removal has brought the similarity below `allowed`."""

    def __init__(self, test: _ScriptTest, allowed: float) -> None:
        self._test, self._allowed = test, allowed
        self._is_below = False

    def refined(self, selection: _Selection, number: int) -> NeuronSet:
        """Whole layers, the deepest first, then neuron by neuron."""
        neurons = initial = selection.neurons(number)
        self._is_below = self._test.highest_similarity(initial) < self._allowed
        deepest_first = [layer for layer in reversed(self._test.layers) if initial.at(layer)]
        for layer in deepest_first:
            neurons = self._without(neurons, layer, initial.at(layer))
        for layer in deepest_first:
            if neurons.at(layer):
                neurons = self._refine_layer(
                    neurons, layer, selection.outliers(number, layer), selection.top(number, layer)
                )
        return neurons

    def _refine_layer(self, neurons: NeuronSet, layer: str, outliers: Sequence[int], top: Sequence[int]) -> NeuronSet:
        twice, never_tested = set(outliers) & set(top), set()
        for neuron in outliers:
            if neuron not in twice:
                neurons = self._without(neurons, layer, {neuron})
            elif not self._is_below:
                never_tested.add(neuron)
        for neuron in top:
            if neuron not in never_tested:
                neurons = self._without(neurons, layer, {neuron})
        return neurons

    def _without(self, neurons: NeuronSet, layer: str, removed: Iterable[int]) -> NeuronSet:
        """`neurons` without some of a layer, if the similarity stays below the allowed one; else as they are."""
        fewer = neurons.replaced(layer, neurons.at(layer) - frozenset(removed))
        if self._test.highest_similarity(fewer, first_layer=layer, common=neurons) >= self._allowed:
            return neurons
        self._is_below = True
        return fewer
