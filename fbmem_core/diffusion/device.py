"""The device that work is done on, and the type of numbers."""

from __future__ import annotations

from fbmem_core.errors import InputError

_HALVES = ("float16", "bfloat16")


def choose_device(device: str) -> str:
    """`auto` becomes the best device there is; any other name stays.

    Raises:
        InputError: There is no such device here.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    cure = "Set `device: cpu`, or `auto`, or run on a machine that has it."
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        num = torch.cuda.device_count() if torch.cuda.is_available() else "none"
        raise InputError(f"the device `{device}`", f"{num} of CUDA", where="this machine", cure=cure)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("the device `mps`", "none", where="this machine", cure=cure)
    return device


def choose_dtype(dtype: str, stored: str, device: str) -> str:
    """`auto` becomes the type in which the weights are stored; on a CPU float32 for float16, which it has no speed in.

    >>> choose_dtype("auto", "float16", "cuda"), choose_dtype("auto", "float16", "cpu")
    ('float16', 'float32')
    """
    if dtype != "auto":
        return dtype
    if stored not in _HALVES:
        return "float32"
    return "float32" if device == "cpu" and stored == "float16" else stored


def check_dtype(dtype: str, device: str) -> None:
    """Refuse float16 on a CPU.

    Raises:
        InputError: It would take eighty times as long as bfloat16.
    """
    if dtype == "float16" and device == "cpu":
        cure = "Set `sampling.dtype: bfloat16` or `float32`."
        raise InputError(
            "float32 or bfloat16 on a CPU", "float16, eighty times slower", where="sampling.dtype", cure=cure
        )
