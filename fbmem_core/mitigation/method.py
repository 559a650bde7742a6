"""Interface of mitigations: from what an audit knows, a change to the model or the prompt while images are sampled."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.guidance import Guidance
from fbmem_core.errors import InputError
from fbmem_core.mitigation.options import FactorOptions, Options
from fbmem_core.mitigation.searches import MemorySearches, Searches
from fbmem_core.neurons.hooks import deactivation_factors, scale_neurons
from fbmem_core.neurons.layers import NeuronSet, layer_sizes, union

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


@dataclass(frozen=True, eq=False)
class Intervention:
    """Changes to the model while the images of one prompt are sampled. None at all: `NO_INTERVENTION`.

    Attributes:
        factors: By layer of the network [features]: what its outputs are multiplied by, see `scale_neurons`.
        weights: By parameter of the network: what it is replaced by.
        embeds: [1, tokens, d] in the place of the prompt's own embedding; None leaves that.
        latents: By seed [c, h, w]: initial latents, of unit variance, in the place of the seed's own.
    """

    factors: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    embeds: Tensor | None = None
    latents: Mapping[int, Tensor] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """16 hex digits by content, "" for none: interventions of equal keys do the same."""
        parts = [("factors", name, value) for name, value in self.factors.items()]
        parts += [("weights", name, value) for name, value in self.weights.items()]
        parts += [("latents", str(seed), value) for seed, value in self.latents.items()]
        if self.embeds is not None:
            parts.append(("embeds", "", self.embeds))
        if not parts:
            return ""
        total = hashlib.sha256()
        for kind, name, value in sorted(parts, key=lambda part: part[:2]):
            total.update(f"{kind}\0{name}\0{tuple(value.shape)}\0{value.dtype}\n".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Factors and weights hold inside the `with`; embeddings and latents are for `sample_mitigated`.

        Raises:
            InputError: The network lacks a layer or a parameter, or it has another size.
        """
        with ExitStack() as stack:
            stack.enter_context(scale_neurons(denoiser_of(pipeline).network, self.factors))
            stack.enter_context(_replaced(denoiser_of(pipeline).network, self.weights))
            yield


NO_INTERVENTION = Intervention()


@dataclass(frozen=True)
class Evidence:
    """Knowledge of an audit when it mitigates.

    Attributes:
        pipeline: The audited model.
        prompts: By prompt_id, its text: all prompts of the audit.
        memorized: Ids of the prompts that bring forth a copy.
        neurons: By prompt_id, the refined neurons of the prompts that have any.
        clusters: By prompt_id, its cluster.
        layers: That were searched for neurons.
        non_memorized: Texts of prompts that are not memorized, over which is measured what is usual.
        height: Of the images in px.
        width: Of the images in px.
        seeds: Of the initial latents, for methods that run the network on seeds of their own.
        num_steps: Of the DDIM sampling of whose timesteps such a method takes the first.
        mattes: By prompt_id and seed [1, s, s]: foregrounds of its own images, in [0, 1], where they are decided.
        guidance: As the images are sampled.
        num_inference_steps: Of the sampling of the images.
        image_seeds: By prompt_id, the seeds of the images that will be sampled; `seeds` where a prompt has none.
        searches: Results of long searches by a name of the method's choice; may be on disk.
        twin: Directory of the same model trained without what may be memorized, if there is one.
        rival: Gives another mitigation of the audit by its title; None: that method with its defaults.
    """

    pipeline: DiffusionPipeline
    prompts: Mapping[str, str]
    memorized: frozenset[str]
    neurons: Mapping[str, NeuronSet]
    clusters: Mapping[str, int]
    layers: tuple[str, ...]
    non_memorized: Sequence[str]
    height: int
    width: int
    seeds: Sequence[int]
    num_steps: int
    mattes: Mapping[str, Mapping[int, Tensor]]
    guidance: Guidance
    num_inference_steps: int
    image_seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    searches: Searches = field(default_factory=MemorySearches)
    twin: Path | None = None
    rival: Callable[[str], Method] | None = None

    def seeds_of(self, prompt_id: str) -> tuple[int, ...]:
        """Seeds of the images that will be sampled for a prompt."""
        return tuple(self.image_seeds.get(prompt_id, self.seeds))

    @property
    def network(self) -> nn.Module:
        """The network of the audited model."""
        return denoiser_of(self.pipeline).network


