"""How much of a forward pass is kept for its backward pass: all, or so little that backward runs forward again.

    checkpoint=None      the tape of every step: four arrays of y's size for a GRU, five for an LSTM, none for an RNN
    checkpoint=n         the states at the borders of n segments of steps; backward makes the tape of one at a time
    checkpoint="auto"    as many segments as cost little time and little memory
    memory_limit=bytes   no more segments than it takes to stay below

A segment is walked through all layers of a stack, so that what is between them, y, its gradient and the masks of
dropout, is there for a segment only:

    forward     for each segment:            for each layer, from the first: run, y to the layer above
    backward    for each segment, the last first:
                                             for each layer, from the first: the same again, which now keeps the tape
                    for each chunk of steps, the last first:
                                             for each layer, from the last: back, dx to the layer below

On several threads, a batch that is too small to be divided is still walked by two: forward, each layer is a segment
behind the one below; backward, one segment runs forward again while the one after it goes back.

y of the last layer, which the caller holds, has its h(t); of the layers below, h is kept at the borders, and so is c of
an LSTM. Two directions need the whole y of the layer below, each at its own end first: there a layer is a stack by
itself. The gradients are the same bits each way: see (E) at the head of `_core.pyx`.

Source: A. Gruslys et al., Memory-efficient backpropagation through time, NIPS 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from . import _core, threads
from .checks import positive_int
from .noise import Noise, StepMask, scaled

_Window = tuple[np.ndarray, int]  # (M, n, N), and the step that it begins with


@dataclass(frozen=True, slots=True)
class Kept:
    """What the caller asked for, checked."""

    count: int | None  # of segments: 0, one tape of all steps; None: "auto"
    limit: int | None  # bytes of all columns together, which then decides in place of the count

    @classmethod
    def checked(cls, checkpoint: Any, memory_limit: Any) -> Kept:
        """Raises TypeError or ValueError for anything but the arguments of `forward`."""
        if isinstance(checkpoint, str) and checkpoint != "auto":
            raise ValueError(f"expected checkpoint to be a number of segments, 'auto' or None, got {checkpoint!r}")
        count = 0 if checkpoint is None else None if checkpoint == "auto" else positive_int("checkpoint", checkpoint)
        if memory_limit is None:
            return cls(count, None)
        if count:
            raise ValueError(f"expected checkpoint or memory_limit, got both: {checkpoint} and {memory_limit}")
        return cls(count, positive_int("memory_limit", memory_limit))

    @property
    def is_all(self) -> bool:
        return self.count == 0 and self.limit is None

    def segments(self, column: Column, columns: int) -> int:
        """For one of so many columns that divide the limit between them: its number of segments, 0 for a whole tape."""
        if not column.needs_tape:
            return 0
        if self.limit is None:
            return column.usual_count if self.count is None else self.count
        count, tried = 0, []
        while (needed := column.memory(count)) * columns > self.limit:
            tried.append(needed)
            if count >= column.total:
                raise ValueError(f"expected memory_limit of at least {min(tried) * columns} bytes, got {self.limit}")
            count = max(2, 2 * count)
        return count


class Column:
    """One walk through the layers of a stack, or through one of them, a segment at a time.

    scans: of each layer; the first has x and the last y, what the others read and write are windows here.
    x: what the first layer reads, (T, B, I).  noise: of each layer, its masks of each step and of x.  drops: what is
    dropped behind each layer but the last.  alone: no other column runs at the same time.
    """

    threads: ClassVar[int] = 1  # that may share a step: no crew helps

    def __init__(
        self,
        scans: Sequence[Any],
        x: np.ndarray,
        noise: Sequence[Noise],
        drops: Sequence[StepMask | None],
        alone: bool,
    ) -> None:
        self.scans, self.x = scans, x
        self.walk: _core.Walk = scans[0].walk
        self.backwards: bool = scans[0].backwards
        self.noise, self.drops = noise, [None, *drops]  # those below each layer
        self.x_masks = [None if each.x is None else each.x[self.walk.members] for each in noise]
        self.h = [scan.h0.copy() for scan in scans[:-1]]
        self.c = [scan.c for scan in scans]
        self.alone = alone
        self.total: int = scans[0].total

    # ------------------------------------------------------------ how many segments

    @property
    def needs_tape(self) -> bool:
        """Whether backward needs anything but x and y."""
        return self.total > 0 and (len(self.scans) > 1 or self.scans[0].row_bytes > 0)

    @property
    def usual_count(self) -> int:
        """Of segments, so that little is kept; 0 where there would be less than two.

        A segment is a chunk of steps at least. Those of sqrt(T) steps keep as much at their borders as within.
        """
        rows = max(1, self.scans[0].chunk_rows, self.walk.n * int(self.walk.T**0.5))
        return -(-self.total // rows) if self.total >= 2 * rows else 0

    def divide(self, count: int) -> None:
        """Before `forward`: into about so many segments."""
        self.cuts, self.begin = self._divided(count)
        states = [self._states(k) for k in range(len(self.scans))]
        self.borders = [[[state.copy() for state in each] for each in states] for _ in self.begin[1:]]

    def _divided(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """First steps of the chunks, and T; those of the segments, and T."""
        before = np.arange(-1, self.total, self.scans[0].chunk_rows)  # the last row before each chunk of rows
        cuts = _distinct(np.append(self.walk.step_of(before) + 1, self.walk.T))
        chunks = len(cuts) - 1
        count = min(count, max(1, chunks))  # none is shorter than a chunk
        return cuts, cuts[_distinct(np.arange(count + 1) * chunks // count)]

    def _states(self, k: int) -> list[np.ndarray]:
        """h, but of the last layer, and c, if there is one, as far as forward has come."""
        return [*self.h[k : k + 1], *(c for c in self.c[k : k + 1] if c is not None)]

    def memory(self, count: int) -> int:
        """Bytes of the tape and of all that is between layers, in so many segments; 0: of all steps."""
        if count == 0:
            return self._bytes(self.walk.T, self.total, self.walk.T)
        cuts, begin = self._divided(count)
        states = sum(state.nbytes for k in range(len(self.scans)) for state in self._states(k))
        windows = self._bytes(_longest(begin), _longest(self.walk.first_row(begin)), _longest(cuts))
        return (len(begin) - 1) * states + self._rooms * windows

    def _bytes(self, steps: int, rows: int, back: int) -> int:
        """Of windows of so many steps, or rows, and of the gradients of `back` steps."""
        y, n = self.scans[0].h0.nbytes, self.walk.n  # y: of one layer at one step
        of_step = y * (len(self.scans) - 1)
        for noise, x_mask, drops in zip(self.noise, self.x_masks, self.drops, strict=True):
            if x_mask is not None:
                of_step += 2 * x_mask.nbytes  # masked, and x of the caller in the order of the walk
            if drops is not None:
                of_step += 2 * y  # masked, and the mask
            # a mask is made before that of another segment is let go
            of_step += 2 * n * sum(mask.n for mask in (drops, noise.keeps_h, noise.keeps_c) if mask is not None)
        of_rows = rows * sum(scan.row_bytes for scan in self.scans)
        return of_rows + steps * of_step + back * y * min(2, len(self.scans) - 1)

    # ------------------------------------------------------------ the passes

    @property
    def _rooms(self) -> int:
        """How many segments have windows at a time. With zoneout, y of the last layer is for a moment not what it was
        when forward runs again, so that nothing else may read it then."""
        noisy = any(noise.keeps_h is not None for noise in self.noise)
        return 2 if self.alone and threads.get_num_threads() > 1 and not noisy else 1

    def forward(self) -> None:
        """Run all steps: y of the last layer, the final states, and the states at the borders."""
        passes = [_core.ForwardPass(scan) for scan in self.scans]
        if self.total:
            self._through(passes)
        for each, h in zip(passes, [*self.h, None], strict=True):
            each.end(h)

    def _through(self, passes: list[_core.ForwardPass]) -> None:
        """All layers through all segments, on two threads each a segment behind the one below."""
        rooms, count = [_Room(self) for _ in range(self._rooms)], len(self.begin) - 1
        for turn in range(count + len(passes) - 1):
            segments = [(k, turn - k) for k in reversed(range(len(passes))) if 0 <= turn - k < count]
            _run([partial(self._advance, k, i, passes[k], rooms[i % len(rooms)]) for k, i in segments], rooms)

    def _advance(self, k: int, i: int, forward: _core.ForwardPass, room: _Room) -> None:
        """Layer k through segment i."""
        for border, state in zip(self.borders[i][k], self._states(k), strict=True):
            border[...] = state
        s0, s1 = self.begin[i : i + 2]
        forward.see(**room.of_layer(k, i))
        forward.run(s0, s1)
        if k < len(self.h):
            self._last(room.y[k], s0, s1, self.h[k])

    def _last(self, y: np.ndarray, s0: int, s1: int, h: np.ndarray) -> None:
        """h (n, P) := h after the last step of each sequence in the window y of steps [s0 - 1, s1)."""
        count = np.minimum(self.walk.lengths, s1) - s0
        (running,) = np.nonzero(count > 0)
        h[running] = y[count[running], running]

    def _replay(self, i: int, passes: list[_core.ForwardPass], room: _Room) -> None:
        """Forward through segment i again, by the passes of the first layers, keeping the tape."""
        for k, each in enumerate(passes):
            room.seen[k] = room.of_layer(k, i) | {"kept": room.kept(k, i)}
            if k + 1 < len(self.scans) or self.scans[k].row_bytes:  # else y has all that backward needs
                each.see(**room.seen[k])
                each.run(*self.begin[i : i + 2])

    def backward(
        self, dy: np.ndarray, dx: np.ndarray | None, final: Any, initial: Any, gradients: Any, search: bool = False
    ) -> Any:
        """BPTT as by `Scan.backward`, with the gradients of each layer.

        In a search, what it returns begins with the layer: that nearest to y in which anything is found.
        """
        last = len(self.scans) - 1
        passes = [
            _core.BackwardPass(scan, dy if k == last else None, None if k else dx, final, initial, gradients[k])
            for k, scan in enumerate(self.scans)
        ]
        found = self._through_back(passes, search) if self.total else None
        if found is None:
            for each in passes:
                each.end()
        return found

    def _through_back(self, passes: list[_core.BackwardPass], search: bool) -> Any:
        """All layers back through all segments, on two threads while forward runs again through the one before."""
        rooms = [_Room(self) for _ in range(self._rooms)]
        again = [_core.ForwardPass(scan) for scan in self.scans]
        found, last = None, len(self.begin) - 2
        self._replay(last, again, rooms[last % len(rooms)])
        for i in range(last, -1, -1):
            tasks: list[Any] = [partial(self._back, i, passes, rooms[i % len(rooms)], search, found)]
            if i:
                tasks.append(partial(self._replay, i - 1, again, rooms[(i - 1) % len(rooms)]))
            found, *_ = _run(tasks, rooms)
        return found

    def _back(self, i: int, passes: list[_core.BackwardPass], room: _Room, search: bool, found: Any) -> Any:
        """All layers back through segment i, in a search those above the layer where something is found: what is."""
        lowest = 0 if found is None else found[0] + 1
        first, last = np.searchsorted(self.cuts, self.begin[i : i + 2])
        for s0, s1 in reversed(list(pairwise(self.cuts[first : last + 1]))):
            dy = None  # the caller's
            for k in reversed(range(lowest, len(passes))):
                passes[k].see(**room.seen[k], dy=dy, dx=(room.gradient(k), s0) if k else None)
                result = passes[k].run(s0, s1, search)
                if result is not None:
                    found, lowest = (k, *result), k + 1  # the layers above may hold an earlier cause
                    break
                if k:
                    dy = room.masked_gradient(k, i, s0, s1)
        return found

    def replayed(self, scan: Any) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """For each segment: its steps, the tape, c, and h (rows, P), if that is in no y, of one of the scans."""
        k = self.scans.index(scan)
        again, room = [_core.ForwardPass(each) for each in self.scans[: k + 1]], _Room(self)
        for i, (s0, s1) in enumerate(pairwise(self.begin) if self.total else ()):
            self._replay(i, again, room)
            h = None if k + 1 == len(self.scans) else self.walk.packed(room.y[k][1:], s0, s1)
            tape, c, *_ = room.kept(k, i)
            yield s0, s1, tape, c, h


class _Room:
    """The windows of a column: arrays (steps, n, width) that hold a segment, or a chunk of steps, and then the next."""

    def __init__(self, column: Column) -> None:
        self.column = column
        steps, back = _longest(column.begin), _longest(column.cuts)
        self.y = [self._window(steps + 1) for _ in column.h]  # begins with h before the segment
        self.dx = [self._window(back) for _ in column.h[:2]]  # taken in turns
        # of each layer: the dropout mask below it, and x so masked
        self.dropped = [None if drops is None else self._window(steps) for drops in column.drops]
        self.x = [self._window(steps, self._masked_width(k)) for k in range(len(column.scans))]
        self.tapes: list[Any] = [None] * len(column.scans)
        self.seen: list[dict[str, Any]] = [{} for _ in column.scans]  # by the layers' passes

    def _masked_width(self, k: int) -> int:
        """Of x of layer k; 0 if it is not masked."""
        x_mask, h = self.column.x_masks[k], self.column.scans[0].h0
        return x_mask.shape[1] if x_mask is not None else 0 if self.dropped[k] is None else h.shape[1]

    def _window(self, steps: int, width: int | None = None) -> np.ndarray:
        """As wide as h, unless said otherwise."""
        h, walk = self.column.scans[0].h0, self.column.walk
        zero = walk.is_ragged  # then there is padding, which masks are multiplied onto, too
        return _core.new_array((steps, walk.n, h.shape[1] if width is None else width), h.dtype, zero)

    def of_layer(self, k: int, i: int) -> dict[str, Any]:
        """What layer k reads and writes in segment i, with the y of the layer below that is there now."""
        s0, s1 = self.column.begin[i : i + 2]
        seen: dict[str, Any] = {"x": self._x(k, s0, s1)}
        if k < len(self.y):
            self.y[k][0] = self.column.borders[i][k][0]
            seen["y"] = self.y[k], s0 - 1
        for name in ("keeps_h", "keeps_c"):
            mask = getattr(self.column.noise[k], name)
            if mask is not None:
                seen[name] = mask.at(*self._places(s0, s1)), s0
        return seen

    def _x(self, k: int, s0: int, s1: int) -> _Window | None:
        """None: the caller's x as it is."""
        of, drops, dropped = self.column, self.column.drops[k], self.dropped[k]
        x_mask = of.x_masks[k]
        masks: list[np.ndarray] = []
        if drops is not None and dropped is not None:
            masks.append(dropped[: s1 - s0])
            scaled(drops.at(*self._places(s0, s1)), drops.p, dropped.dtype, out=masks[0])
        if x_mask is not None:
            masks.append(x_mask)
        if not masks:
            return (self.y[k - 1], s0 - 1) if k else None
        x = self.y[k - 1][1 : s1 - s0 + 1] if k else of.x[self._places(s0, s1)]
        for mask in masks:
            x = np.multiply(x, mask, out=self.x[k][: s1 - s0])
        return self.x[k], s0

    def _places(self, s0: int, s1: int) -> tuple[np.ndarray, np.ndarray]:
        return self.column.walk.places(s0, s1, self.column.backwards)

    def kept(self, k: int, i: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, int]:
        """Tape and c of layer k, c before segment i, and the first step of it."""
        of = self.column
        if self.tapes[k] is None:
            self.tapes[k] = of.scans[k].room(_longest(of.walk.first_row(of.begin)))
        tape, c = self.tapes[k]
        return tape, c, None if c is None else of.borders[i][k][-1], of.begin[i]

    def gradient(self, k: int) -> np.ndarray:
        """Where layer k > 0 writes dx of a chunk. A place that one chunk writes is written in each chunk before it too,
        where no sequence has ended sooner: what is padding now is still zero, as in a new window."""
        return self.dx[(k - 1) % 2]

    def masked_gradient(self, k: int, i: int, s0: int, s1: int) -> _Window:
        """What it wrote, as dy of the layer below."""
        window, first = self.gradient(k), self.column.begin[i]
        if self.column.x_masks[k] is not None:
            window[: s1 - s0] *= self.column.x_masks[k]
        dropped = self.dropped[k]
        if dropped is not None:
            window[: s1 - s0] *= dropped[s0 - first : s1 - first]
        return window, s0


def _run(tasks: list[Any], rooms: list[_Room]) -> list[Any]:
    """The results of the tasks: with one room in their order, since the first of them read what others write over."""
    return threads.run(tasks) if len(rooms) > 1 else [task() for task in tasks]


def _distinct(rising: np.ndarray) -> np.ndarray:
    """Without repetitions. NumPy's `unique` would first import a megabyte."""
    return rising[np.diff(rising, prepend=-1) > 0]


def _longest(begin: np.ndarray) -> int:
    return int(np.diff(begin).max(initial=0))
