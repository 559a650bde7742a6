"""Gradients through a network in half precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fbmem_core.diffusion.memory import Batches

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


def mean_gradients(
    losses_of: Callable[[Tensor], Tensor], num: int, inputs: Sequence[Tensor], *, batches: Batches, dtype: torch.dtype
) -> tuple[float, list[Tensor]]:
    """The mean of n losses and its gradients, in as many passes as the device's memory asks for.

    Args:
        losses_of: From rows [m] int64 to their losses [m], a graph of its own each time.
        num: n; rows go from 0 to n - 1.
        inputs: That the losses depend on.
        batches: How many rows one pass holds.
        dtype: Of the network.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> mean_gradients(lambda rows: x[rows] ** 2, 2, [x], batches=Batches(1, "cpu"), dtype=torch.float32)
    (2.5, [tensor([1., 2.])])
    """
    device, total = inputs[0].device, 0.0
    gradients: list[Tensor] = [torch.zeros_like(value, dtype=torch.float32) for value in inputs]

    def work(rows: Sequence[int]) -> tuple[float, list[Tensor]]:
        loss = losses_of(torch.tensor(rows, device=device)).sum() / num
        return loss.item(), gradients_of(loss, inputs, dtype)

    for loss, parts in batches.run(work, range(num)):
        total += loss
        gradients = [gradient + part for gradient, part in zip(gradients, parts, strict=True)]
    return total, gradients
