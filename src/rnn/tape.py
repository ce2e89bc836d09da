"""What a training pass leaves to the backward pass, and to those who look at what went on inside: `Tape`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .inputs import Batch
from .noise import Noise
from .segments import Column, Kept

if TYPE_CHECKING:
    from .recurrent import Recurrent

_KEPT = {"rnn": "", "gru": "rzn", "lstm": "ifgoc"}  # what the tape of a scan begins with, in this order, and c
_PIECE = 1 << 12  # rows


@dataclass(slots=True)
class Tape:
    """What `backward` needs of one call to `forward`; to be given back to the layer that made it."""

    layer: Recurrent
    batch: Batch
    keep: Kept  # how much is kept
    scans: list[list[Any]] = field(default_factory=list)  # [layer][direction and walk]
    columns: list[list[Column | None]] = field(default_factory=list)  # where the scans are walked in segments
    inputs: list[np.ndarray] = field(default_factory=list)  # x of each layer, (T, B, ...)
    outputs: list[list[np.ndarray]] = field(default_factory=list)  # y of each direction, where merged by "mul"
    masks: list[np.ndarray | None] = field(default_factory=list)  # dropout behind each layer
    noise: list[list[Noise]] = field(default_factory=list)  # [layer][direction]: what else was dropped
    stacked: bool = False  # whether each column goes through all layers
    at_once: bool = False  # whether the layers ran at once, each a step behind the one below
    y_shape: tuple[int, ...] = ()

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """Layers that a backward pass walks together."""
        L = self.layer.num_layers
        return [range(L)] if self.stacked else [(k,) for k in range(L)]

    def gates(self, layer: int = 0, direction: int = 0) -> dict[str, np.ndarray]:
        """What went on inside: the activations of the gates at every step, by name, each (T, B, H), zero in padding.

        >>> import numpy as np, fastrnn
        >>> lstm = fastrnn.LSTM(3, 8, rng=0)
        >>> y, state, tape = lstm.forward(np.ones((5, 2, 3), np.float32))
        >>> {name: array.shape for name, array in tape.gates().items()}
        {'i': (5, 2, 8), 'f': (5, 2, 8), 'g': (5, 2, 8), 'o': (5, 2, 8), 'c': (5, 2, 8)}

        LSTM: i, f, g, o and the cell state c. GRU: r, z, n. RNN: none, its h is y.
        layer k, direction d: which one.  Raises IndexError if there is none.
        """
        shape = (self.batch.T, self.batch.B, self.layer.hidden_size)
        found = {name: np.zeros(shape, self.layer.dtype) for name in _KEPT[self.layer.cell]}
        for steps, rows, values in self.walked(layer, direction):
            for name, array in found.items():
                array[steps, rows] = values[name]
        return found

    def scans_of(self, layer: int, direction: int) -> list[tuple[Any, Column | None]]:
        """The scans of one layer in one direction, each with the column that it is in."""
        n = len(self.batch.walks)
        some = slice(direction * n, (direction + 1) * n)
        if not self.scans[layer][some]:
            raise IndexError(f"expected a direction below {len(self.scans[layer]) // n}, got {direction}")
        return list(zip(self.scans[layer][some], self.columns[layer][some], strict=True))

    def walked(self, layer: int, direction: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """(time steps, batch rows, h and what was kept of them by name (rows, H)), some thousand rows of a walk at a
        time."""
        H, names = self.layer.hidden_size, _KEPT[self.layer.cell]
        for scan, column in self.scans_of(layer, direction):
            walk = scan.walk
            pieces = [(0, walk.T, scan.tape, scan.c, None)] if column is None else column.replayed(scan)
            for s0, s1, kept, c, h in pieces:
                first, end = walk.first_row(s0), walk.first_row(s1)
                for start in range(first, end, _PIECE):
                    stop = min(start + _PIECE, end)
                    steps, rows = walk.where(start, stop, scan.backwards)
                    part = slice(start - first, stop - first)
                    values = {name: kept[part, g * H : (g + 1) * H] for g, name in enumerate(names) if name != "c"}
                    if c is not None:
                        values["c"] = c[part]
                    values["h"] = scan.y[steps, rows] if h is None else h[part]
                    yield steps, rows, values
