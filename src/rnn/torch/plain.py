"""What can run here: tensors as arrays, and calls that torch's own operators have to run, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _core

__all__ = [
    "NotHere",
    "check_autocast",
    "check_input",
    "check_plain",
    "check_surroundings",
    "lie_at",
    "lie_still",
    "plain_arrays",
]

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

    def arrays(self, tensors: Sequence[Tensor]) -> list[np.ndarray] | None:
        try:
            found: list[np.ndarray] = [tensor.detach().numpy() for tensor in tensors]
        except (RuntimeError, TypeError):
            return None
        is_plain = all(array.dtype.char in "fd" and (array.ctypes.data or not array.size) for array in found)
        return found if is_plain else None

    def lie_still(self, arrays: list[np.ndarray]) -> bool:
        bases: list[Any] = [array.base for array in arrays]
        return all(
            base is None or base.data_ptr() == array.ctypes.data for base, array in zip(bases, arrays, strict=True)
        )

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


def check_input(x: Any) -> None:
    """Raise NotHere unless x is a plain tensor that is not empty."""
    if type(x) not in _TYPES or not x.numel():
        raise NotHere(f"x is of the type {type(x).__name__} and of the shape {getattr(x, 'shape', None)}")


def plain_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The memory of plain tensors as arrays of float32 or float64; raises NotHere where there is none.

    They are for use as long as the tensors keep this memory; those of tensor.detach() are for longer.
    """
    arrays = _reader.arrays(tensors)
    if arrays is None:
        check_plain(tensors)
        raise NotHere(next(filter(None, map(_why_no_array, tensors)), "a tensor has no plain memory"))
    return arrays


lie_at, lie_still = _reader.lie_at, _reader.lie_still  # of the memory of tensors, see TensorReader


def _why_no_array(tensor: Tensor) -> str | None:
    if not tensor.is_cpu:
        return f"a tensor is on the device {tensor.device}"
    if tensor.dtype not in _DTYPES:
        return f"a tensor is of {tensor.dtype}; float32 and float64 run here"
    return None
