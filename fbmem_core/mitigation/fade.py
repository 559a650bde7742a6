"""FADE, foreground-aware deactivation, ours: neurons chosen by what they do to the memory that is seen in each region.

NeMo and NeMo-C choose neurons of outlier activation, and a copied foreground hardly has any. But the memory shows
early in sampling: the predicted clean latents x_0 of several seeds agree where the model remembers, inside the
foreground, outside of it, or both. The gradient of their likeness to that memory by the scale of each value neuron
says which neurons make it. Notation: r a region, s the scales of the neurons, 1 when all are on; cos_r(x, y) the
cosine of two latents over a region; i, j seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.gradients import gradients_of
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts, encode_unconditional
from fbmem_core.diffusion.seed_agreement import predict_clean_latents
from fbmem_core.mitigation.method import Evidence, NeuronMethod
from fbmem_core.mitigation.options import Count, FactorOptions, Options, PositiveShare
from fbmem_core.neurons.hooks import frozen, scale_neurons
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet, layer_sizes, named_sets, union, value_layers
from fbmem_core.neurons.statistics import check_number

# the scales at which the gradient is taken
_SCALES = (1.0, 0.5)
_GROWTH = 0.5  # of what is off so much more goes off before neurons are ranked again
_FIRST = 2  # neurons that go off at first
_TINY = 1e-9


class FadeOptions(FactorOptions):
    """Defaults were chosen on development prompts of the canary; `docs/mitigations.md` says on which.

    `layers`: `all` value layers, or the `searched` ones, from which NeMo and its control choose.
    """

    detection: float = 3.0
    target: PositiveShare = 0.85
    max_neurons: Count = 256
    num_non_memorized: Annotated[int, Field(ge=20)] = 24
    num_steps: Count = 7
    layers: Literal["all", "searched"] = "all"


class Fade(NeuronMethod):
    """Switch off the few value neurons of each prompt without which no seed reaches the memorized image.

    x_0 is what is predicted after `num_steps` steps of guided sampling, if not said otherwise; regions are inside and
    outside the foregrounds of the prompt's own images (their mattes; no reference is needed).

    1. A_ir, the agreement of a seed: cos_r with the nearest other seed. What is usual is its mean over the seeds of
       non-memorized prompts, in the same regions. Seed i remembers region r where mean_i A_ir and A_ir are beyond the
       mean + `detection` deviations of what is usual.
    2. L_ir, the likeness of a seed: cos_r of its x_0 under s with the nearest x_0 of any seed with all neurons on.
       Neurons are ranked by d(mean of the first step's L_ir over seeds and regions that still remember) / d s, at
       s = 1 and 1/2. At s = 1 the nearest of the other seeds counts: a latent is as like itself as can be, so the
       gradient of that is 0.
    3. The head of that list is switched off and the others are ranked again, because they may take over, until every
       L_ir is below u_r + `target` (1 - u_r), u_r the mean likeness of what non-memorized prompts give to the memory.
       Of the last head, as little as is enough.

    As in NeMo-C a prompt gets the neurons of all prompts of its cluster. A prompt of fewer than two seeds gets none.
    """

    name = "fade"
    version = 4
    options_type: ClassVar[type[Options]] = FadeOptions

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The value layers of all blocks, or those that its rivals choose from."""
        if self.options.layers == "searched":
            return self.evidence.layers
        return value_layers(self.evidence.pipeline, "all")

    def neurons(self, prompt_id: str) -> NeuronSet:
        """Neurons of its cluster; its own alone where it is in none."""
        clusters = self.evidence.clusters
        members = [p for p in self.evidence.prompts if clusters.get(p, p) == clusters.get(prompt_id, prompt_id)]
        return union(map(self.own_neurons, members))

    def own_neurons(self, prompt_id: str) -> NeuronSet:
        """Neurons that its own search gave."""
        neurons = self.evidence.searches.get(prompt_id)
        if neurons is None:
            mattes = self.evidence.mattes.get(prompt_id, {})
            neurons = self._search_of(prompt_id, mattes).neurons() if len(mattes) >= 2 else NO_NEURONS
            self.evidence.searches.put(prompt_id, neurons)
        return neurons

    def _search_of(self, prompt_id: str, mattes: Mapping[int, Tensor]) -> _Search:
        condition = self._model.encode(self.evidence.prompts[prompt_id])
        return _Search(self._model, condition, mattes, self._usual, self.options)

    @cached_property
    def _model(self) -> _Model:
        seeds = sorted({seed for mattes in self.evidence.mattes.values() for seed in mattes})
        return _Model(self.evidence, self.layers, seeds, self.options.num_steps)

    @cached_property
    def _usual(self) -> list[Tensor]:
        """x_0 of non-memorized prompts, [seeds, c, h, w] each."""
        texts = list(self.evidence.non_memorized)[: self.options.num_non_memorized]
        check_number(len(texts))
        model = self._model
        return [model.clean_latents(model.encode(text), torch.arange(len(model.seeds))) for text in texts]


class _Model:
    """A pipeline at the first steps of some seeds. Neurons have numbers, through all layers; rows are of `seeds`."""

    def __init__(self, evidence: Evidence, layers: Sequence[str], seeds: Sequence[int], num_steps: int) -> None:
        self._evidence, self.seeds = evidence, list(seeds)
        self._size: dict[str, Any] = {"height": evidence.height, "width": evidence.width}
        self.first = FirstStep(evidence.pipeline, seeds, num_steps=evidence.num_steps, **self._size)
        self.network = self.first.network
        self.sizes = layer_sizes(self.network, layers)
        self._names = [(layer, neuron) for layer, number in self.sizes.items() for neuron in range(number)]
        self._empty = encode_unconditional(evidence.pipeline, evidence.guidance.negative_prompt, **self._size)
        self._num_steps = min(num_steps, evidence.num_inference_steps)

    def encode(self, prompt: str) -> Conditioning:
        """Text condition of the prompt, alone."""
        return encode_prompts(self._evidence.pipeline, [prompt], **self._size)

    def clean_latents(
        self, condition: Conditioning, rows: Int64[Tensor, " n"], off: Iterable[int] = ()
    ) -> Float[Tensor, "n c h w"]:
        """x_0 after some steps of guided sampling, with these neurons off."""
        with scale_neurons(self.network, self.scales(off)):
            return predict_clean_latents(
                self._evidence.pipeline,
                self.first.latents[rows],
                (self._empty, condition),
                guidance=self._evidence.guidance,
                num_inference_steps=self._evidence.num_inference_steps,
                num_steps=self._num_steps,
            )[-1]

    def scales(self, off: Iterable[int], on: float = 1.0) -> dict[str, Tensor]:
        """Scales by layer: 0 for these neurons and `on` for the others."""
        scales = {layer: torch.full((size,), on) for layer, size in self.sizes.items()}
        for layer, neuron in map(self._names.__getitem__, off):
            scales[layer][neuron] = 0
        return {layer: scale.to(self.first.latents) for layer, scale in scales.items()}

    def named(self, neurons: Iterable[int]) -> NeuronSet:
        """The neurons of these numbers."""
        return named_sets(("", *self._names[number]) for number in sorted(neurons)).get("", NO_NEURONS)


class _Search:
    """The search for one prompt's neurons, over the n seeds that have mattes."""

    def __init__(
        self,
        model: _Model,
        condition: Conditioning,
        mattes: Mapping[int, Tensor],
        usual: Sequence[Tensor],
        options: FadeOptions,
    ) -> None:
        self.model, self.condition, self.options = model, condition, options
        latents = model.first.latents
        self._rows = torch.tensor([model.seeds.index(seed) for seed in mattes], device=latents.device)
        inside = F.adaptive_avg_pool2d(
            torch.stack(list(mattes.values())).float(), (latents.shape[-2], latents.shape[-1])
        ).to(latents.device)
        self.regions = (inside, 1 - inside)
        self.memory = model.clean_latents(condition, self._rows)
        with torch.no_grad():
            self._first_memory = model.first.clean_latents(condition, self._rows)
        usual = [latents[self._rows] for latents in usual]
        of_usual = torch.stack([self.agreement(latents).mean(dim=0) for latents in usual]).double()
        level = of_usual.mean(dim=0) + options.detection * of_usual.std(dim=0)
        likeness = torch.stack([self.likeness(latents, self.memory) for latents in usual]).mean(dim=(0, 1))
        self.target = likeness + options.target * (1 - likeness)
        agreement = self.agreement(self.memory)
        self.memorized = (agreement > level) & (agreement.mean(dim=0) > level)

    def neurons(self) -> NeuronSet:
        """Steps 2 and 3."""
        left = self.memorized
        chosen: list[int] = []
        most = self.options.max_neurons
        while left.any() and len(chosen) < most:
            size = min(max(_FIRST, int(_GROWTH * len(chosen))), most - len(chosen))
            head = self._rank(left, chosen)[:size]
            left = self.left_without(chosen + head)
            chosen += head if left.any() else head[: self._shortest(chosen, head)]
        return self.model.named(chosen)

    def _rank(self, left: Bool[Tensor, "n regions"], off: Sequence[int]) -> list[int]:
        """The neurons that are on, those first that the likeness rests on most."""
        seeds = left.any(dim=1)
        total = torch.zeros(sum(self.model.sizes.values()))
        for on in _SCALES:
            scales = {layer: scale.requires_grad_() for layer, scale in self.model.scales(off, on).items()}
            with torch.enable_grad(), frozen(self.model.network), scale_neurons(self.model.network, scales):
                latents = self.model.first.clean_latents(self.condition, self._rows[seeds])
                likeness = self.likeness(latents, self._first_memory, seeds, others_only=on == 1)[left[seeds]].mean()
                gradients = gradients_of(likeness, list(scales.values()), self.model.first.denoiser.dtype)
            total += torch.cat([gradient.cpu() for gradient in gradients])
        total[list(off)] = -torch.inf
        return total.argsort(descending=True).tolist()[: len(total) - len(off)]

    def _shortest(self, chosen: Sequence[int], head: Sequence[int]) -> int:
        """Length of the shortest sufficient head, by bisection."""
        short, enough = 0, len(head)
        while enough - short > 1:
            middle = (short + enough) // 2
            is_short = self.left_without([*chosen, *head[:middle]]).any()
            short, enough = (middle, enough) if is_short else (short, middle)
        return enough

    def left_without(self, off: Sequence[int]) -> Bool[Tensor, "n regions"]:
        """Memorized seeds and regions that are left with these neurons off."""
        latents = self.model.clean_latents(self.condition, self._rows, off)
        return self.memorized & (self.likeness(latents, self.memory) >= self.target)

    def agreement(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n regions"]:
        """A_ir."""
        itself = torch.eye(len(latents), dtype=torch.bool, device=latents.device)
        each = [regional_cosine(latents, latents, region, region).masked_fill(itself, -1.0) for region in self.regions]
        return torch.stack([cosines.amax(dim=1) for cosines in each], dim=1)

    def likeness(
        self,
        latents: Float[Tensor, "m c h w"],
        memory: Float[Tensor, "n c h w"],
        seeds: Bool[Tensor, " n"] | slice = slice(None),
        *,
        others_only: bool = False,
    ) -> Float[Tensor, "m regions"]:
        """L_ir of the latents of some seeds, all by default; `others_only` leaves out a seed's own memory."""
        own = torch.eye(len(memory), dtype=torch.bool, device=memory.device)[seeds] & others_only
        each = [regional_cosine(latents, memory, region[seeds], region) for region in self.regions]
        return torch.stack([cosines.masked_fill(own, -1.0).amax(dim=1) for cosines in each], dim=1)


def regional_cosine(
    x: Float[Tensor, "m c h w"],
    y: Float[Tensor, "n c h w"],
    of_x: Float[Tensor, "m 1 h w"],
    of_y: Float[Tensor, "n 1 h w"],
) -> Float[Tensor, "m n"]:
    """The cosine of each x with each y over a region, from -1 to 1; 0 where there is none. Gradients pass.

    A pair is weighted by the mean of its two regions: w = (w_i + w_j) / 2.
    """
    weight = (of_x[:, None] + of_y[None]) / 2
    dot, xx, yy = (
        (product * weight).sum(dim=(2, 3, 4)) for product in (x[:, None] * y[None], (x * x)[:, None], (y * y)[None])
    )
    return dot / (xx * yy).clamp_min(_TINY).sqrt()
