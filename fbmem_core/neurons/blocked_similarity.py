"""Similarity of noise differences with neurons switched off: many sets and seeds a pass, replayed where they agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fbmem_core.diffusion.conditioning import Conditioning
from fbmem_core.diffusion.memory import smaller_batch
from fbmem_core.diffusion.noise_difference import FirstStep, difference_similarity
from fbmem_core.neurons.hooks import scale_neurons
from fbmem_core.neurons.layers import NeuronSet
from fbmem_core.neurons.replay import Recording, record_segments, replay_segments


class BlockedSimilarity:
    """Similarity of noise differences with neurons switched off to those without, at the seeds of one prompt.

    Where a method takes `first_layer` and `common`, the sets differ from `common` at that layer and behind it alone, so
    that what comes before is replayed.
    """

    def __init__(
        self,
        step: FirstStep,
        condition: Conditioning,
        seeds: Tensor,
        differences: Tensor,
        layers: Sequence[str],
        batch_size: int,
    ) -> None:
        self.step, self.condition, self.seeds, self.differences = step, condition, seeds, differences
        self.layers, self.batch_size = tuple(layers), batch_size
        self.activate_all_seeds()
        self._closest = 0  # the seed that was the most similar last
        self._recorded: tuple[str, NeuronSet, Recording] | None = None
        self._last: tuple[NeuronSet, list[float]] | None = None  # of every seed: the neurons, and what each said

    @property
    def num_at_once(self) -> int:
        """Sets whose highest similarity one pass tells."""
        return max(1, self.batch_size // len(self._active_seeds))

    def activate_all_seeds(self) -> None:
        """Evaluate all seeds from now on."""
        self._active_seeds = list(range(len(self.seeds)))

    def restrict_to_seeds_above(self, neurons: NeuronSet, least: float) -> None:
        """Evaluate from now on the seeds with at least this similarity with these neurons; the highest one always."""
        self.activate_all_seeds()
        if self._last is None or self._last[0] != neurons:
            self.highest([neurons])
        assert self._last is not None
        values = self._last[1]
        self._active_seeds = [seed for seed, value in enumerate(values) if value >= min(least, max(values))]

    def highest(
        self, sets: Sequence[NeuronSet], *, first_layer: str | None = None, common: NeuronSet | None = None
    ) -> list[float]:
        """The highest similarity over all seeds that are asked, of each set."""
        runs = [(neurons, seed) for neurons in sets for seed in self._active_seeds]
        values = torch.tensor(self._similarities(runs, first_layer, common)).view(len(sets), len(self._active_seeds))
        self._closest = self._active_seeds[int(values[-1].argmax())]
        if len(self._active_seeds) == len(self.seeds):
            self._last = sets[-1], values[-1].tolist()
        return values.amax(dim=1).tolist()

    def exceeds(self, neurons: NeuronSet, threshold: float, *, first_layer: str, common: NeuronSet) -> bool:
        """True if the highest similarity does; one seed is evaluated first, and may be enough."""
        [value] = self.at_one_seed([neurons], first_layer=first_layer, common=common)
        return value > threshold or self.highest([neurons], first_layer=first_layer, common=common)[0] > threshold

    def at_one_seed(
        self, sets: Sequence[NeuronSet], *, first_layer: str | None = None, common: NeuronSet | None = None
    ) -> list[float]:
        """The similarity of each set at the seed that was the most similar last: if it exceeds, so does the highest."""
        return self._similarities([(neurons, self._closest) for neurons in sets], first_layer, common)

    def _similarities(
        self, runs: Sequence[tuple[NeuronSet, int]], first_layer: str | None, common: NeuronSet | None
    ) -> list[float]:
        blocked = self.blocked_differences(runs, first_layer=first_layer, common=common)
        rows = torch.tensor([seed for _, seed in runs], device=self.seeds.device)
        return difference_similarity(blocked, self.differences[rows]).tolist()

    def blocked_differences(
        self,
        pairs: Sequence[tuple[NeuronSet, int]],
        *,
        first_layer: str | None = None,
        common: NeuronSet | None = None,
    ) -> Tensor:
        """The noise difference [n, c, h, w] of each pair of switched-off neurons and a seed's number."""
        recording = self._record(first_layer, common) if first_layer and common else {}
        parts: list[Tensor] = []
        done = 0
        while done < len(pairs):
            batch = pairs[done : done + self.batch_size]
            try:
                parts.append(self._batch(batch, recording))
                done += len(batch)
            except torch.OutOfMemoryError:
                self.batch_size = smaller_batch(len(batch), self.seeds.device)
        return torch.cat(parts)

    def _batch(self, pairs: Sequence[tuple[NeuronSet, int]], recording: Recording) -> Tensor:
        sets, seeds = zip(*pairs, strict=True)
        rows = torch.tensor(seeds, device=self.seeds.device)
        replayed = replay_segments(self.step.network, recording, rows)
        with replayed, scale_neurons(self.step.network, self._factors(sets)):
            return self.step.noise_difference(self.condition, self.seeds[rows])

    def _record(self, layer: str, common: NeuronSet) -> Recording:
        """Record what comes before `layer` for every seed, with the neurons of `common` there switched off."""
        before = NeuronSet.of({name: common.at(name) for name in self.layers[: self.layers.index(layer)]})
        if self._recorded is None or self._recorded[:2] != (layer, before):
            network, factors = self.step.network, self._factors([before] * len(self.seeds))
            with scale_neurons(network, factors), record_segments(network, layer) as recording:
                self.step.noise(self.condition, self.seeds)
            self._recorded = layer, before, recording
        return self._recorded[2]

    def _factors(self, sets: Sequence[NeuronSet]) -> dict[str, Tensor]:
        """Factors by layer [len(sets), features], for `scale_neurons`."""
        factors_of = {}
        for layer in self.layers:
            of_layer = [neurons.at(layer) for neurons in sets]
            if not any(of_layer):
                continue
            weight = self.step.network.get_parameter(f"{layer}.weight")
            factors = torch.ones(len(sets), weight.shape[0])  # filled here and copied to the device at once
            for row, indices in enumerate(of_layer):
                factors[row, sorted(indices)] = 0
            factors_of[layer] = factors.to(weight)
        return factors_of
