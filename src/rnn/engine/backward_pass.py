"""The backward pass through all layers and directions, along the tape of a forward pass: `Backward`.

    for each layer, the last first, or once for all layers of a checkpointed stack:
        enter     undo dropout and the merging of directions; make a task for each direction and shard
        tasks     dy -> dx on the threads of `parallel`, by `_core.LayerPass` or `CheckpointedStack`
        finish    add up the gradients that shards have collected in arrays of their own, in the order of the shards

Where the layers ran as a pipeline, so do their tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from ..util.checks import checked_array
from . import parallel
from .dropout import masked
from .inputs import checked_state, user_state
from .merging import unmerged
from .spec import Arrays, DirectionArrays, State
from .tape import Tape


class Backward:
    """BPTT along one tape: `run`; or group by group, to look at what the tasks return: `enter`, `tasks`, `finish`.

    dy, dstate: gradients of y and of the final state, as `engine.backward` takes them.
    gradients: the arrays that the gradients of the weights are added to.
    search: whether each task returns where the first gradient that is not finite arises, or None.
    wants_dx: whether dx is computed; of one-hot input there is none.
    Raises TypeError or ValueError for a wrong dtype or a wrong shape.
    """

    def __init__(
        self, tape: Tape, dy: Any, dstate: State, gradients: Arrays, search: bool = False, wants_dx: bool = True
    ) -> None:
        spec, batch = tape.spec, tape.batch
        if dy is None:
            dy = np.zeros(tape.y_shape, spec.dtype)
        dy = checked_array("dy", dy, tape.y_shape, spec.dtype)
        self.spec, self.tape, self.gradients, self.search, self.wants_dx = spec, tape, gradients, search, wants_dx
        self.dy: Any = batch.time_major(spec, dy)  # dy of the next layer; at the end, dx
        self.final = checked_state(spec, dstate, batch.B, batch.unbatched, "dstate")
        self.initial = tuple([np.empty_like(array) for array in self.final])
        self._clear()

    def _clear(self) -> None:
        self.tasks: list[Any] = []
        self._dx: list[np.ndarray] = []  # dx of each direction; empty if there is none
        self._x_mask: np.ndarray | None = None
        # the layer's gradients, the shard's own, the mask of W_hh, the used columns of W_ih: see `_own_gradients`
        self._own: list[tuple[DirectionArrays, DirectionArrays, np.ndarray | None, np.ndarray | None]] = []

    def run(self) -> tuple[np.ndarray | None, State]:
        """Return (dx, dstate) in the caller's layout, and add into the gradients of the parameters."""
        tape, batch = self.tape, self.tape.batch
        with tape.lock if tape.is_pipelined else nullcontext():
            for layers in reversed(tape.groups):
                k = layers[0]
                self.enter(layers)
                if k == 0 or not tape.is_pipelined:
                    parallel.run_passes(self.tasks, tape.stacks[k][0] or tape.layer_passes[k][0], "backward")
                    self.finish()
        dx = None if self.dy is None else batch.user_layout(self.spec, self.dy)
        return dx, user_state(self.initial, batch.unbatched)

    def enter(self, layers: Sequence[int]) -> None:
        """Add the tasks of a group of layers; `dy` becomes the dx that they and `finish` write for the layer below."""
        tape, spec, k, last = self.tape, self.spec, layers[0], layers[-1]
        x, n = tape.inputs[k], len(tape.batch.shards)
        self.dy = masked(self.dy, tape.between[last])
        parts = unmerged(self.dy, tape.outputs[last], spec.merge, spec.num_directions)
        has_dx = x.dtype.kind != "i" and (k > 0 or self.wants_dx)
        self._dx = [_core.new_array(x.shape, spec.dtype) for _ in parts] if has_dx else []
        self._x_mask = tape.masks[k][0].x
        for i, (layer_pass, stack) in enumerate(zip(tape.layer_passes[k], tape.stacks[k], strict=True)):
            d = i // n
            dx = self._dx[d] if has_dx else None
            own = [self._own_gradients(each, d, i % n) for each in layers]
            if stack is None:
                layer_pass.rewind()
                task = partial(layer_pass.backward, parts[d], dx, self.final, self.initial, own[0], self.search)
            else:
                task = partial(stack.backward, parts[d], dx, self.final, self.initial, own, self.search)
            self.tasks.append(task)
        self.dy = self._dx[0] if has_dx else None

    def _own_gradients(self, k: int, d: int, index: int) -> DirectionArrays:
        """Where a shard adds the gradients of layer k in direction d; `finish` adds its own arrays to the layer's."""
        gradients = self.gradients[k * self.spec.num_directions + d]
        mask = self.tape.masks[k][d].weight_hh
        used = self.tape.batch.shards[index].used_embedding_rows if k == 0 else None
        own = _shard_gradients(gradients, index, used, mask is not None)
        if own is not gradients:
            self._own.append((gradients, own, mask, used))
        return own

    def finish(self) -> None:
        """When the tasks are done: add the shards' own gradients to the layer's, and dx of the second direction."""
        tables = []
        for gradients, own, mask, used in self._own:
            pairs = list(zip(gradients, own, strict=True))
            if mask is not None and own[1] is not None:
                own[1][...] *= mask
            if used is not None:
                dw, table = pairs.pop(0)
                if dw is not None:
                    tables.append((table, used, dw))
            for gradient, mine in pairs:
                if gradient is not None and gradient is not mine:
                    gradient += mine
        if tables:
            _add_tables(tables)
        if len(self._dx) == 2:
            self._dx[0] += self._dx[1]
        if self._x_mask is not None and self._dx:
            self._dx[0] *= self._x_mask
        self._clear()


def _shard_gradients(
    gradients: DirectionArrays, index: int, used: np.ndarray | None, masks_hh: bool
) -> DirectionArrays:
    """The arrays that a shard adds its gradients to.

    The first shard adds into the layer's gradients, the others into zeros of their own, which `finish` adds in turn.
    The gradient of W_hh is apart for every shard if it has to be masked first. With one-hot input, so is that of W_ih
    (G*H, I): a table (n, G*H), a row for each column that the shard uses.
    """
    is_first = index == 0
    if is_first and used is None and not masks_hh:
        return gradients
    ih, hh, *others = gradients
    if ih is not None and used is not None:
        ih = _core.new_array((len(used), len(ih)), ih.dtype, zero=True)
    elif ih is not None and not is_first:
        ih = _zeros_like(ih)
    if hh is not None and (masks_hh or not is_first):
        hh = _zeros_like(hh)
    if not is_first:
        others = [None if g is None else _zeros_like(g) for g in others]
    return ih, hh, *others


def _zeros_like(array: np.ndarray) -> np.ndarray:
    return _core.new_array(array.shape, array.dtype, zero=True)


def _add_tables(tables: list[tuple[Any, Any, Any]]) -> None:
    """For each (table (n, G*H), columns (n,), dW_ih (G*H, I)), add the rows of the table to these columns of dW_ih."""

    def add(rows: slice) -> None:
        for table, columns, dw in tables:
            _core.add_to_columns(table[:, rows], columns, dw[rows])

    # Each task takes some rows of dW_ih, and the tables in the order of the shards. One addition into a column takes
    # about as long as 32 multiply-adds
    work = 32 * sum(table.size for table, _, _ in tables)
    parallel.run([partial(add, rows) for rows in parallel.blocks(len(tables[0][2]), work)])
