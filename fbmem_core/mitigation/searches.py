"""Results of long searches, which a method asks for by name instead of searching twice."""

from __future__ import annotations

from typing import Protocol

from fbmem_core.neurons.layers import NeuronSet


class Searches(Protocol):
    """Results of long searches by a name of the method's choice; a store may keep them."""

    def get(self, name: str) -> NeuronSet | None:
        """Result of a search; None: it was never made."""
        ...

    def put(self, name: str, neurons: NeuronSet) -> None:
        """Keep the result of a search."""
        ...


class MemorySearches:
    """Searches of one process."""

    def __init__(self) -> None:
        self._neurons: dict[str, NeuronSet] = {}

    def get(self, name: str) -> NeuronSet | None:
        """Result of a search; None: it was never made."""
        return self._neurons.get(name)

    def put(self, name: str, neurons: NeuronSet) -> None:
        """Keep the result of a search."""
        self._neurons[name] = neurons
