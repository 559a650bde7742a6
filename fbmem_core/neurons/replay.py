"""Run a U-Net from the middle: what comes before the first touched layer is computed once and replayed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_SEGMENT = re.compile(
    r"conv_in|(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|downsamplers|upsamplers)\.\d+"
)

Recording = dict[str, Any]  # by segment, in the order in which they ran: its output


@contextmanager
def record_segments(unet: nn.Module) -> Iterator[Recording]:
    """Inside the `with`, the output of every segment of one forward pass is kept."""
    recording: Recording = {}
    with ExitStack() as stack:
        for name, module in unet.named_modules():
            if _SEGMENT.fullmatch(name):

                def keep(_module: nn.Module, _input: Any, output: Any, name: str = name) -> None:
                    recording[name] = output

                stack.callback(module.register_forward_hook(keep).remove)
        yield recording


@contextmanager
def replay_segments(unet: nn.Module, recording: Recording, layer: str, rows: Tensor) -> Iterator[None]:
    """Inside the `with`, every segment that ran before the one that holds `layer` gives its recorded output.

    Args:
        unet: The U-Net that was recorded.
        recording: Of a pass in which everything before `layer` was as it shall be.
        layer: Dotted name of the first layer that differs.
        rows: [n] which sample of the recording each sample of the batch goes on from.
    """
    with ExitStack() as stack:
        for name, output in recording.items():
            if layer.startswith(f"{name}."):
                break
            stack.enter_context(_replaced(unet.get_submodule(name), _always(_rows_of(output, rows))))
        yield


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def _always(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output


def _rows_of(output: Any, rows: Tensor) -> Any:
    if isinstance(output, Tensor):
        return output[rows]
    return tuple(_rows_of(part, rows) for part in output)
