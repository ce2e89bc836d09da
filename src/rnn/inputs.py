"""What a call gives to a layer: checked once, and brought into the layout that the kernels walk.

All errors about x, states, lengths, reset masks and gradients are raised here, before anything is computed.  The
layout is that of kernels/sequence.hpp: arrays are never transposed, sorted or reversed; `rows` describes where each
row lies instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from .module import checked_array

Rows = tuple[
    np.ndarray, np.ndarray, int
]  # array, offset of each batch row, step from one time to the next; in elements


# One-hot input: where all of W_ih is fewer numbers than this, a table of it costs less than to find the columns needed;
WORTH_NUMBERING = 1 << 16
# and an inference of so few rows takes the columns from where they are
FEW_INDICES = 64


@dataclass(slots=True)
class Walk:
    """Some sequences of a batch by falling length: what one thread walks, step by step."""

    T: int
    members: np.ndarray  # (n,) their batch rows
    lengths: np.ndarray | None  # (n,) int64, falling; None: all T
    start: np.ndarray  # (T+1,) number of (step, row) pairs before each step
    whole: bool  # the batch as it is
    columns: np.ndarray | None = None  # (n,) of W_ih, if one-hot x holds places among these; None: columns themselves

    @property
    def n(self) -> int:
        return len(self.members)

    def take(self, state: np.ndarray) -> np.ndarray:
        """A contiguous copy of the members' rows of state (B, N)."""
        return state.copy() if self.whole else state[self.members]

    def put(self, values: np.ndarray, state: np.ndarray) -> None:
        """The other way: the members' rows of state (B, N) := values (n, N)."""
        state[slice(None) if self.whole else self.members] = values

    def rows(self, array: np.ndarray, backwards: bool) -> Rows:
        """Where the rows of array (T, B, ...) lie, in the order of the walk."""
        per_step, per_row = (stride // array.itemsize for stride in array.strides[:2])
        offsets = self.members * per_row
        if not backwards:
            return array, offsets, per_step
        lengths = self.T if self.lengths is None else self.lengths
        return array, offsets + (lengths - 1) * per_step, -per_step

    def places(self, s0: int, s1: int, backwards: bool) -> tuple[np.ndarray, np.ndarray]:
        """(time (M, 1) or (M, n), batch row (n,)) of steps [s0, s1) of each sequence, whether it runs then or not."""
        steps = np.arange(s0, s1)[:, None]
        if backwards:
            steps = (self.T if self.lengths is None else self.lengths) - 1 - steps
        return steps, self.members

    def packed(self, window: np.ndarray, s0: int, s1: int) -> np.ndarray:
        """Those rows of a window (M, n, N) of steps [s0, s1) that run then."""
        active = np.diff(self.start[s0 : s1 + 1])
        packed: np.ndarray = window[: s1 - s0][np.arange(self.n) < active[:, None]]
        return packed

    def where(self, backwards: bool) -> tuple[np.ndarray, np.ndarray]:
        """(time, batch row) of each packed row."""
        counts = np.diff(self.start)
        steps = np.repeat(np.arange(self.T), counts)
        places = np.arange(len(steps)) - np.repeat(self.start[:-1], counts)
        if backwards:
            steps = (self.T if self.lengths is None else self.lengths[places]) - 1 - steps
        return steps, self.members[places]

    def final_cell_state(self, c: np.ndarray, initial: np.ndarray) -> np.ndarray:
        """c (n, H) at the true end of each sequence, from that of every step (packed rows)."""
        if self.T == 0:
            return initial
        if self.lengths is None:
            return c[self.start[self.T - 1] :]
        final, running = initial.copy(), self.lengths > 0
        final[running] = c[(self.start[np.maximum(self.lengths - 1, 0)] + np.arange(self.n))[running]]
        return final


@dataclass(slots=True)
class Batch:
    """The input of a call in time-major form, and how it is divided among walks."""

    x: np.ndarray  # (T, B, I) of the layer's dtype, or int64 (T, B): indices of one-hot rows, see `number`
    lengths: np.ndarray | None  # (B,) int64
    reset: np.ndarray | None  # (T, B) uint8
    unbatched: bool  # the caller gave no batch axis
    walks: list[Walk]

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
            if walk.start[-1] < columns and columns * width >= WORTH_NUMBERING:
                at = walk.where(backwards=False)
                walk.columns, x[at] = np.unique(self.x[at], return_inverse=True)
            else:
                walk.columns, x[:, walk.members] = np.arange(columns), self.x[:, walk.members]
        self.x = x

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array for all steps, which the walks fill but for the padding: that is zero."""
        return _core.new_array(shape, dtype, zero=self.lengths is not None)

    def last(self, y: np.ndarray, initial: np.ndarray, backwards: bool) -> np.ndarray:
        """The final h (B, P): y (T, B, P) at the end of the walk; the initial one where a sequence is empty."""
        if self.T == 0:
            return initial
        if self.lengths is None:
            last: np.ndarray = y[0 if backwards else -1]
            return last
        at = np.zeros_like(self.lengths) if backwards else np.maximum(self.lengths - 1, 0)
        h: np.ndarray = np.where(self.lengths[:, None] > 0, y[at, np.arange(self.B)], initial)
        return h


def divide(T: int, B: int, lengths: np.ndarray | None, parts: int) -> list[Walk]:
    """The batch dealt out to so many walks, each with long and short sequences."""
    order = np.arange(B) if lengths is None else np.argsort(-lengths, kind="stable")
    walks = []
    for part in range(parts):
        members = np.ascontiguousarray(order[part::parts]) if parts > 1 else order
        if lengths is None:
            walks.append(Walk(T, members, None, np.arange(T + 1) * len(members), parts == 1))
            continue
        falling = lengths[members]
        active = len(members) - np.searchsorted(falling[::-1], np.arange(T), side="right")  # how many lengths are > t
        start = np.concatenate([[0], np.cumsum(active)]).astype(np.int64)
        walks.append(Walk(T, members, falling, start, whole=False))
    return walks


def walkable(array: np.ndarray) -> np.ndarray:
    """The array itself if the kernels can walk it: aligned, rows contiguous; else a copy."""
    strides_fit = all(stride % array.itemsize == 0 for stride in array.strides)
    rows_fit = array.ndim < 3 or array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if array.flags.aligned and strides_fit and rows_fit else array.copy()


def checked_batch(layer: Any, x: Any, lengths: Any, reset: Any) -> Batch:
    """x, lengths and reset of a call to `layer`; raises TypeError or ValueError that says what was expected."""
    x = np.asarray(x)
    one_hot = x.dtype.kind in "iu"
    if not one_hot and x.dtype != layer.dtype:
        raise TypeError(f"expected x of dtype {layer.dtype}, or of an integer dtype, got {x.dtype}")
    axes = ["B", "T"] if layer.batch_first else ["T", "B"]
    features = [] if one_hot else [str(layer.input_size)]
    rank = len(axes + features)
    if x.ndim not in (rank - 1, rank) or (not one_hot and x.shape[-1] != layer.input_size):
        kind = "integer x" if one_hot else "x"
        batched, unbatched = (", ".join(names + features) for names in (axes, ["T"]))
        raise ValueError(f"expected {kind} of shape ({batched}), or ({unbatched}) unbatched, got {x.shape}")
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
    walks = divide(T, B, lengths, layer._parts(T, B))
    return Batch(walkable(x), lengths, reset, is_unbatched, walks)


def time_major(layer: Any, x: np.ndarray, unbatched: bool) -> np.ndarray:
    """The caller's array (T, B, ...), (B, T, ...) or (T, ...) as a view (T, B, ...)."""
    if unbatched:
        return x[:, None]
    return x.swapaxes(0, 1) if layer.batch_first else x


def _checked_lengths(lengths: Any, T: int, B: int) -> np.ndarray | None:
    if lengths is None:
        return None
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"expected lengths of an integer dtype, got {lengths.dtype}")
    if lengths.shape != (B,):
        raise ValueError(f"expected lengths of shape ({B},), got {lengths.shape}")
    if B and not (lengths.min() >= 0 and lengths.max() <= T):
        raise ValueError(f"expected lengths from 0 to T = {T}, got {lengths.min()} to {lengths.max()}")
    return lengths.astype(np.int64)


