"""Weights that memorized prompts excite are pruned: Chavhan et al., arXiv 2406.18566, after Wanda, arXiv 2306.11695.

Notation: W [out, in] the weight of a layer, X its inputs, S = |W| ||X||_2 the score of each weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
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
from fbmem_core.mitigation.method import NO_INTERVENTION, Evidence, Intervention, Method

_LAYERS = re.compile(r"(?:.*\.)?transformer_blocks\.\d+\.ff\.net\.2")


class Wanda(Method):
    """The second feed-forward layer of each transformer block loses weights, the same for all prompts.

    Of each row those of the highest `sparsity` (1 %) by score over all memorized prompts, where that score exceeds the
    empty prompt's. X is gathered over the first `early` fifth of the sampling steps, without guidance, at the seeds of
    the evidence, all tokens, steps and prompts alike; the paper prunes for each step and takes the union.
    """

    name = "wanda"
    defaults: ClassVar[Mapping[str, float]] = {"sparsity": 0.01, "early": 0.2}

    def __init__(self, evidence: Evidence, **options: float) -> None:
        super().__init__(evidence, **options)
        for name, value in self.options.items():
            if not 0 < value <= 1:
                raise InputError(f"`{name}` above 0, at most 1", value, where="the options of `wanda`", cure="Mend it.")

    def intervention(self, prompt_id: str) -> Intervention:
        """The pruned weights, whichever the prompt is."""
        return self._pruned[0]

    def everywhere(self, prompt_id: str) -> Intervention:
        """The same."""
        return self._pruned[0]

    @property
    def num_neurons(self) -> int:
        """Weights that are pruned."""
        return self._pruned[1]

    @property
    def share(self) -> float:
        """Of all weights of those layers."""
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
            weight = network.get_submodule(layer).weight.detach()
            mask = pruned_mask(weight, norms, empty[layer], sparsity=self.options["sparsity"])
            num_pruned += int(mask.sum())
            weights[f"{layer}.weight"] = weight.masked_fill(mask, 0)
        return Intervention(weights=weights), num_pruned

    def _input_norms(self, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """||X||_2 of each input feature, by layer [in], over these prompts and over the empty one."""
        known = self.evidence
        size: dict[str, Any] = {"height": known.height, "width": known.width}
        latents = FirstStep(known.pipeline, known.seeds, num_steps=known.num_steps, **size).latents
        conditions = encode_prompts(known.pipeline, prompts, **size)
        num_steps = math.ceil(self.options["early"] * known.num_inference_steps)

        def run(condition: Conditioning) -> None:
            predict_clean_latents(
                known.pipeline,
                latents,
                (condition, condition),
                guidance=NO_GUIDANCE,
                num_inference_steps=known.num_inference_steps,
                num_steps=num_steps,
            )

        with _summed_squares(known.network) as of_empty:
            run(encode_unconditional(known.pipeline, **size))
        with _summed_squares(known.network) as of_memorized:
            for row in range(len(conditions)):
                run(conditions.rows(row))
        return (
            {layer: (squares / len(prompts)).sqrt() for layer, squares in of_memorized.items()},
            {layer: squares.sqrt() for layer, squares in of_empty.items()},
        )


def pruned_mask(weight: Tensor, norms: Tensor, empty_norms: Tensor, *, sparsity: float) -> Tensor:
    """Which weights [out, in] are pruned: of each row the highest scores, where they exceed the empty prompt's.

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
def _summed_squares(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, the squares of the layers' inputs are summed over samples and tokens: by layer [in]."""
    layers = [name for name, _ in network.named_modules() if _LAYERS.fullmatch(name)]
    if not layers:
        raise InputError(
            "a network with feed-forward layers beside its attention",
            "none",
            where="its blocks",
            cure="Leave out `wanda`.",
        )
    total: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in layers:

            def add(_module: nn.Module, inputs: Any, name: str = name) -> None:
                squares = inputs[0].float().square().flatten(0, -2).sum(dim=0)
                total[name] = total[name] + squares if name in total else squares

            stack.callback(network.get_submodule(name).register_forward_pre_hook(add).remove)
        yield total
