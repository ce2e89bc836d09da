"""The arguments of a call: checked once, and brought into the layout that the kernels read; and the way back.

All errors about x, states, lengths, reset masks and gradients are raised here, before anything is computed.  The layout
is that of kernels/sequence.hpp: arrays are never transposed, sorted or reversed; instead, a `_core.LayerPass` is told
where each row lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ..util.checks import as_array, cast_hint, checked_array
from . import tuning
from .dropout import StepMask
from .spec import LayerSpec, State


@dataclass(slots=True)
class Batch:
    """The input of a call in time-major form, and the shards that it is divided into.

    The arrays of a packed batch, (N, ...), have all rows of a time step together, as torch.nn.utils.rnn packs them.
    """

    T: int
    B: int
    # (T, B, I) or packed (N, I) of the layer's dtype, or int64 (T, B): indices of one-hot rows, see `compact_indices`
    x: np.ndarray
    lengths: np.ndarray | None  # (B,) int64
    reset: np.ndarray | None  # (T, B) uint8
    unbatched: bool  # the caller gave no batch axis
    shards: list[_core.PackedBatch]
    batch_sizes: np.ndarray | None = None  # (T,) int64: how many rows a packed batch has at each step

    @property
    def one_hot(self) -> bool:
        return self.x.dtype.kind == "i"

    def time_major(self, spec: LayerSpec, array: np.ndarray) -> np.ndarray:
        """An array in the layout of the caller's x as the kernels take it: a view, or a copy that they can read."""
        if self.batch_sizes is not None:
            return np.require(array, requirements=["C", "A"])
        return kernel_ready(time_major(spec, array, self.unbatched))

    def user_layout(self, spec: LayerSpec, array: np.ndarray) -> np.ndarray:
        """The inverse of `time_major`, a view."""
        return array if self.batch_sizes is not None else user_layout(spec, array, self.unbatched)

    def rows_of(self, mask: StepMask) -> np.ndarray:
        """A mask at all places of an array like y: (T, B, n), or (N, n)."""
        if self.batch_sizes is None:
            return mask.whole(self.T)
        steps = np.repeat(np.arange(self.T), self.batch_sizes)
        rows = np.arange(len(steps)) - (np.cumsum(self.batch_sizes) - self.batch_sizes)[steps]
        return mask.at(steps[None], rows)[0]

    def compact_indices(self, columns: int, width: int) -> None:
        """Set used_embedding_rows of each shard to the columns of W_ih (width, columns) that its indices name, and
        replace the indices in x by places in that list.

        So the table of these columns, and that of their gradients, is no larger than the list.
        """
        x = np.zeros_like(self.x)
        for shard in self.shards:
            rows = shard.first_row(shard.T)
            if rows < columns and columns * width >= tuning.WORTH_COMPACTING:
                at = shard.where(0, rows, backwards=False)
                shard.used_embedding_rows, x[at] = np.unique(self.x[at], return_inverse=True)
            else:
                shard.used_embedding_rows = np.arange(columns)
                x[:, shard.sorted_indices] = self.x[:, shard.sorted_indices]
        self.x = x


def kernel_ready(array: np.ndarray) -> np.ndarray:
    """The array itself if the kernels can read it: aligned, with contiguous rows; else a copy."""
    if array.flags.carray:
        return array
    strides_fit = all(stride % array.itemsize == 0 for stride in array.strides)
    rows_fit = array.ndim < 3 or array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if array.flags.aligned and strides_fit and rows_fit else array.copy()


def checked_batch(spec: LayerSpec, x: Any, lengths: Any, reset: Any, batch_sizes: Any = None) -> Batch:
    """The batch of x, lengths and reset; raises TypeError or ValueError that says what was expected."""
    if batch_sizes is not None:
        return _checked_packed(spec, x, batch_sizes, lengths, reset)
    x = _as_array(x)
    one_hot = x.dtype.kind in "iu"
    if not one_hot and x.dtype != spec.dtype:
        raise TypeError(
            f"expected x of dtype {spec.dtype}, or of an integer dtype, got {x.dtype}{cast_hint(x, spec.dtype)}"
        )
    rank = 2 if one_hot else 3
    if x.ndim not in (rank - 1, rank) or (not one_hot and x.shape[-1] != spec.input_size):
        kind, features = ("integer x", "") if one_hot else ("x", f", {spec.input_size}")
        axes = "B, T" if spec.batch_first else "T, B"
        raise ValueError(f"expected {kind} of shape ({axes}{features}), or (T{features}) unbatched, got {x.shape}")
    is_unbatched = x.ndim == rank - 1
    x = time_major(spec, x, is_unbatched)
    T, B = x.shape[:2]
    lengths = _checked_lengths(lengths, T, B)
    if one_hot:
        _check_indices(x, lengths, spec.input_size)
        x = x.astype(np.int64, copy=False)
    if reset is not None:
        reset = np.asarray(reset)
        expected = (T,) if is_unbatched else (B, T) if spec.batch_first else (T, B)
        reset = checked_array("reset", reset, expected, np.dtype(bool))
        reset = time_major(spec, reset, is_unbatched).astype(np.uint8)  # a copy: the caller may use the mask again
    shards = _core.shards(T, B, lengths, tuning.shard_count(spec.step_work, T, B))
    return Batch(T, B, kernel_ready(x), lengths, reset, is_unbatched, shards)


