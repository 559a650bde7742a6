"""The control: as many neurons as NeMo switches off, but any."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fbmem_core.mitigation.method import NeuronMethod
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet, layer_sizes, named_sets


class Random(NeuronMethod):
    """For each prompt as many random neurons of the searched layers as it has refined ones.

    They depend on the prompt's id and on `seed`, not on the other prompts.
    """

    name = "random"
    defaults: ClassVar[Mapping[str, float]] = {"factor": 0.0, "seed": 0}

    def neurons(self, prompt_id: str) -> NeuronSet:
        """Drawn without replacement, all neurons alike."""
        num = len(self.evidence.neurons.get(prompt_id, NO_NEURONS))
        if not num:
            return NO_NEURONS
        sizes = layer_sizes(self.evidence.network, self.layers)
        every = [(layer, neuron) for layer, size in sizes.items() for neuron in range(size)]
        what = f"{prompt_id}\0{self.options['seed']:.0f}".encode()
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(what).digest()[:8], "big"))
        chosen = generator.choice(len(every), size=num, replace=False)
        return named_sets(("", *every[index]) for index in sorted(chosen))[""]
