"""Truncated back-propagation through time, over sequences of any length, which may be streamed from an iterator.

    steps     ... [ k1 ][ k1 ][ k1 ] newest       every k1 steps: one update
    window            [---- k2 ----]              forward, from the state before it
    loss                      [ k1 ]              of the newest steps alone, so that the loss of each step counts once
    gradient          <-------------|             back to the start of the window, and no further

For k2 = k1, windows do not overlap and each step is computed once.  Otherwise each step is computed k2 / k1 times,
since the weights have changed in between.  So the gradient is that of one function, the loss of the newest steps given
the state before the window, and does not mix old activations with new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..nn.recurrent import Recurrent
from ..util.checks import checked_array, positive_int

__all__ = ["Update", "tbptt"]

Piece = tuple[np.ndarray, ...]  # some steps of each array
Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]  # y, targets -> loss, dy


class Update(NamedTuple):
    """The result of one backward pass of `tbptt`."""

    loss: float  # of the newest steps, as the loss function returned it
    steps: int  # how many time steps have been read so far
    state: Any  # the recurrent state after them


def tbptt(
    layer: Recurrent,
    blocks: Iterable[Piece],
    loss: Loss,
    *,
    k1: int,
    k2: int | None = None,
    state: Any = None,
) -> Iterator[Update]:
    """Go through a sequence and add gradients every k1 steps, for the body of the loop to use; the state is carried on.

    >>> import numpy as np, fastrnn
    >>> layer, head = fastrnn.GRU(1, 16, rng=0), fastrnn.Linear(16, 1, rng=0)
    >>> adam = fastrnn.optim.Adam([layer, head], lr=1e-2)
    >>> def squared_error(y, targets):
    ...     o, tape = head.forward(y)
    ...     error = o - targets
    ...     return float((error**2).mean()), head.backward(tape, 2 * error / error.size)
    >>> wave = np.sin(0.3 * np.arange(3001, dtype=np.float32)).reshape(-1, 1, 1)  # (T + 1, B, I)
    >>> for update in fastrnn.training.tbptt(layer, [(wave[:-1], wave[1:])], squared_error, k1=20, k2=40):
    ...     adam.step()
    ...     for module in (layer, head):
    ...         module.zero_grad()
    >>> update.steps, update.loss < 1e-2
    (3000, True)

    layer: a fastrnn.RNN, GRU or LSTM that runs forwards only.
    blocks: an iterable of (x, targets) or (x, targets, reset), in the order of time, each of any number of steps, T in
    all. Of a generator, no more than k2 steps and one block are held at a time; for a sequence that is in memory, give
    a list of one block. x and reset are as in `layer.forward`, targets any array with the time axis where x has it.
    loss: a function of (y, targets) of up to k1 steps that returns the loss and its gradient dy with respect to y; a
    head belongs in it, forward and backward.
    k1: steps between updates; the last update has the steps that are left.
    k2: how many steps gradients go back from the newest one; at least k1; None: k1.
    state: the initial state; None: zeros.

    Yields an `Update` after each backward pass. Gradients are added into `layer.grads`: zero them after use.
    Raises TypeError or ValueError for k1 or k2 out of range, for a layer that runs backwards, and whatever `forward`
    and `backward` raise.
    Source: R. J. Williams and J. Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, Neural Computation 2 (1990), BPTT(h; h') with h = k2 and h' = k1.
    """
    k1 = positive_int("k1", k1)
    k2 = k1 if k2 is None else positive_int("k2", k2)
    if k2 < k1:
        raise ValueError(f"expected k2 >= k1 = {k1}, got {k2}")
    if layer.bidirectional or layer.reverse:
        raise ValueError("expected a layer that runs forwards alone, got one that needs the end of the sequence first")
    return _updates(layer, blocks, loss, k1, k2, state)


def _updates(layer: Recurrent, blocks: Any, loss: Loss, k1: int, k2: int, state: Any) -> Iterator[Update]:
    context: list[Piece] = []  # x and reset of up to k2 - k1 steps before the newest; `state` is the state before them
    steps = 0
    for x, targets, *reset in _pieces(layer, blocks, k1):
        axis = _time_axis(layer, x)
        window = _joined([*context, (x, *reset)], axis)
        total, newest = window[0].shape[axis], x.shape[axis]
        leaving = max(0, total - (k2 - k1))  # how many steps later the next window begins
        tapes, outputs, after = [], [], state
        for start, end in ((0, leaving), (leaving, total)):
            if start < end:
                part = _cut(window, start, end, axis)
                y, after, tape = layer.forward(part[0], after, reset=part[1] if reset else None)
                tapes.append((start, end, tape))
                outputs.append((y,))
            if end == leaving:
                state = after
        (y,) = _joined(outputs, axis)
        (y_newest,) = _cut((y,), total - newest, total, axis)
        value, dy_newest = loss(y_newest, targets)
        dy = np.zeros_like(y)
        _cut((dy,), total - newest, total, axis)[0][...] = checked_array("dy", dy_newest, y_newest.shape, layer.dtype)
        dstate = None
        for start, end, tape in reversed(tapes):
            _, dstate = layer.backward(tape, _cut((dy,), start, end, axis)[0], dstate)
        steps += newest
        yield Update(value, steps, after)
        context = [_copied(_cut(window, leaving, total, axis))] if leaving < total else []


def _pieces(layer: Recurrent, blocks: Iterable[Piece], k1: int) -> Iterator[Piece]:
    """Cut and join the blocks into pieces of k1 steps; the last piece has the steps that are left."""
    parts: list[Piece] = []
    missing, axis = k1, 0
    for block in blocks:
        block = tuple(np.asarray(array) for array in block)
        axis = _checked_time_axis(layer, block)
        start, total = 0, block[0].shape[axis]
        while start < total:
            end = min(start + missing, total)
            parts.append(_cut(block, start, end, axis))
            missing -= end - start
            start = end
            if missing == 0:
                yield _joined(parts, axis)
                parts, missing = [], k1
        parts = [_copied(part) for part in parts]  # the generator may reuse the memory for the next block
    if parts:
        yield _joined(parts, axis)


def _time_axis(layer: Recurrent, x: np.ndarray) -> int:
    batched = x.ndim == (2 if x.dtype.kind in "iu" else 3)
    return 1 if layer.batch_first and batched else 0


def _checked_time_axis(layer: Recurrent, block: Piece) -> int:
    if len(block) not in (2, 3):
        raise ValueError(f"expected blocks (x, targets) or (x, targets, reset), got one of {len(block)} arrays")
    axis = _time_axis(layer, block[0])
    shapes = [array.shape for array in block]
    if any(len(shape) <= axis or shape[axis] != shapes[0][axis] for shape in shapes):
        raise ValueError(f"expected blocks of arrays with as many steps on axis {axis}, got shapes {shapes}")
    return axis


def _cut(arrays: Piece, start: int, end: int, axis: int) -> Piece:
    return tuple(array[start:end] if axis == 0 else array[:, start:end] for array in arrays)


def _joined(parts: Sequence[Piece], axis: int) -> Piece:
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(arrays, axis) for arrays in zip(*parts, strict=True))


def _copied(arrays: Piece) -> Piece:
    return tuple(array.copy() for array in arrays)
