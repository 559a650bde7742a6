"""What to do where a device has too little memory for a batch."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB that torch frees, in blocks up to 32 MiB: it is wanted again at once.

    Given back to the system it is zeroed page by page at every step, a tenth of the time of sampling on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


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
