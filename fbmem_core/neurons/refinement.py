"""Refinement by group tests: half of a layer's neurons are dropped at once, and bisected where that is refused.

NeMo asks for each neuron whether it can be dropped. Where most can, one test of a group answers for all of it; where
none can, bisection costs at most twice as many tests. What remains keeps to the same allowed similarity, because every
step was tested as a whole; it need not be the set that the one-by-one sequence ends with, which depends on its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fbmem_core.neurons.layers import NeuronSet


class SimilarityTest(Protocol):
    """Answers whether noise differences without some neurons are still too similar to those with all of them."""

    def exceeds(self, neurons: NeuronSet, threshold: float, *, first_layer: str, common: NeuronSet) -> bool:
        """True if the highest similarity over the seeds, with `neurons` off, exceeds the threshold."""
        ...


def refine_in_groups(test: SimilarityTest, neurons: NeuronSet, layer: str, threshold: float) -> NeuronSet:
    """The neurons less those of one layer that can be dropped, the similarity staying at or below the threshold.

    Args:
        test: Of one prompt.
        neurons: What is switched off; all the layer's neurons together cannot be dropped.
        layer: That is refined.
        threshold: The allowed similarity.
    """

    def refined(kept: NeuronSet, group: Sequence[int]) -> NeuronSet:
        """Without what can be dropped of a group that cannot be dropped as a whole."""
        if len(group) <= 1:
            return kept
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        fewer = kept.replaced(layer, kept.at(layer) - {*first})
        if not test.exceeds(fewer, threshold, first_layer=layer, common=kept):
            return refined(fewer, second)  # with the first gone, the whole second is what was refused already
        kept = refined(kept, first)
        fewer = kept.replaced(layer, kept.at(layer) - {*second})
        return refined(kept, second) if test.exceeds(fewer, threshold, first_layer=layer, common=kept) else fewer

    return refined(neurons, sorted(neurons.at(layer)))
