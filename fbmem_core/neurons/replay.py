"""Run a network from the middle: what comes before a layer is computed once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

# of a U-Net's own modules that are no lists: what embeds the time is cheap, what embeds XL's sizes has other rows
_OWN = ("conv_in", "mid_block")

Recording = dict[str, Any]  # by segment, in the order in which they ran: its output


@contextmanager
def record_segments(network: nn.Module, layer: str) -> Iterator[Recording]:
    """Inside the `with`, what one forward pass needs to go on from `layer` is kept; the `with` ends there.

    The segments are the modules beside the way to `layer`: the blocks before its block, the residual blocks before its
    transformer, and of its transformer the self-attention, the queries, whatever does not contain it. Those that end
    before it are kept, by dotted name.
    """
    recording: Recording = {}
    with ExitStack() as stack:
        for name in _beside(network, layer):

            def keep(_module: nn.Module, _input: Any, output: Any, name: str = name) -> None:
                recording[name] = output

            stack.callback(network.get_submodule(name).register_forward_hook(keep).remove)
        stack.callback(network.get_submodule(layer).register_forward_pre_hook(_reach).remove)
        with suppress(_Reached):
            yield recording


@contextmanager
def replay_segments(network: nn.Module, recording: Recording, rows: Tensor) -> Iterator[None]:
    """Inside the `with`, every segment that was recorded gives its output again.

    Args:
        network: The network that was recorded.
        recording: Of a pass in which everything before the layer was as it shall be.
        rows: [n] which sample of the recording each sample of the batch goes on from.
    """
    with ExitStack() as stack:
        for name, output in recording.items():
            stack.enter_context(_replaced(network.get_submodule(name), _replay(output, rows)))
        yield


class _Reached(Exception):
    """Ends a forward pass."""


def _reach(_module: nn.Module, _input: Any) -> None:
    raise _Reached


def _beside(network: nn.Module, layer: str) -> Iterator[str]:
    """Names of the modules whose parent lies on the way to `layer`, but for those on it; lists count as their items."""
    parts = layer.split(".")
    for end in range(len(parts)):
        parent = ".".join(parts[:end])
        for child, module in network.get_submodule(parent).named_children():
            name = f"{parent}.{child}" if parent else child
            if f"{layer}.".startswith(f"{name}."):
                continue
            if isinstance(module, nn.ModuleList):
                yield from (f"{name}.{item}" for item in range(len(module)))
            elif parent or name in _OWN:
                yield name


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    kept = module.__dict__.get("forward")  # of a hook of offloading, which replaces it too
    module.forward = forward
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept


def _replay(output: Any, rows: Tensor) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: _rows_of(output, rows)


def _rows_of(output: Any, rows: Tensor) -> Any:
    if isinstance(output, Tensor):
        return output[rows]
    return tuple(_rows_of(part, rows) for part in output)
