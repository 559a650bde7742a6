"""NeMo, arXiv 2406.02366: for each prompt its own neurons are switched off."""

from __future__ import annotations

from fbmem_core.mitigation.method import NeuronMethod
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet


class Nemo(NeuronMethod):
    """The refined neurons of the prompt."""

    name = "nemo"

    def neurons(self, prompt_id: str) -> NeuronSet:
        """Refined neurons of the prompt; none where it has none."""
        return self.evidence.neurons.get(prompt_id, NO_NEURONS)
