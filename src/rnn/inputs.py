"""What a call gives to a layer: checked once, and brought into the layout that the kernels walk; and the way back.

All errors about x, states, lengths, reset masks and gradients are raised here, before anything is computed.  The
layout is that of kernels/sequence.hpp: arrays are never transposed, sorted or reversed; `_core.Scan` is told where each
row lies instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from .module import checked_array

State = Any  # h (L*D, B, H), or (h, c) for an LSTM

# One-hot input: where all of W_ih is fewer numbers than this, a table of it costs less than to find the columns needed;
WORTH_NUMBERING = 1 << 16
# and an inference of so few rows takes the columns from where they are
FEW_INDICES = 64


@dataclass(slots=True)
class Batch:
    """The input of a call in time-major form, and how it is divided among walks."""

    x: np.ndarray  # (T, B, I) of the layer's dtype, or int64 (T, B): indices of one-hot rows, see `number`
    lengths: np.ndarray | None  # (B,) int64
    reset: np.ndarray | None  # (T, B) uint8
    unbatched: bool  # the caller gave no batch axis
    walks: list[_core.Walk]

    @property
    def T(self) -> int:
        return self.x.shape[0]

    @property
    def B(self) -> int:
        return self.x.shape[1]

    @property
    def one_hot(self) -> bool:
        return self.x.ndim == 2

    def number(self, columns: int, width: int) -> None:
        """List, for each walk, the columns of W_ih (width, columns) that its indices name; x := their places there.

        Where not all would be named, this keeps tables of them, and of their gradients, as small as what is looked at.
        """
        x = np.zeros_like(self.x)
        for walk in self.walks:
            rows = walk.first_row(walk.T)
            if rows < columns and columns * width >= WORTH_NUMBERING:
                at = walk.where(0, rows, backwards=False)
                walk.columns, x[at] = np.unique(self.x[at], return_inverse=True)
            else:
                walk.columns, x[:, walk.members] = np.arange(columns), self.x[:, walk.members]
        self.x = x


def walkable(array: np.ndarray) -> np.ndarray:
    """The array itself if the kernels can walk it: aligned, rows contiguous; else a copy."""
    if array.flags.carray:
        return array
    strides_fit = all(stride % array.itemsize == 0 for stride in array.strides)
    rows_fit = array.ndim < 3 or array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if array.flags.aligned and strides_fit and rows_fit else array.copy()


def checked_batch(layer: Any, x: Any, lengths: Any, reset: Any) -> Batch:
    """x, lengths and reset of a call to `layer`; raises TypeError or ValueError that says what was expected."""
    x = np.asarray(x)
    one_hot = x.dtype.kind in "iu"
    if not one_hot and x.dtype != layer.dtype:
        raise TypeError(f"expected x of dtype {layer.dtype}, or of an integer dtype, got {x.dtype}")
    rank = 2 if one_hot else 3
    if x.ndim not in (rank - 1, rank) or (not one_hot and x.shape[-1] != layer.input_size):
        kind, features = ("integer x", "") if one_hot else ("x", f", {layer.input_size}")
        axes = "B, T" if layer.batch_first else "T, B"
        raise ValueError(f"expected {kind} of shape ({axes}{features}), or (T{features}) unbatched, got {x.shape}")
    is_unbatched = x.ndim == rank - 1
    x = time_major(layer, x, is_unbatched)
    T, B = x.shape[:2]
    lengths = _checked_lengths(lengths, T, B)
    if one_hot:
        _check_indices(x, lengths, layer.input_size)
        x = x.astype(np.int64, copy=False)
    if reset is not None:
        reset = np.asarray(reset)
        expected = (T,) if is_unbatched else (B, T) if layer.batch_first else (T, B)
        reset = checked_array("reset", reset, expected, np.dtype(bool))
        reset = walkable(time_major(layer, reset, is_unbatched)).view(np.uint8)
    return Batch(walkable(x), lengths, reset, is_unbatched, _core.walks(T, B, lengths, layer._parts(T, B)))


def time_major(layer: Any, x: np.ndarray, unbatched: bool) -> np.ndarray:
    """The caller's array (T, B, ...), (B, T, ...) or (T, ...) as a view (T, B, ...)."""
    if unbatched:
        return x[:, None]
    return x.swapaxes(0, 1) if layer.batch_first else x


def user_layout(layer: Any, x: np.ndarray, unbatched: bool) -> np.ndarray:
    """The other way: an array (T, B, ...) as a view that is laid out as the caller's arrays are."""
    if unbatched:
        return x[:, 0]
    return x.swapaxes(0, 1) if layer.batch_first else x


def _checked_lengths(lengths: Any, T: int, B: int) -> np.ndarray | None:
    if lengths is None:
        return None
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"expected lengths of an integer dtype, got {lengths.dtype}")
    if lengths.shape != (B,):
        raise ValueError(f"expected lengths of shape ({B},), got {lengths.shape}")
    values = lengths.tolist()  # of a few dozen, Python finds the least and the largest sooner than NumPy does
    if values and not (min(values) >= 0 and max(values) <= T):
        raise ValueError(f"expected lengths from 0 to T = {T}, got {min(values)} to {max(values)}")
    return lengths.astype(np.int64)


def _check_indices(x: np.ndarray, lengths: np.ndarray | None, input_size: int) -> None:
    """Indices must lie in [0, I); those in the padding are not looked at."""
    counted = x if lengths is None else x[np.arange(x.shape[0])[:, None] < lengths]
    if counted.size and not (counted.min() >= 0 and counted.max() < input_size):
        raise ValueError(f"expected integer x from 0 to {input_size - 1}, got {counted.min()} to {counted.max()}")


def checked_state(layer: Any, state: Any, B: int, unbatched: bool, name: str = "state") -> tuple[np.ndarray, ...]:
    """A state, or its gradient, as (h,) or (h, c), each (L*D, B, width) and contiguous; zeros for None."""
    widths = layer._state_widths
    count = layer.num_layers * layer._directions
    if state is None:
        return tuple([np.zeros((count, B, width), layer.dtype) for width in widths])
    if len(widths) == 1:
        state = (state,)
    elif not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"expected {name} of an LSTM as a pair (h, c), got {type(state).__name__}")
    shapes = [(count, width) if unbatched else (count, B, width) for width in widths]
    checked = (
        checked_array(f"{name} {letter}" if len(widths) == 2 else name, array, shape, layer.dtype)
        for letter, array, shape in zip("hc", state, shapes, strict=False)
    )
    return tuple(np.ascontiguousarray(array[:, None] if unbatched else array) for array in checked)


def user_state(state: tuple[np.ndarray, ...], unbatched: bool) -> State:
    """The other way: (h,) or (h, c) as h or (h, c), unbatched as the caller's states are."""
    if unbatched:
        state = tuple([array[:, 0] for array in state])
    return state if len(state) == 2 else state[0]
