"""What can run here: tensors as arrays, and calls that torch's own operators have to run, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _core

__all__ = ["NotHere", "check_autocast", "check_floats", "check_plain", "check_surroundings", "lie_at", "plain_array"]

_TYPES = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64)


class NotHere(Exception):  # no error: the caller goes another way
    """A call that torch's own operators have to run, and why."""


def check_surroundings() -> None:
    """Raise NotHere if something is going on around the call that only torch's operators take part in."""
    if _tracing() is not None:
        raise NotHere("the model is traced or exported")
    if _transforms() is not None:
        raise NotHere("a transform of torch.func is active")
    if _modes():
        raise NotHere("a mode that sees every operator is active")
    if forward_ad._current_level >= 0:
        raise NotHere("forward-mode differentiation is active")


def check_autocast() -> None:
    """Raise NotHere under autocast, which changes the dtype of what torch's operators take."""
    if _autocasts("cpu"):
        raise NotHere("autocast is enabled")


_tracing, _transforms = torch._C._get_tracing_state, torch._C._functorch.peek_interpreter_stack
_modes, _autocasts = torch._C._len_torch_dispatch_stack, torch.is_autocast_enabled


class _SlowReader:
    """What `_core.TensorReader` does, for versions of torch without DLPack's exchange API."""

    def array(self, tensor: Tensor) -> np.ndarray | None:
        try:
            array: np.ndarray = tensor.detach().numpy()
        except (RuntimeError, TypeError):
            return None
        return array if array.dtype.char in "fd" else None

    def lie_at(self, tensors: list[Tensor], arrays: list[np.ndarray]) -> bool:
        return all(
            type(tensor) in _TYPES
            and tensor.data_ptr() == array.ctypes.data
            and tensor.shape == array.shape
            and tensor.is_contiguous()
            for tensor, array in zip(tensors, arrays, strict=True)
        )


_exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
_reader = _SlowReader() if _exchange is None else _core.TensorReader(_exchange, _TYPES)


def check_plain(tensors: Iterable[Any]) -> None:
    """Raise NotHere for what is no tensor, or is of a class that may change what operators do."""
    for tensor in tensors:
        if type(tensor) not in _TYPES:
            raise NotHere(f"a tensor is of the type {type(tensor).__name__}")


def check_floats(tensors: Iterable[Any]) -> None:
    """The same, and for those that hold no numbers or none of a floating-point dtype."""
    check_plain(tensors)
    for tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            raise NotHere(f"a tensor has the shape {tuple(tensor.shape)} and is of {tensor.dtype}")


def plain_array(tensor: Tensor) -> np.ndarray:
    """The memory of a plain tensor as an array of float32 or float64; raises NotHere where there is none.

    It is for use as long as the tensor keeps this memory; that of tensor.detach() is for longer.
    """
    array = _reader.array(tensor)
    if array is None or tensor.is_neg():
        raise NotHere(_why_no_array(tensor))
    return array


lie_at = _reader.lie_at


def _why_no_array(tensor: Tensor) -> str:
    if not tensor.is_cpu:
        return f"a tensor is on the device {tensor.device}"
    if tensor.dtype not in _DTYPES:
        return f"a tensor is of {tensor.dtype}; float32 and float64 run here"
    return "a tensor has no plain memory"