class Method(ABC):
    """One mitigation.

    A subclass names itself and the model of its options; its `strength` is the option by which it is made
    weaker or stronger, over `strengths` where an audit asks for a curve, the weakest first.

    Args:
        evidence: What it may use.
        options: Fields of `options_type`.

    Raises:
        InputError: It has no such option, or the option's value is impossible.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    strength: ClassVar[str | None] = None
    strengths: ClassVar[tuple[float, ...]] = ()
    version: ClassVar[int] = 3  # raised when the same options begin to give another mitigation

    def __init__(self, evidence: Evidence, **options: Any) -> None:
        self.evidence = evidence
        self.options: Any = self.options_type.parse(options, method=self.name)

    @classmethod  # noqa: B027
    def check(cls, pipeline: DiffusionPipeline) -> None:
        """Raise InputError if the method cannot be used on a model of this kind; called before any work is done."""

    @abstractmethod
    def intervention(self, prompt_id: str) -> Intervention:
        """Intervention for one prompt of the audit."""

    @abstractmethod
    def everywhere(self, prompt_id: str) -> Intervention:
        """Intervention on this prompt when the mitigation is enabled for all prompts; measures side effects."""

    @property
    @abstractmethod
    def num_neurons(self) -> int:
        """Units that are changed while one prompt is sampled, on average over the prompts that any are changed for."""

    @property
    @abstractmethod
    def share(self) -> float:
        """The same as a share of all units that were searched, from 0 to 1."""


class NeuronMethod(Method):
    """A mitigation that multiplies value neurons: `factor` 0 switches them off, more only dampens them.

    Guidance or not: they are off for the prompt and for the empty prompt alike, as in NeMo's code.
    """

    options_type: ClassVar[type[Options]] = FactorOptions
    strength = "factor"
    strengths = (0.8, 0.6, 0.4, 0.2, 0.0)

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers whose neurons it chooses from."""
        return self.evidence.layers

    @abstractmethod
    def neurons(self, prompt_id: str) -> NeuronSet:
        """Neurons that are switched off for a prompt."""

    def intervention(self, prompt_id: str) -> Intervention:
        """The neurons of the prompt."""
        return self._switch_off(self.neurons(prompt_id))

    def everywhere(self, prompt_id: str) -> Intervention:
        """The neurons of all prompts at once."""
        return self._everywhere

    @property
    def num_neurons(self) -> int:
        """Neurons that are off for a prompt, on average over the prompts that have any."""
        return round(self._mean_size)

    @property
    def share(self) -> float:
        """The same as a share of all neurons of the layers that were searched."""
        return self._mean_size / sum(layer_sizes(self.evidence.network, self.layers).values())

    @cached_property
    def _everywhere(self) -> Intervention:
        return self._switch_off(union(map(self.neurons, self.evidence.prompts)))

    @cached_property
    def _mean_size(self) -> float:
        sizes = [len(neurons) for neurons in map(self.neurons, self.evidence.prompts) if len(neurons)]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def _switch_off(self, neurons: NeuronSet) -> Intervention:
        factors = deactivation_factors(self.evidence.network, neurons, factor=self.options.factor)
        return Intervention(factors)


class ImageMethod(Method):
    """A mitigation that looks at each prompt by itself, at the latents of its own images, and changes no neurons."""

    num_neurons = 0
    share = 0.0

    def __init__(self, evidence: Evidence, **options: Any) -> None:
        super().__init__(evidence, **options)
        self._interventions: dict[str, Intervention] = {}

    @abstractmethod
    def compute(self, prompt_id: str) -> Intervention:
        """The intervention on a prompt, which is asked for once."""

    def intervention(self, prompt_id: str) -> Intervention:
        """Computed at the first call and kept."""
        if prompt_id not in self._interventions:
            self._interventions[prompt_id] = self.compute(prompt_id)
        return self._interventions[prompt_id]

    def everywhere(self, prompt_id: str) -> Intervention:
        """The same: the rule asks nothing of other prompts."""
        return self.intervention(prompt_id)


@contextmanager
def _replaced(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    parameters = dict(network.named_parameters()) if weights else {}
    for name, value in weights.items():
        shape = tuple(parameters[name].shape) if name in parameters else "none"
        if shape != tuple(value.shape):
            cure = "Use weights of this checkpoint."
            raise InputError(f"a parameter of shape {tuple(value.shape)}", shape, where=name, cure=cure)
    kept = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(parameters[name])
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value
