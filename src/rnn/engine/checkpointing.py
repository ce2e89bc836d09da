"""Checkpointed BPTT: how much of a forward pass is kept for its backward pass. Either all saved activations are kept,
or only the states at the borders of segments, and backward recomputes the rest.

    checkpoint=None      everything: four arrays of y's size for a GRU, five for an LSTM, none for an RNN
    checkpoint=n         the states at the borders of n segments of steps; backward recomputes one segment at a time
    checkpoint="auto"    as many segments as cost little time and little memory
    memory_limit=bytes   as few segments as stay below the limit

All layers of a checkpointed stack go through one segment before the next one begins. So what lies between layers (y,
its gradient, the masks of dropout) is held for one segment only:

    forward     for each segment:            for each layer, the first one first: run it, give y to the layer above
    backward    for each segment, the last one first:
                                             for each layer, the first one first: run it again, saving activations
                    for each chunk of steps, the last one first:
                                             for each layer, the last one first: go back, give dx to the layer below

On several threads, a batch that is too small to be divided still keeps two of them busy. In forward, each layer is a
segment behind the one below; in backward, one segment is recomputed while the one after it goes back.

h(t) of the last layer is in y, which the caller holds. For the layers below, h is kept at the borders, and so is c of
an LSTM. In a bidirectional layer each direction first needs its own end of the y below, so y has to be whole: each
layer, direction and shard is then a stack of its own. All ways give the same gradients to the bit: see (E) at the head
of `_core.pyx`.

Source: A. Gruslys et al., Memory-efficient backpropagation through time, NIPS 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .. import _core
from ..util.checks import positive_int
from . import parallel
from .dropout import DropoutMasks, StepMask, scaled

Window = tuple[np.ndarray, int]  # an array (M, n, N) of M steps, and the step that it begins with


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """What the caller asked for with `checkpoint` and `memory_limit`, checked."""

    count: int | None  # number of segments; 0: none, the activations of all steps are saved; None: "auto"
    limit: int | None  # bytes for all stacks together; if given, it decides instead of `count`

    @classmethod
    def checked(cls, checkpoint: Any, memory_limit: Any) -> CheckpointPolicy:
        """The policy for these arguments of `forward`; raises TypeError or ValueError for invalid ones."""
        if isinstance(checkpoint, str) and checkpoint != "auto":
            raise ValueError(f"expected checkpoint to be a number of segments, 'auto' or None, got {checkpoint!r}")
        count = 0 if checkpoint is None else None if checkpoint == "auto" else positive_int("checkpoint", checkpoint)
        if memory_limit is None:
            return cls(count, None)
        if count:
            raise ValueError(f"expected checkpoint or memory_limit, got both: {checkpoint} and {memory_limit}")
        return cls(count, positive_int("memory_limit", memory_limit))

    @property
    def keeps_all(self) -> bool:
        return self.count == 0 and self.limit is None

    def segments(self, stack: CheckpointedStack, stacks: int) -> int:
        """The number of segments of one stack, where so many stacks share the limit; 0 if all activations are saved."""
        if not stack.needs_saved:
            return 0
        if self.limit is None:
            return stack.usual_count if self.count is None else self.count
        count, tried = 0, []
        while (needed := stack.memory(count)) * stacks > self.limit:
            tried.append(needed)
            if count >= stack.total:
                raise ValueError(f"expected memory_limit of at least {min(tried) * stacks} bytes, got {self.limit}")
            count = max(2, 2 * count)
        return count


class CheckpointedStack:
    """The layer passes of one shard that go through each segment together: those of all layers, or of a single one.

    layer_passes: one of each layer. The first reads x and the last writes y; between them are windows of a `Workspace`.
    x: what the first layer reads, (T, B, I).  masks: the dropout masks of each layer.  between: the dropout masks
    behind each layer but the last.  alone: whether no other stack runs at the same time.
    """

    threads: ClassVar[int] = 1  # its steps are not shared by a team

    def __init__(
        self,
        layer_passes: Sequence[Any],
        x: np.ndarray,
        masks: Sequence[DropoutMasks],
        between: Sequence[StepMask | None],
        alone: bool,
    ) -> None:
        self.layer_passes, self.x = layer_passes, x
        self.shard: _core.PackedBatch = layer_passes[0].shard
        self.backwards: bool = layer_passes[0].backwards
        self.masks, self.between = masks, [None, *between]  # between[k]: the mask below layer k
        self.x_masks = [None if each.x is None else each.x[self.shard.sorted_indices] for each in masks]
        self.h = [layer_pass.h0.copy() for layer_pass in layer_passes[:-1]]
        self.c = [layer_pass.c for layer_pass in layer_passes]
        self.alone = alone
        self.total: int = layer_passes[0].total

    # ------------------------------------------------------------ how many segments

    @property
    def needs_saved(self) -> bool:
        """Whether backward needs more than x and y."""
        return self.total > 0 and (len(self.layer_passes) > 1 or self.layer_passes[0].row_bytes > 0)

    @property
    def usual_count(self) -> int:
        """The number of segments for "auto"; 0 if there would be fewer than two.

        A segment is one chunk, or sqrt(T) steps if that is more: then the borders take no more memory than a segment.
        """
        rows = max(1, self.layer_passes[0].chunk_rows, self.shard.n * int(self.shard.T**0.5))
        return -(-self.total // rows) if self.total >= 2 * rows else 0

    def divide(self, count: int) -> None:
        """Cut the steps into about so many segments; to be called before `forward`."""
        self.cuts, self.begin = self._divided(count)
        states = [self._states(k) for k in range(len(self.layer_passes))]
        self.borders = [[[state.copy() for state in each] for each in states] for _ in self.begin[1:]]

    def _divided(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first steps of all chunks, and T; the first steps of all segments, and T."""
        before = np.arange(-1, self.total, self.layer_passes[0].chunk_rows)  # the last packed row before each chunk
        cuts = _distinct(np.append(self.shard.step_of(before) + 1, self.shard.T))
        chunks = len(cuts) - 1
        count = min(count, max(1, chunks))  # no segment is shorter than a chunk
        return cuts, cuts[_distinct(np.arange(count + 1) * chunks // count)]

    def _states(self, k: int) -> list[np.ndarray]:
        """The present state of layer k in forward: h (not of the last layer, whose h is in y), and c of an LSTM."""
        return [*self.h[k : k + 1], *(c for c in self.c[k : k + 1] if c is not None)]

    def memory(self, count: int) -> int:
        """Bytes of saved activations and of all that lies between layers, with so many segments; 0: with none."""
        if count == 0:
            return self._bytes(self.shard.T, self.total, self.shard.T)
        cuts, begin = self._divided(count)
        states = sum(state.nbytes for k in range(len(self.layer_passes)) for state in self._states(k))
        windows = self._bytes(_longest(begin), _longest(self.shard.first_row(begin)), _longest(cuts))
        return (len(begin) - 1) * states + self._workspaces * windows

    def _bytes(self, steps: int, rows: int, back: int) -> int:
        """Bytes of windows for so many steps, or packed rows, and of the gradients between layers for `back` steps."""
        y, n = self.layer_passes[0].h0.nbytes, self.shard.n  # y: bytes of one layer's y at one step
        of_step = y * (len(self.layer_passes) - 1)
        for masks, x_mask, between in zip(self.masks, self.x_masks, self.between, strict=True):
            if x_mask is not None:
                of_step += 2 * x_mask.nbytes  # x in the order of the shard, and x masked
            if between is not None:
                of_step += 2 * y  # y masked, and the mask
            # the mask of a segment is made before that of the segment before it is freed
            step_masks = (between, masks.zoneout_h, masks.zoneout_c)
            of_step += 2 * n * sum(mask.n for mask in step_masks if mask is not None)
        of_rows = rows * sum(layer_pass.row_bytes for layer_pass in self.layer_passes)
        return of_rows + steps * of_step + back * y * min(2, len(self.layer_passes) - 1)

    # ------------------------------------------------------------ the passes

    @property
    def _workspaces(self) -> int:
        """Number of workspaces: 2 to overlap recompute with backward, else 1.

        With zoneout it is 1: recompute overwrites y of the last layer, which differs from its final value for a moment,
        so that no other thread may read it meanwhile.
        """
        has_zoneout = any(masks.zoneout_h is not None for masks in self.masks)
        return 2 if self.alone and parallel.get_num_threads() > 1 and not has_zoneout else 1

    @property
    def work(self) -> int:
        """Multiply-adds of all steps of all its layers."""
        return sum(layer_pass.work for layer_pass in self.layer_passes)

    def forward(self) -> None:
        """Run all steps: write y of the last layer, the final states, and the states at the borders."""
        passes = [_core.SegmentForward(layer_pass) for layer_pass in self.layer_passes]
        if self.total:
            self._through(passes)
        for each, h in zip(passes, [*self.h, None], strict=True):
            each.end(h)

    def _through(self, passes: list[_core.SegmentForward]) -> None:
        """Take all layers through all segments; with two workspaces, each layer is a segment behind the one below."""
        workspaces, count = [Workspace(self) for _ in range(self._workspaces)], len(self.begin) - 1
        for turn in range(count + len(passes) - 1):
            segments = [(k, turn - k) for k in reversed(range(len(passes))) if 0 <= turn - k < count]
            _run(
                [partial(self._advance, k, i, passes[k], workspaces[i % len(workspaces)]) for k, i in segments],
                workspaces,
            )

    def _advance(self, k: int, i: int, forward: _core.SegmentForward, workspace: Workspace) -> None:
        """Take layer k through segment i."""
        for border, state in zip(self.borders[i][k], self._states(k), strict=True):
            border[...] = state
        s0, s1 = self.begin[i : i + 2]
        forward.set_windows(**workspace.of_layer(k, i))
        forward.run(s0, s1)
        if k < len(self.h):
            self._last(workspace.y[k], s0, s1, self.h[k])

    def _last(self, y: np.ndarray, s0: int, s1: int, h: np.ndarray) -> None:
        """Write into h (n, P) the h after the last step of each sequence in the window y of steps [s0 - 1, s1)."""
        count = np.minimum(self.shard.lengths, s1) - s0
        (running,) = np.nonzero(count > 0)
        h[running] = y[count[running], running]

    def _recompute(self, i: int, passes: list[_core.SegmentForward], workspace: Workspace) -> None:
        """Run forward through segment i again, now saving activations; passes: those of the first layers, or of all."""
        for k, each in enumerate(passes):
            workspace.windows[k] = workspace.of_layer(k, i) | {"saved": workspace.saved_of(k, i)}
            if k + 1 < len(self.layer_passes) or self.layer_passes[k].row_bytes:  # else y is all that backward needs
                each.set_windows(**workspace.windows[k])
                each.run(*self.begin[i : i + 2])

    def backward(
        self, dy: np.ndarray, dx: np.ndarray | None, final: Any, initial: Any, gradients: Any, search: bool = False
    ) -> Any:
        """BPTT with the arguments of `LayerPass.backward`; gradients: those of each layer.

        A search returns (layer, step, row, blocks) for the layer nearest to y in which anything is found, or None.
        """
        last = len(self.layer_passes) - 1
        passes = [
            _core.SegmentBackward(
                layer_pass, dy if k == last else None, None if k else dx, final, initial, gradients[k]
            )
            for k, layer_pass in enumerate(self.layer_passes)
        ]
        found = self._through_back(passes, search) if self.total else None
        if found is None:
            for each in passes:
                each.end()
        return found

    def _through_back(self, passes: list[_core.SegmentBackward], search: bool) -> Any:
        """Take all layers back through all segments; with two workspaces, recompute the segment before meanwhile."""
        workspaces = [Workspace(self) for _ in range(self._workspaces)]
        again = [_core.SegmentForward(layer_pass) for layer_pass in self.layer_passes]
        found, last = None, len(self.begin) - 2
        self._recompute(last, again, workspaces[last % len(workspaces)])
        for i in range(last, -1, -1):
            tasks: list[Any] = [partial(self._back, i, passes, workspaces[i % len(workspaces)], search, found)]
            if i:
                tasks.append(partial(self._recompute, i - 1, again, workspaces[(i - 1) % len(workspaces)]))
            found, *_ = _run(tasks, workspaces)
        return found

    def _back(self, i: int, passes: list[_core.SegmentBackward], workspace: Workspace, search: bool, found: Any) -> Any:
        """Take all layers back through segment i. In a search, go on only above the layer in which something was found,
        and return what is found."""
        lowest = 0 if found is None else found[0] + 1
        first, last = np.searchsorted(self.cuts, self.begin[i : i + 2])
        for s0, s1 in reversed(list(pairwise(self.cuts[first : last + 1]))):
            dy = None  # of the last layer: the dy that the caller gave
            for k in reversed(range(lowest, len(passes))):
                passes[k].set_windows(**workspace.windows[k], dy=dy, dx=(workspace.gradient(k), s0) if k else None)
                result = passes[k].run(s0, s1, search)
                if result is not None:
                    found, lowest = (k, *result), k + 1  # the layers above may hold an earlier cause
                    break
                if k:
                    dy = workspace.masked_gradient(k, i, s0, s1)
        return found

    def recomputed(
        self, layer_pass: Any
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """For each segment: its first step and its end, the activations that one of the layer passes saves, c (packed
        rows), and h (rows, P), which is None for the last layer, whose h is in y."""
        k = self.layer_passes.index(layer_pass)
        again, workspace = [_core.SegmentForward(each) for each in self.layer_passes[: k + 1]], Workspace(self)
        for i, (s0, s1) in enumerate(pairwise(self.begin) if self.total else ()):
            self._recompute(i, again, workspace)
            h = None if k + 1 == len(self.layer_passes) else self.shard.packed(workspace.y[k][1:], s0, s1)
            saved, c, *_ = workspace.saved_of(k, i)
            yield s0, s1, saved, c, h


class Workspace:
    """The windows of a stack: arrays (steps, n, width) that hold one segment, or one chunk, and then the next."""

    def __init__(self, stack: CheckpointedStack) -> None:
        self.stack = stack
        steps, back = _longest(stack.begin), _longest(stack.cuts)
        self.y = [self._window(steps + 1) for _ in stack.h]  # each begins with h before the segment
        self.dx = [self._window(back) for _ in stack.h[:2]]  # the layers take them in turns
        # for each layer: the dropout mask below it, and x with its masks applied
        self.dropped = [None if between is None else self._window(steps) for between in stack.between]
        self.x = [self._window(steps, self._masked_width(k)) for k in range(len(stack.layer_passes))]
        self.saved: list[Any] = [None] * len(stack.layer_passes)
        self.windows: list[dict[str, Any]] = [{} for _ in stack.layer_passes]  # arguments of `set_windows`, by layer

    def _masked_width(self, k: int) -> int:
        """The width of the window for masked x of layer k; 0 if x is not masked."""
        x_mask, h = self.stack.x_masks[k], self.stack.layer_passes[0].h0
        return x_mask.shape[1] if x_mask is not None else 0 if self.dropped[k] is None else h.shape[1]

    def _window(self, steps: int, width: int | None = None) -> np.ndarray:
        """A new window of so many steps; as wide as h if no width is given."""
        h, shard = self.stack.layer_passes[0].h0, self.stack.shard
        zero = shard.is_ragged  # masks are multiplied onto the padding too, which has to hold numbers
        return _core.new_array((steps, shard.n, h.shape[1] if width is None else width), h.dtype, zero)

    def of_layer(self, k: int, i: int) -> dict[str, Any]:
        """The windows that layer k reads and writes in segment i; y of the layer below must be there already."""
        s0, s1 = self.stack.begin[i : i + 2]
        windows: dict[str, Any] = {"x": self._x(k, s0, s1)}
        if k < len(self.y):
            self.y[k][0] = self.stack.borders[i][k][0]
            windows["y"] = self.y[k], s0 - 1
        for name in ("zoneout_h", "zoneout_c"):
            mask = getattr(self.stack.masks[k], name)
            if mask is not None:
                windows[name] = mask.at(*self._places(s0, s1)), s0
        return windows

    def _x(self, k: int, s0: int, s1: int) -> Window | None:
        """The window that layer k reads, masked; None if that is the caller's x as it is."""
        of, between, dropped = self.stack, self.stack.between[k], self.dropped[k]
        x_mask = of.x_masks[k]
        masks: list[np.ndarray] = []
        if between is not None and dropped is not None:
            masks.append(dropped[: s1 - s0])
            scaled(between.at(*self._places(s0, s1)), between.p, dropped.dtype, out=masks[0])
        if x_mask is not None:
            masks.append(x_mask)
        if not masks:
            return (self.y[k - 1], s0 - 1) if k else None
        x = self.y[k - 1][1 : s1 - s0 + 1] if k else of.x[self._places(s0, s1)]
        for mask in masks:
            x = np.multiply(x, mask, out=self.x[k][: s1 - s0])
        return self.x[k], s0

    def _places(self, s0: int, s1: int) -> tuple[np.ndarray, np.ndarray]:
        return self.stack.shard.places(s0, s1, self.stack.backwards)

    def saved_of(self, k: int, i: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, int]:
        """Arrays for the saved activations and c of layer k, c before segment i, and the first step of the segment."""
        of = self.stack
        if self.saved[k] is None:
            self.saved[k] = of.layer_passes[k].new_saved(_longest(of.shard.first_row(of.begin)))
        saved, c = self.saved[k]
        return saved, c, None if c is None else of.borders[i][k][-1], of.begin[i]

    def gradient(self, k: int) -> np.ndarray:
        """Where layer k > 0 writes dx of a chunk.

        It needs no clearing between chunks: backward comes to earlier chunks later, and in these at least as many
        sequences run, so that what is padding now has never been written.
        """
        return self.dx[(k - 1) % 2]

    def masked_gradient(self, k: int, i: int, s0: int, s1: int) -> Window:
        """The dx that layer k wrote for steps [s0, s1), with the masks applied: dy of the layer below."""
        window, first = self.gradient(k), self.stack.begin[i]
        if self.stack.x_masks[k] is not None:
            window[: s1 - s0] *= self.stack.x_masks[k]
        dropped = self.dropped[k]
        if dropped is not None:
            window[: s1 - s0] *= dropped[s0 - first : s1 - first]
        return window, s0


def _run(tasks: list[Any], workspaces: list[Workspace]) -> list[Any]:
    """The results of the tasks. With one workspace they run one after the other, since later tasks overwrite what
    earlier ones read."""
    return parallel.run(tasks) if len(workspaces) > 1 else [task() for task in tasks]


def _distinct(rising: np.ndarray) -> np.ndarray:
    """The numbers of a rising array without repetitions. NumPy's `unique` would first import a megabyte of modules."""
    return rising[np.diff(rising, prepend=-1) > 0]


def _longest(begin: np.ndarray) -> int:
    return int(np.diff(begin).max(initial=0))
