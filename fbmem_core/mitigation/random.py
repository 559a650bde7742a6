"""The control of any mitigation: a change of the same size and place, but anywhere within it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fbmem_core.diffusion.denoiser import denoiser_of
from fbmem_core.diffusion.noise_difference import encode_prompts
from fbmem_core.errors import InputError
from fbmem_core.mitigation import METHODS
from fbmem_core.mitigation.method import Intervention, Method
from fbmem_core.mitigation.options import Options

_NO_CONTROL = ("random", "clean_twin")


class RandomOptions(Options):
    """`like` is the title of another mitigation of the audit, or the name of a method; `seed` numbers the draw."""

    like: str = "nemo"
    seed: int = Field(0, ge=0)


class Random(Method):
    """Do what another mitigation does, with chance in the place of its choice.

    Neurons: as many of each layer, multiplied alike. Weights: as many of each row are zeroed. Embeddings and latents:
    moved as far, every token and every image for itself, in a random direction. The draw depends on the prompt's id
    and on `seed`; several draws tell how much chance varies.

    Raises:
        InputError: There is no such mitigation, or it has no control.
    """

    name = "random"
    options_type: ClassVar[type[Options]] = RandomOptions

    @cached_property
    def rival(self) -> Method:
        """The mitigation that it is the control of."""
        like = self.options.like
        if like in _NO_CONTROL:
            cure = "Name another mitigation in `like`."
            raise InputError("a mitigation that chooses something", f"`{like}`", where="`random`", cure=cure)
        if self.evidence.rival is not None:
            return self.evidence.rival(like)
        return METHODS[like](self.evidence)

    def intervention(self, prompt_id: str) -> Intervention:
        """Intervention as large as the other method's."""
        return self._drawn(self.rival.intervention(prompt_id), prompt_id)

    def everywhere(self, prompt_id: str) -> Intervention:
        """Intervention as large as the method's for all prompts; one draw of neurons and weights serves them."""
        return self._drawn(self.rival.everywhere(prompt_id), prompt_id, is_global=True)

    @property
    def num_neurons(self) -> int:
        """Number of neurons, the other method's."""
        return self.rival.num_neurons

    @property
    def share(self) -> float:
        """The same as the other one's."""
        return self.rival.share

    def _drawn(self, intervention: Intervention, prompt_id: str, *, is_global: bool = False) -> Intervention:
        of_all, of_prompt = (_generator(name, self.options.seed) for name in ("", prompt_id))
        shared = of_all if is_global else of_prompt
        network = self.evidence.network
        return replace(
            intervention,
            factors={layer: _permuted(factor, shared) for layer, factor in intervention.factors.items()},
            weights={
                name: _pruned_anywhere(network.get_parameter(name).detach(), weight, of_all)
                for name, weight in intervention.weights.items()
            },
            embeds=self._moved_embeds(intervention.embeds, prompt_id, of_prompt),
            latents=self._moved_latents(intervention, of_prompt),
        )

    def _moved_embeds(self, embeds: Tensor | None, prompt_id: str, generator: torch.Generator) -> Tensor | None:
        if embeds is None:
            return None
        evidence = self.evidence
        own = encode_prompts(
            evidence.pipeline, [evidence.prompts[prompt_id]], height=evidence.height, width=evidence.width
        ).embeds
        return _moved(own, embeds, generator)

    def _moved_latents(self, intervention: Intervention, generator: torch.Generator) -> dict[int, Tensor]:
        seeds = list(intervention.latents)
        if not seeds:
            return {}
        evidence = self.evidence
        own = denoiser_of(evidence.pipeline).initial_latents(seeds, height=evidence.height, width=evidence.width)
        pairs = zip(seeds, own, strict=True)
        return {
            seed: _moved(latents.flatten()[None], intervention.latents[seed].flatten()[None], generator).view_as(
                latents
            )
            for seed, latents in pairs
        }


def _generator(prompt_id: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{prompt_id}\0{seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))


def _permuted(factor: Tensor, generator: torch.Generator) -> Tensor:
    return factor[torch.randperm(len(factor), generator=generator).to(factor.device)]


def _pruned_anywhere(weight: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    """Zeroes as many weights of each row [out, in] as the other mitigation changed."""
    num_pruned = (changed.to(weight) != weight).sum(dim=1, keepdim=True).cpu()
    ranks = torch.rand(weight.shape, generator=generator).argsort(dim=1).argsort(dim=1)
    return weight.masked_fill((ranks < num_pruned).to(weight.device), 0)


def _moved(own: Tensor, moved: Tensor, generator: torch.Generator) -> Tensor:
    """Move every row (last dimension) of `own` as far as in `moved`, in a random direction."""
    distance = (moved.to(own) - own).float().norm(dim=-1, keepdim=True)
    direction = torch.randn(own.shape, generator=generator).to(own.device)
    step = direction / direction.norm(dim=-1, keepdim=True) * distance
    return (own.float() + step).to(moved.dtype)
