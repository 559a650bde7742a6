"""Layers that hold value neurons. A value neuron is one output feature of one projection of the text to values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fbmem_core.neurons import Layers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

_ORDER = ("down_blocks", "mid_block", "up_blocks")  # of a U-Net; a transformer's names sort by their numbers


def value_layers(pipeline: DiffusionPipeline, layers: Layers = "released") -> tuple[str, ...]:
    """Dotted names of the value layers, in the order in which the network runs them.

    Args:
        pipeline: A loaded pipeline.
        layers: `released` takes those of a U-Net's down blocks and mid block, as NeMo does (7 layers of 5,760 neurons
            in Stable Diffusion 1.x); `all` takes the up blocks too (16 layers). A transformer's are all taken.

    Raises:
        InputError: The network has none.
    """
    from fbmem_core.diffusion.denoiser import denoiser_of, no_value_layers

    denoiser = denoiser_of(pipeline)
    names = denoiser.value_layers(layers)
    if not names:
        raise no_value_layers(type(denoiser.network).__name__)
    return names


def block_order(layer: str) -> tuple[int, tuple[int, ...]]:
    """Sorts the names of value layers into the order in which a network runs them."""
    block = layer.partition(".")[0]
    place = _ORDER.index(block) if block in _ORDER else 0
    return place, tuple(int(part) for part in layer.split(".") if part.isdigit())


def layer_sizes(network: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """Number of neurons of each layer."""
    return {name: int(network.get_submodule(name).out_features) for name in layers}  # type: ignore[arg-type]


@dataclass(frozen=True)
class NeuronSet:
    """Set of neurons: indices by layer, layers in the order of the network. Layers without any are left out."""

    indices: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, indices: Mapping[str, Iterable[int]]) -> NeuronSet:
        """Set from any indices by layer."""
        sets = {layer: frozenset(map(int, of_layer)) for layer, of_layer in indices.items()}
        return cls({layer: of_layer for layer, of_layer in sets.items() if of_layer})

    def __len__(self) -> int:
        return sum(map(len, self.indices.values()))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(layer, neuron), neurons ascending."""
        return ((layer, neuron) for layer, of_layer in self.indices.items() for neuron in sorted(of_layer))

    def __contains__(self, neuron: tuple[str, int]) -> bool:
        return neuron[1] in self.indices.get(neuron[0], ())

    def __or__(self, neurons: NeuronSet) -> NeuronSet:
        layers = dict.fromkeys([*self.indices, *neurons.indices])
        return NeuronSet.of({layer: self.at(layer) | neurons.at(layer) for layer in layers})

    def at(self, layer: str) -> frozenset[int]:
        """The neurons of one layer."""
        return self.indices.get(layer, frozenset())

    def replaced(self, layer: str, indices: Iterable[int]) -> NeuronSet:
        """Set with these neurons at a layer in the place of its own."""
        return NeuronSet.of({**self.indices, layer: indices})


NO_NEURONS = NeuronSet({})


def named_sets(rows: Iterable[tuple[object, str, int]]) -> dict[str, NeuronSet]:
    """Neuron sets from rows (name, layer, neuron), in their order."""
    indices_of: dict[str, dict[str, list[int]]] = {}
    for name, layer, neuron in rows:
        indices_of.setdefault(str(name), {}).setdefault(layer, []).append(neuron)
    return {name: NeuronSet.of(indices) for name, indices in indices_of.items()}


def union(sets: Iterable[NeuronSet]) -> NeuronSet:
    """The neurons that are in any of the sets."""
    joined = NO_NEURONS
    for neurons in sets:
        joined |= neurons
    return joined