def _checked_packed(spec: LayerSpec, x: Any, batch_sizes: Any, lengths: Any, reset: Any) -> Batch:
    """The batch of packed x (N, I), of which batch_sizes (T,) rows belong to each step."""
    x, sizes = as_array("x", x), np.asarray(batch_sizes)
    if lengths is not None or reset is not None:
        raise ValueError(f"expected packed x without {'reset' if lengths is None else 'lengths'}, got both")
    if x.dtype != spec.dtype:
        raise TypeError(f"expected packed x of dtype {spec.dtype}, got {x.dtype}{cast_hint(x, spec.dtype)}")
    if sizes.dtype != np.int64 or sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"expected batch_sizes of shape (T,) and dtype int64, got {sizes.shape} and {sizes.dtype}")
    T, B = len(sizes), int(sizes[0])
    if sizes[-1] < 1 or (sizes[1:] > sizes[:-1]).any():
        raise ValueError("expected batch_sizes that are positive and never grow, got others")
    ends = np.cumsum(sizes)
    if x.shape != (ends[-1], spec.input_size):
        raise ValueError(f"expected packed x of shape ({ends[-1]}, {spec.input_size}), got {x.shape}")
    counts = sizes - np.append(sizes[1:], 0)  # how many sequences end with each step
    lengths = np.repeat(np.arange(T, 0, -1), counts[::-1])
    x = np.require(x, requirements=["C", "A"])
    shards = _core.shards(T, B, lengths, tuning.shard_count(spec.step_work, T, B), ends - sizes)
    return Batch(T, B, x, lengths, None, False, shards, sizes)


def _as_array(x: Any) -> np.ndarray:
    """x as an array; a clear error for the forms in which other libraries keep ragged sequences."""
    if type(x) is np.ndarray:
        return x
    if type(x).__name__ == "PackedSequence":
        raise TypeError(
            "expected x as one array, got a PackedSequence; give a padded array and lengths=..., as "
            "fastrnn.pad_sequence makes them"
        )
    try:
        return as_array("x", x)
    except TypeError as error:
        raise TypeError(f"{error}; fastrnn.pad_sequence makes one of them, and their lengths") from None


def time_major(spec: LayerSpec, x: np.ndarray, unbatched: bool) -> np.ndarray:
    """The caller's array (T, B, ...), (B, T, ...) or (T, ...) as a view (T, B, ...)."""
    if unbatched:
        return x[:, None]
    return x.swapaxes(0, 1) if spec.batch_first else x


def user_layout(spec: LayerSpec, x: np.ndarray, unbatched: bool) -> np.ndarray:
    """The inverse of `time_major`: an array (T, B, ...) as a view in the caller's layout."""
    if unbatched:
        return x[:, 0]
    return x.swapaxes(0, 1) if spec.batch_first else x


def _checked_lengths(lengths: Any, T: int, B: int) -> np.ndarray | None:
    if lengths is None:
        return None
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"expected lengths of an integer dtype, got {lengths.dtype}")
    if lengths.shape != (B,):
        raise ValueError(f"expected lengths of shape ({B},), got {lengths.shape}")
    values = lengths.tolist()  # for a few dozen values, min and max of Python are faster than NumPy's
    if values and not (min(values) >= 0 and max(values) <= T):
        raise ValueError(f"expected lengths from 0 to T = {T}, got {min(values)} to {max(values)}")
    return lengths.astype(np.int64)


def _check_indices(x: np.ndarray, lengths: np.ndarray | None, input_size: int) -> None:
    """Raise ValueError unless all indices lie in [0, I); those in the padding are not checked."""
    counted = x if lengths is None else x[np.arange(x.shape[0])[:, None] < lengths]
    if counted.size and not (counted.min() >= 0 and counted.max() < input_size):
        raise ValueError(f"expected integer x from 0 to {input_size - 1}, got {counted.min()} to {counted.max()}")


def checked_state(spec: LayerSpec, state: Any, B: int, unbatched: bool, name: str = "state") -> tuple[np.ndarray, ...]:
    """A state, or its gradient, as a tuple of the arrays that the spec names, each (L*D, B, width) and contiguous.

    None, for the whole state or for one of its arrays, means zeros.
    """
    shapes = spec.state_shapes(B)
    if state is None:
        return tuple([np.zeros(shape, spec.dtype) for shape in shapes])
    names = [name for name, _ in spec.states]
    if len(names) == 1:
        state = (state,)
    elif not isinstance(state, tuple | list) or len(state) != len(names):
        kind = "pair" if len(names) == 2 else "tuple"
        cell, listed = spec.cell.cell.upper(), ", ".join(names)
        raise TypeError(f"expected {name} of an {cell} as a {kind} ({listed}), got {type(state).__name__}")
    checked = []
    for letter, array, shape in zip(names, state, shapes, strict=True):
        if array is None:
            array = np.zeros(shape, spec.dtype)
        else:
            label = f"{name} {letter}" if len(names) > 1 else name
            given = (shape[0], shape[2]) if unbatched else shape
            array = checked_array(label, array, given, spec.dtype)
            array = array[:, None] if unbatched else array
        checked.append(np.ascontiguousarray(array))
    return tuple(checked)


def user_state(state: tuple[np.ndarray, ...], unbatched: bool) -> State:
    """The inverse of `checked_state`: a single array by itself, several as a tuple; without batch axis if unbatched."""
    if unbatched:
        state = tuple([array[:, 0] for array in state])
    return state if len(state) > 1 else state[0]
