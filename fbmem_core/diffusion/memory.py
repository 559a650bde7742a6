"""One answer to a device that has too little memory for a batch: halve it, and stay at the half."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
T = TypeVar("T")
R = TypeVar("R")

# what torch says where it raises no error of its own: of MPS, of a CPU's allocator
_MESSAGES = ("out of memory", "can't allocate memory")


class Batches:
    """Work in batches of at most `size` items; whoever keeps the object keeps what it learned of the device.

    Args:
        size: Items at first.
        device: For messages.
    """

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.size, self.device = max(1, size), device

    def run(self, work: Callable[[Sequence[T]], R], items: Sequence[T]) -> Iterator[R]:
        """Results of `work` for each batch, in the order of the items.

        Raises:
            InputError: There is too little memory for a single item.

        >>> list(Batches(2, "cpu").run(sum, [1, 2, 3]))
        [3, 3]
        """
        first = 0
        while first < len(items):
            batch = items[first : first + self.size]
            if (result := self._attempt(work, batch)) is None:
                self.size = smaller_batch(len(batch), self.device)
                continue
            yield result[0]
            first += len(batch)

    @staticmethod
    def _attempt(work: Callable[[Sequence[T]], R], batch: Sequence[T]) -> tuple[R] | None:
        """None where memory was too little. The error is gone when this returns, and with it what it held."""
        try:
            return (work(batch),)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """True if a device had too little memory.

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory")), is_out_of_memory(RuntimeError("shape"))
    (True, False)
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _MESSAGES)


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
        cure = (
            "Lower `sampling.height` and `.width`, set `sampling.dtype: bfloat16`, or stop what else uses the device."
        )
        raise InputError("memory for one image", "too little", where=str(device), cure=cure)
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the failed batch held is free, but in pieces of its size
    return size // 2
