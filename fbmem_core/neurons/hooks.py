"""Look into a network and change it, for as long as a `with` lasts: hooks by dotted name, always removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fbmem_core.errors import InputError
from fbmem_core.neurons.layers import NeuronSet


@contextmanager
def record_outputs(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the `with`, the outputs of these layers are gathered: one tensor a forward pass, by layer."""
    outputs_of: dict[str, list[Tensor]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, outputs in outputs_of.items():

            def keep(_module: nn.Module, _input: Any, output: Tensor, outputs: list[Tensor] = outputs) -> None:
                outputs.append(output)

            stack.enter_context(_hooked(network, name, keep))
        yield outputs_of


@contextmanager
def scale_neurons(network: nn.Module, factors: Mapping[str, Float[Tensor, "*n features"]]) -> Iterator[None]:
    """Inside the `with`, the neurons of these layers are multiplied: 0 switches one off, 1 leaves it.

    Args:
        network: Of the denoiser, or any model that has these layers.
        factors: By layer: one factor for each of its features, for all samples alike or for each sample of the batch.

    Raises:
        InputError: There is no such layer, or it has another number of features.
    """
    with ExitStack() as stack:
        for name, factor in factors.items():
            stack.enter_context(_hooked(network, name, _scaler(name, factor)))
        yield


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside the `with`, its parameters take no gradients: those of its inputs cost less time and memory."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def deactivation_factors(
    network: nn.Module, neurons: NeuronSet, *, factor: float = 0.0
) -> dict[str, Float[Tensor, " features"]]:
    """Factors for `scale_neurons` that multiply these neurons by `factor` and leave the others as they are.

    Raises:
        InputError: The network has no such layer or no such neuron.
    """
    factors = {}
    for layer, indices in neurons.indices.items():
        module = _layer(network, layer)
        size = module.out_features
        if not 0 <= min(indices) <= max(indices) < size:
            cure = "Use neurons that were found in this checkpoint."
            raise InputError(
                f"neurons from 0 to {size - 1}", f"{min(indices)} to {max(indices)}", where=layer, cure=cure
            )
        factors[layer] = torch.ones(size, device=module.weight.device, dtype=module.weight.dtype)
        rows = torch.tensor(sorted(indices), device=module.weight.device)
        factors[layer].index_fill_(0, rows, factor)
    return factors


def _scaler(name: str, factor: Tensor) -> Callable[..., Tensor]:
    def scale(_module: nn.Module, _input: Any, output: Tensor) -> Tensor:
        if output.shape[-1] != factor.shape[-1]:
            cure = "Give one factor a feature."
            raise InputError(f"{output.shape[-1]} factors", factor.shape[-1], where=name, cure=cure)
        return output * (factor if factor.ndim == 1 else factor[:, None])

    return scale


@contextmanager
def _hooked(network: nn.Module, name: str, hook: Callable[..., Any]) -> Iterator[None]:
    handle = _layer(network, name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _layer(network: nn.Module, name: str) -> Any:
    try:
        return network.get_submodule(name)
    except AttributeError:
        cure = "Use neurons that were found in this checkpoint."
        raise InputError(f"a layer `{name}`", "no such layer", where="the network", cure=cure) from None