def _check_indices(x: np.ndarray, lengths: np.ndarray | None, input_size: int) -> None:
    """Indices must lie in [0, I); those in the padding are not looked at."""
    counted = x if lengths is None else x[np.arange(x.shape[0])[:, None] < lengths]
    if counted.size and not (counted.min() >= 0 and counted.max() < input_size):
        raise ValueError(f"expected integer x from 0 to {input_size - 1}, got {counted.min()} to {counted.max()}")


def checked_state(layer: Any, state: Any, B: int, unbatched: bool, name: str = "state") -> tuple[np.ndarray, ...]:
    """A state, or its gradient, as (h,) or (h, c), each (L*D, B, width); zeros for None."""
    widths = layer._state_widths
    count = layer.num_layers * layer._directions
    if state is None:
        return tuple(np.zeros((count, B, width), layer.dtype) for width in widths)
    if len(widths) == 1:
        state = (state,)
    elif not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"expected {name} of an LSTM as a pair (h, c), got {type(state).__name__}")
    shapes = [(count, width) if unbatched else (count, B, width) for width in widths]
    checked = (
        checked_array(f"{name} {letter}" if len(widths) == 2 else name, array, shape, layer.dtype)
        for letter, array, shape in zip("hc", state, shapes, strict=False)
    )
    return tuple(array[:, None] if unbatched else array for array in checked)
