"""FADE, foreground-aware deactivation, ours: neurons chosen by what they do to the memory that is seen in each region.

NeMo and NeMo-C choose neurons of outlier activation, and a copied foreground hardly has any. But the memory shows in
the denoiser's first step: the predicted clean latents x_0 of several seeds agree where the model remembers, inside the
foreground, outside of it, or both. The gradient of that agreement by the scale of each value neuron says which neurons
make it. Notation: A_r the agreement in region r, w_r its weights, s the scales of the neurons, 1 when all are on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts
from fbmem_core.mitigation.method import Evidence, NeuronMethod
from fbmem_core.neurons.hooks import frozen, scale_neurons
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet, layer_sizes, named_sets, union, value_layers
from fbmem_core.neurons.statistics import check_number

# the scales at which the gradient is taken: it is flat where all neurons are on, because they replace each other
_SCALES = (1.0, 0.5)
_TINY = 1e-9


class Fade(NeuronMethod):
    """For each prompt the few value neurons, of all blocks, without which its seeds agree no more than usual.

    1. A_r inside and outside the foregrounds of the prompt's own images (their mattes; no reference is needed): the
       cosine of each seed's x_0 with the nearest other one, on average. What is usual is A_r of unmemorized prompts, at
       the same seeds and in the same regions. A region counts as remembered beyond mean + `detection` deviations.
    2. Neurons are ranked by d(sum of A_r over remembered regions) / d s, taken at s = 1 and 1/2.
    3. The shortest head of that list is switched off with which every A_r is at most mean + `target` deviations.
    4. From its end up, each neuron is switched on again where that stays true.

    As in NeMo-C a prompt gets the neurons of all prompts of its cluster. A prompt of fewer than two seeds gets none.
    """

    name = "fade"
    defaults: ClassVar[Mapping[str, float]] = {
        "factor": 0.0,
        "detection": 3.0,
        "target": 1.0,
        "max_neurons": 256,
        "num_unmemorized": 24,
    }

    def __init__(self, evidence: Evidence, **options: float) -> None:
        super().__init__(evidence, **options)
        self._size: dict[str, Any] = {"height": evidence.height, "width": evidence.width}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The value layers of all blocks."""
        return value_layers(self.evidence.pipeline.unet, "all")

    def neurons(self, prompt_id: str) -> NeuronSet:
        """Those of its cluster; its own alone where it is in none."""
        clusters = self.evidence.clusters
        members = [p for p in self.evidence.prompts if clusters.get(p, p) == clusters.get(prompt_id, prompt_id)]
        return union(map(self.own_neurons, members))

    def own_neurons(self, prompt_id: str) -> NeuronSet:
        """Those that were found for this prompt alone."""
        found = self.evidence.found
        if prompt_id not in found:
            mattes = self.evidence.mattes.get(prompt_id, {})
            found[prompt_id] = self._search_of(prompt_id, mattes).neurons() if len(mattes) >= 2 else NO_NEURONS
        return found[prompt_id]

    def _search_of(self, prompt_id: str, mattes: Mapping[int, Tensor]) -> _Search:
        return _Search(self.evidence, self.layers, prompt_id, mattes, self._usual(tuple(mattes)), self.options)

    def _usual(self, seeds: tuple[int, ...]) -> list[Tensor]:
        """x_0 of unmemorized prompts at these seeds, [n, c, h, w] each."""
        if seeds not in self._usual_of:
            self._usual_of[seeds] = self._predict_usual(seeds)
        return self._usual_of[seeds]

    @cached_property
    def _usual_of(self) -> dict[tuple[int, ...], list[Tensor]]:
        return {}

    @torch.no_grad()
    def _predict_usual(self, seeds: tuple[int, ...]) -> list[Tensor]:
        some = list(self.evidence.unmemorized)[: int(self.options["num_unmemorized"])]
        check_number(len(some))
        step = FirstStep(self.evidence.pipeline, seeds, num_steps=self.evidence.num_steps, **self._size)
        conditions = encode_prompts(self.evidence.pipeline, some, **self._size)
        return [step.clean_latents(conditions.rows(row)) for row in range(len(some))]


