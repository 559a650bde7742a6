"""A second device for machines that have one alone: tensors that say they lie elsewhere and refuse to mix.

Inside `second_device()` tensors of device `meta` hold real numbers. An operation that takes one of them and one of the
CPU fails as on a GPU, and so does `numpy()`; `cpu()`, `item()` and `tolist()` copy. What is computed is what the CPU
computes, so results on both can be compared to the last bit.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
# the indices of these may lie on the CPU, if what is indexed does not
_INDEXING = ("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"Elsewhere({self.here!r})"

    def tolist(self):
        return self.detach().here.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert a tensor of the second device to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does below its operators: making tensors from numbers, and choosing kernels of attention."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in _MAKERS:
            device = kwargs.pop("device", args[0].device if function is torch.Tensor.new_tensor else None)
            return function(*args, **kwargs) if device is None else function(*args, **kwargs).to(device)
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


@contextmanager
def second_device():
    """Inside the `with`, the device `meta` computes."""
    with _Operators(), _Functions():
        yield DEVICE


@contextmanager
def ordinary_devices():
    """Inside the `with`, all is as without a second device."""
    with _disable_current_modes():
        yield


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(dim=-1) @ value


def _run(operator, args, kwargs):
    device = kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    is_there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if operator not in _COPIES:
        _check(operator, args, tensors)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        if "pin_memory" not in {argument.name for argument in operator._schema.arguments}:
            kwargs.pop("pin_memory")
    result = operator(*tree_map(_here, args), **tree_map(_here, kwargs))
    if operator._schema.name.endswith("_") and args and isinstance(args[0], torch.Tensor):
        return args[0]  # changed in place
    goes_there = is_there if device is None else torch.device(device) == DEVICE
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, result) if goes_there else result


def _check(operator, args, tensors):
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim > 0]
    if not (there and here):
        return
    if operator._schema.name in _INDEXING and isinstance(args[0], Elsewhere):
        values = args[2] if len(args) > 2 else None
        if not isinstance(values, torch.Tensor) or isinstance(values, Elsewhere) or values.ndim == 0:
            return
    raise RuntimeError(f"Expected all tensors to be on the same device, but {operator} got the CPU and the second one")


def _here(value):
    return value.here if isinstance(value, Elsewhere) else value
