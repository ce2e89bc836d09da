"""A pass back through all layers and directions of a recurrent layer, along the tape of a pass forward: `Backward`.

    for each layer, the last first, or once for a stack that was walked in segments:
        enter     undo dropout and the merging of directions; a task for each direction and walk
        tasks     side by side, by `threads`: dy -> dx, by the backward passes of `_core.Scan` or `segments.Column`
        finish    add up what each walk has added by itself, in the order of the walks

Where layers ran at once, so do their tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from . import _core, threads
from .inputs import State, checked_state, time_major, user_layout, user_state, walkable
from .merging import unmerged
from .module import checked_array
from .noise import masked
from .tape import Tape

Gradients = tuple[Any, ...]  # of one layer and direction, in the order of `Recurrent._arrays`


class Backward:
    """BPTT along one tape: `run`; or group by group, to look at what the tasks return: `enter`, `tasks`, `finish`.

    dy, dstate: gradients of y and of the final state, as `Recurrent.backward` takes them.
    search: the tasks return where values that are not finite arise, or None.
    Raises TypeError or ValueError for a wrong dtype or a wrong shape.
    """

    def __init__(self, tape: Tape, dy: Any, dstate: State, search: bool = False) -> None:
        layer, batch = tape.layer, tape.batch
        if dy is None:
            dy = np.zeros(tape.y_shape, layer.dtype)
        dy = checked_array("dy", dy, tape.y_shape, layer.dtype)
        self.layer, self.tape, self.search = layer, tape, search
        self.dy: Any = walkable(time_major(layer, dy, batch.unbatched))  # of the layer that comes next; in the end dx
        self.final = checked_state(layer, dstate, batch.B, batch.unbatched, "dstate")
        self.initial = tuple([np.empty_like(array) for array in self.final])
        self._clear()

    def _clear(self) -> None:
        self.tasks: list[Any] = []
        self._dx: list[np.ndarray] = []  # of each direction; none of one-hot input
        self._x_mask: np.ndarray | None = None
        self._own: list[tuple[Gradients, Gradients, np.ndarray | None, np.ndarray | None]] = []  # see `_own_gradients`

    def run(self) -> tuple[np.ndarray | None, State]:
        """(dx, dstate) as the caller lays arrays out; adds into the gradients of the parameters."""
        tape, unbatched = self.tape, self.tape.batch.unbatched
        for layers in reversed(tape.groups):
            k = layers[0]
            self.enter(layers)
            if k == 0 or not tape.at_once:
                threads.walk(self.tasks, tape.columns[k][0] or tape.scans[k][0])
                self.finish()
        dx = None if self.dy is None else user_layout(self.layer, self.dy, unbatched)
        return dx, user_state(self.initial, unbatched)

    def enter(self, layers: Sequence[int]) -> None:
        """Add the tasks of a group of layers; `dy` becomes what they, and `finish`, make it for the layer below."""
        tape, layer, k, last = self.tape, self.layer, layers[0], layers[-1]
        x, n = tape.inputs[k], len(tape.batch.walks)
        self.dy = masked(self.dy, tape.masks[last])
        parts = unmerged(self.dy, tape.outputs[last], layer.merge, layer._directions)
        one_hot = x.ndim == 2
        self._dx = [] if one_hot else [_core.new_array(x.shape, layer.dtype) for _ in parts]
        self._x_mask = tape.noise[k][0].x
        for i, (scan, column) in enumerate(zip(tape.scans[k], tape.columns[k], strict=True)):
            d = i // n
            dx = None if one_hot else self._dx[d]
            sums = [self._own_gradients(each, d, i % n) for each in layers]
            if column is None:
                scan.rewind()
                task = partial(scan.backward, parts[d], dx, self.final, self.initial, sums[0], self.search)
            else:
                task = partial(column.backward, parts[d], dx, self.final, self.initial, sums, self.search)
            self.tasks.append(task)
        self.dy = None if one_hot else self._dx[0]

    def _own_gradients(self, k: int, d: int, index: int) -> Gradients:
        """Where a walk adds the gradients of layer k in direction d; noted, if not into those themselves."""
        gradients = self.layer._gradients[k * self.layer._directions + d]
        mask = self.tape.noise[k][d].weight_hh
        columns = self.tape.batch.walks[index].columns if k == 0 else None
        own = _walk_gradients(gradients, index, columns, mask is not None)
        if own is not gradients:
            self._own.append((gradients, own, mask, columns))
        return own

    def finish(self) -> None:
        """When the tasks are done: add up what the walks have added by themselves, and the parts of dx."""
        tables = []
        for gradients, own, mask, columns in self._own:
            pairs = list(zip(gradients, own, strict=True))
            if mask is not None:
                own[1][...] *= mask
            if columns is not None:
                dw, table = pairs.pop(0)
                tables.append((table, columns, dw))
            for gradient, mine in pairs:
                if gradient is not None and gradient is not mine:
                    gradient += mine
        if tables:
            _add_tables(tables)
        if len(self._dx) == 2:
            self._dx[0] += self._dx[1]
        if self._x_mask is not None:
            self._dx[0] *= self._x_mask
        self._clear()


def _walk_gradients(gradients: Gradients, index: int, columns: np.ndarray | None, masks_hh: bool) -> Gradients:
    """Where a walk adds: the first into the gradients themselves, the others into arrays that are added in turn.

    So does the first where the gradient of W_hh is yet to be masked. With one-hot input, that of W_ih (G*H, I) is for
    every walk a table (n, G*H) of the columns that it needs.
    """
    is_first = index == 0
    if is_first and columns is None and not masks_hh:
        return gradients
    ih, hh, *others = gradients
    if columns is not None:
        ih = _core.new_array((len(columns), len(ih)), ih.dtype, zero=True)
    elif not is_first:
        ih = _zeros_like(ih)
    if masks_hh or not is_first:
        hh = _zeros_like(hh)
    if not is_first:
        others = [None if g is None else _zeros_like(g) for g in others]
    return ih, hh, *others


def _zeros_like(array: np.ndarray) -> np.ndarray:
    return _core.new_array(array.shape, array.dtype, zero=True)


def _add_tables(tables: list[tuple[np.ndarray, Any, Any]]) -> None:
    """For each (table (n, G*H), columns (n,), dW_ih (G*H, I)):  those columns of dW_ih += the rows of the table."""

    def add(rows: slice) -> None:
        for table, columns, dw in tables:
            _core.add_to_columns(table[:, rows], columns, dw[rows])

    # by blocks of rows of dW_ih, each in the order of the walks; a sum takes as long as some 32 multiply-adds
    work = 32 * sum(table.size for table, _, _ in tables)
    threads.run([partial(add, rows) for rows in threads.blocks(len(tables[0][2]), work)])