class _Search:
    """The search for one prompt's neurons."""

    def __init__(
        self,
        evidence: Evidence,
        layers: Sequence[str],
        prompt_id: str,
        mattes: Mapping[int, Tensor],
        usual: Sequence[Tensor],
        options: Mapping[str, float],
    ) -> None:
        size: dict[str, Any] = {"height": evidence.height, "width": evidence.width}
        self.step = FirstStep(evidence.pipeline, list(mattes), num_steps=evidence.num_steps, **size)
        self.condition = encode_prompts(evidence.pipeline, [evidence.prompts[prompt_id]], **size)
        self.sizes = layer_sizes(self.step.unet, layers)
        self.names = [(layer, neuron) for layer, number in self.sizes.items() for neuron in range(number)]
        self.options = options
        latents = self.step.latents
        inside = F.adaptive_avg_pool2d(
            torch.stack(list(mattes.values())).float(), (latents.shape[-2], latents.shape[-1])
        ).to(latents.device)
        self.regions = (inside, 1 - inside)
        of_usual = [torch.stack([regional_agreement(z, region) for z in usual]).double() for region in self.regions]
        self.usual = [(values.mean().item(), values.std().item()) for values in of_usual]

    def neurons(self) -> NeuronSet:
        """Steps 1 to 4."""
        agreement = self.agreement(NO_NEURONS)
        remembered = [r for r, value in enumerate(agreement) if value > self.level(r, "detection")]
        if not remembered:
            return NO_NEURONS
        ranked = self._rank(remembered)[: int(self.options["max_neurons"])]
        chosen = ranked[: self._shortest(ranked)]
        if self._is_usual(chosen):
            for neuron in reversed(list(chosen)):
                without = [other for other in chosen if other != neuron]
                if self._is_usual(without):
                    chosen = without
        return self._set(chosen)

    def _rank(self, regions: Sequence[int]) -> list[int]:
        """Numbers of neurons, those first that agreement rests on most."""
        unet = self.step.unet
        total = torch.zeros(len(self.names))
        for scale in _SCALES:
            scales = {
                layer: torch.full((size,), scale, device=unet.device, dtype=unet.dtype, requires_grad=True)
                for layer, size in self.sizes.items()
            }
            with torch.enable_grad(), frozen(unet), scale_neurons(unet, scales):
                latents = self.step.clean_latents(self.condition)
                agreement = torch.stack([regional_agreement(latents, self.regions[r]) for r in regions]).sum()
                gradients = torch.autograd.grad(agreement, list(scales.values()))
            total += torch.cat([gradient.float().cpu() for gradient in gradients])
        return total.argsort(descending=True).tolist()

    def _shortest(self, ranked: Sequence[int]) -> int:
        """The length of the shortest head that is enough, by doubling and bisection; all where none is."""
        enough, short = 1, 0
        while not self._is_usual(ranked[:enough]):
            if enough >= len(ranked):
                return len(ranked)
            short, enough = enough, min(2 * enough, len(ranked))
        while enough - short > 1:
            middle = (short + enough) // 2
            short, enough = (short, middle) if self._is_usual(ranked[:middle]) else (middle, enough)
        return enough

    def _is_usual(self, chosen: Sequence[int]) -> bool:
        agreement = self.agreement(self._set(chosen))
        return all(value <= self.level(region, "target") for region, value in enumerate(agreement))

    @torch.no_grad()
    def agreement(self, neurons: NeuronSet) -> list[float]:
        """A_r of each region with these neurons off."""
        factors = {layer: torch.ones(self.sizes[layer]) for layer in neurons.indices}
        for layer, neuron in neurons:
            factors[layer][neuron] = 0
        placed = {layer: factor.to(self.step.latents) for layer, factor in factors.items()}
        with scale_neurons(self.step.unet, placed):
            latents = self.step.clean_latents(self.condition)
        return [regional_agreement(latents, region).item() for region in self.regions]

    def level(self, region: int, option: str) -> float:
        """What A_r is compared with: `detection` or `target`."""
        mean, stddev = self.usual[region]
        return mean + self.options[option] * stddev

    def _set(self, chosen: Sequence[int]) -> NeuronSet:
        found = named_sets(("", *self.names[number]) for number in sorted(chosen))
        return found.get("", NO_NEURONS)


def regional_agreement(latents: Float[Tensor, "n c h w"], weights: Float[Tensor, "n 1 h w"]) -> Float[Tensor, ""]:
    """How much n >= 2 seeds agree in a region, from -1 to 1: each one's cosine with the nearest other one, on average.

    A pair is weighted by the mean of both regions; where it has none its cosine is 0. Gradients pass.
    """
    num = len(latents)
    first, second = torch.triu_indices(num, num, 1, device=latents.device)
    x, y, weight = latents[first], latents[second], (weights[first] + weights[second]) / 2
    dot, xx, yy = ((product * weight).sum(dim=(1, 2, 3)) for product in (x * y, x * x, y * y))
    cosine = dot / (xx * yy).clamp_min(_TINY).sqrt()
    table = cosine.new_full((num, num), -1.0).index_put((first, second), cosine).index_put((second, first), cosine)
    return table.amax(dim=1).mean()
