"""What to do where a device has too little memory for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    import torch


def smaller_batch(size: int, device: torch.device | str) -> int:
    """Half of a batch that found no memory, for the next try.

    Args:
        size: Of that batch.
        device: Where.

    Raises:
        InputError: It was the smallest already.
    """
    if size == 1:
        cure = "Lower `sampling.height` and `.width`, set `sampling.dtype: float16`, or stop what else uses the device."
        raise InputError("memory for one image", "too little", where=str(device), cure=cure)
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the failed batch held is free, but in pieces of its size
    return size // 2
