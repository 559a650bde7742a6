"""NeMo-C, arXiv 2508.12148: for each prompt the neurons of its whole cluster are switched off."""

from __future__ import annotations

from fbmem_core.mitigation.method import NeuronMethod
from fbmem_core.neurons.layers import NO_NEURONS, NeuronSet, union


class NemoC(NeuronMethod):
    """The union of the refined neurons of the cluster's prompts, for every prompt of the cluster.

    Dampening loses its effect beyond a factor of about 0.2 (section 5.3 of the paper).
    """

    name = "nemo_c"

    def neurons(self, prompt_id: str) -> NeuronSet:
        """Neurons of its cluster; its own alone where it is in none."""
        clusters, refined = self.evidence.clusters, self.evidence.neurons
        if prompt_id not in clusters:
            return refined.get(prompt_id, NO_NEURONS)
        cluster = clusters[prompt_id]
        return union(neurons for member, neurons in refined.items() if clusters.get(member) == cluster)
