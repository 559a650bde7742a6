"""Weights that memorized prompts excite are pruned: Chavhan et al., arXiv 2406.18566, after Wanda, arXiv 2306.11695.

Notation: W [out, in] the weight of a layer, X its inputs, S = |W| ||X||_2 the score of each weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.guidance import NO_GUIDANCE
from fbmem_core.diffusion.noise_difference import FirstStep, encode_prompts, encode_unconditional
from fbmem_core.diffusion.seed_agreement import predict_clean_latents
from fbmem_core.errors import InputError
from fbmem_core.mitigation.method import NO_INTERVENTION, Intervention, Method
from fbmem_core.mitigation.options import Count, Options, PositiveShare

_LAYERS = re.compile(r"(?:.*\.)?transformer_blocks\.\d+\.ff\.net\.2")


class WandaOptions(Options):
    """Options, by default as in the authors' code.

    `sparsity` of each row may be pruned at a step. `early` is the share of the sampling steps that are looked at, over
    `num_seeds` images of a prompt. `unit_tokens` scales each token's inputs to length 1 first. `per_step` makes a mask
    for each step and takes their union; without it the inputs of all steps make one mask. `guided` samples with the
    audit's guidance, so that the empty half of the batch counts too.
    """

    sparsity: PositiveShare = 0.01
    early: PositiveShare = 1.0
    num_seeds: Count = 1
    unit_tokens: bool = True
    per_step: bool = True
    guided: bool = True


class Wanda(Method):
    """The second feed-forward layer of each transformer block loses weights, the same for all prompts.

    At each step, of each row those of the highest `sparsity` (1 %) by score over all memorized prompts, where that
    score exceeds the empty prompt's; over the steps, all that any step names.
    """

    name = "wanda"
    options_type: ClassVar[type[Options]] = WandaOptions
    strength = "sparsity"
    strengths = (0.0025, 0.005, 0.01, 0.02, 0.05)

    def intervention(self, prompt_id: str) -> Intervention:
        """The pruned weights, whichever the prompt is."""
        return self._pruned[0]

    def everywhere(self, prompt_id: str) -> Intervention:
        """The pruned weights."""
        return self._pruned[0]

    @property
    def num_neurons(self) -> int:
        """Weights that are pruned."""
        return self._pruned[1]

    @property
    def share(self) -> float:
        """Share of all weights of those layers."""
        total = sum(weight.numel() for weight in self._pruned[0].weights.values())
        return self.num_neurons / total if total else 0.0

    @cached_property
    def _pruned(self) -> tuple[Intervention, int]:
        if not self.evidence.memorized:
            return NO_INTERVENTION, 0
        network = self.evidence.network
        memorized, empty = self._input_norms([self.evidence.prompts[p] for p in sorted(self.evidence.memorized)])
        weights, num_pruned = {}, 0
        for layer, norms in memorized.items():
            weight = network.get_parameter(f"{layer}.weight").detach()
            mask = torch.zeros_like(weight, dtype=torch.bool)
            for of_memorized, of_empty in zip(norms, empty[layer], strict=True):
                mask |= pruned_mask(weight, of_memorized, of_empty, sparsity=self.options.sparsity)
            num_pruned += int(mask.sum())
            weights[f"{layer}.weight"] = weight.masked_fill(mask, 0)
        return Intervention(weights=weights), num_pruned

    def _input_norms(self, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """||X||_2 by layer [masks, in], over these prompts and over the empty one, both of as many tokens."""
        evidence = self.evidence
        size: dict[str, Any] = {"height": evidence.height, "width": evidence.width}
        seeds = list(evidence.seeds)[: self.options.num_seeds]
        latents = FirstStep(evidence.pipeline, seeds, num_steps=evidence.num_steps, **size).latents
        conditions = encode_prompts(evidence.pipeline, prompts, **size)
        empty = encode_unconditional(evidence.pipeline, evidence.guidance.negative_prompt, **size)
        num_steps = math.ceil(self.options.early * evidence.num_inference_steps)

        def run(condition: Conditioning) -> None:
            predict_clean_latents(
                evidence.pipeline,
                latents,
                (empty, condition),
                guidance=evidence.guidance if self.options.guided else NO_GUIDANCE,
                num_inference_steps=evidence.num_inference_steps,
                num_steps=num_steps,
            )

        network, unit_tokens = evidence.network, self.options.unit_tokens
        with _summed_squares(network, num_steps, unit_tokens=unit_tokens) as of_empty:
            run(empty)
        with _summed_squares(network, num_steps, unit_tokens=unit_tokens) as of_memorized:
            for row in range(len(conditions)):
                run(conditions.rows(row))
        return self._norms(of_memorized, len(prompts)), self._norms(of_empty, 1)

    def _norms(self, squares: dict[str, Tensor], num_prompts: int) -> dict[str, Tensor]:
        if not self.options.per_step:
            squares = {layer: value.sum(dim=0, keepdim=True) for layer, value in squares.items()}
        return {layer: (value / num_prompts).sqrt() for layer, value in squares.items()}


def pruned_mask(weight: Tensor, norms: Tensor, empty_norms: Tensor, *, sparsity: float) -> Tensor:
    """Mask [out, in] of pruned weights: of each row the highest scores, where they exceed the empty prompt's.

    Args:
        weight: [out, in].
        norms: [in] ||X||_2 over memorized prompts.
        empty_norms: [in] the same over the empty prompt, over as many tokens.
        sparsity: The share of a row that may be pruned, at least one weight.
    """
    scores = weight.float().abs() * norms
    num = max(1, int(sparsity * weight.shape[1]))
    mask = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, scores.topk(num, dim=1).indices, True)
    return mask & (scores > weight.float().abs() * empty_norms)


@contextmanager
def _summed_squares(network: nn.Module, num_steps: int, *, unit_tokens: bool) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, the squares of the layers' inputs are summed over samples and tokens: by layer [steps, in].

    Samplings of `num_steps` passes each are expected, one after the other.
    """
    layers = [name for name, _ in network.named_modules() if _LAYERS.fullmatch(name)]
    if not layers:
        expected = "a network with feed-forward layers beside its attention"
        raise InputError(expected, "none", where="its blocks", cure="Leave out `wanda`.")
    totals: dict[str, Tensor] = {}
    num_passes = dict.fromkeys(layers, 0)
    with ExitStack() as stack:
        for name in layers:

            def add(_module: nn.Module, inputs: Any, name: str = name) -> None:
                tokens = inputs[0].float().flatten(0, -2)
                if unit_tokens:
                    tokens = nn.functional.normalize(tokens, dim=1)
                if name not in totals:
                    totals[name] = tokens.new_zeros(num_steps, tokens.shape[1])
                totals[name][num_passes[name] % num_steps] += tokens.square().sum(dim=0)
                num_passes[name] += 1

            stack.callback(network.get_submodule(name).register_forward_pre_hook(add).remove)
        yield totals
