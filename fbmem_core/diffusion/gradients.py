"""Gradients through a network in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# what a loss is multiplied by in float16, whose smallest number is 6e-8: without it most gradients become 0
_SCALES = (2.0**14, 2.0**7, 1.0)


def gradients_of(loss: Tensor, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradients of a loss by each input, float32 or more; scaled on their way back where the network is float16.

    Args:
        loss: A scalar.
        inputs: That it depends on.
        dtype: Of the network. bfloat16 has the range of float32 and needs no scale.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> gradients_of(x * x, [x], torch.float16)
    [tensor(6.)]
    """
    scales = _SCALES if dtype == torch.float16 else _SCALES[-1:]
    for scale in scales:
        gradients = torch.autograd.grad(loss * scale, list(inputs), retain_graph=scale != scales[-1])
        wide = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale for gradient in gradients]
        if scale == scales[-1] or all(bool(torch.isfinite(gradient).all()) for gradient in wide):
            return wide
    raise AssertionError("the last scale returns")
