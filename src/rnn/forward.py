"""A pass forward through all layers and directions of a recurrent layer: `Forward`.

    each layer through all steps, then the next                 each direction is a `_core.Scan`
      or all at once, each a step behind the one below          on several threads, what is too small to be divided
    all layers a segment of steps at a time                     `segments.Column`, where little is to be kept

A batch is divided into walks, and these, the directions and the layers are run side by side by `threads`. What is
between layers is here: directions are merged (`merging`) and dropout is applied (`noise`). A pass for training fills a
`Tape`, along which `backward` goes the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, threads
from .inputs import FEW_INDICES, Batch, State, checked_state, user_layout, user_state
from .merging import merged, views
from .noise import NO_NOISE, Noise, draw, masked, scaled
from .segments import Column, Kept
from .tape import Tape

if TYPE_CHECKING:
    from .recurrent import Recurrent


class Forward:
    """What the layers, directions and walks of one pass share. tape: to be filled; None: inference."""

    def __init__(self, layer: Recurrent, batch: Batch, state: State, tape: Tape | None = None) -> None:
        training = tape is not None
        self.layer, self.batch, self.tape = layer, batch, tape
        self.initial = checked_state(layer, state, batch.B, batch.unbatched)
        self.final = tuple([np.empty_like(array) for array in self.initial])
        if batch.one_hot and (training or batch.x.size > FEW_INDICES):
            batch.number(layer.input_size, layer._gates * layer.hidden_size)
        self.noise, self.drops = draw(layer, batch.B, training)
        self.weights = _masked_weights(layer._weights, self.noise) if layer.weight_dropout else layer._weights
        self.at_once = layer._at_once(batch, training)
        self.waiting: list[Any] = []  # scans of layers that are to run at once

    def run(self) -> tuple[np.ndarray, State]:
        """y and the final states, as the caller lays arrays out."""
        y = self._by_columns()
        if y is None:
            y = self._by_layers()
        unbatched = self.batch.unbatched
        return user_layout(self.layer, y, unbatched), user_state(self.final, unbatched)

    # ------------------------------------------------------------ each layer through all steps

    def _by_layers(self) -> np.ndarray:
        """y of the last layer."""
        if self.tape is not None:
            self.tape.at_once = self.at_once
        y = self.batch.x
        for k in range(self.layer.num_layers):
            y = self._through(k, y)
        return y

    def _through(self, k: int, x: np.ndarray) -> np.ndarray:
        """Layer k: x -> what the layer above reads."""
        layer, tape, noise = self.layer, self.tape, self._noise_at_all_steps(k)
        is_last = k == layer.num_layers - 1
        x, y = masked(x, noise[0].x), self._new_output(is_last)
        outputs = views(y, layer._directions)
        scans = self._scans(k, x, outputs, noise)
        columns = [] if tape is None else self._kept(x, scans, tape.keep)
        self._walk(scans, columns, is_last)
        y = merged(y, outputs, layer.merge)
        mask = None if is_last else self._mask_behind(k)
        if tape is not None:
            tape.scans.append(scans)
            tape.columns.append(columns)
            tape.inputs.append(x)
            tape.outputs.append(outputs if layer.merge == "mul" else [])
            tape.masks.append(mask)
            tape.noise.append(noise)
        return masked(y, mask)

    def _noise_at_all_steps(self, k: int) -> list[Noise]:
        noise = self.noise[k]
        return noise if noise[0] is NO_NOISE else [each.at_all_steps(self.batch.T) for each in noise]

    def _mask_behind(self, k: int) -> np.ndarray | None:
        drops = self.drops[k]
        return None if drops is None else scaled(drops.whole(self.batch.T), drops.p, self.layer.dtype)

    def _scans(self, k: int, x: np.ndarray, outputs: list[np.ndarray], noise: list[Noise]) -> list[Any]:
        """All directions and walks of layer k."""
        return [self._scan(walk, k, d, x, y, noise[d]) for d, y in enumerate(outputs) for walk in self.batch.walks]

    def _kept(self, x: np.ndarray, scans: list[Any], keep: Kept) -> list[Column | None]:
        """For each scan of a layer the column that walks it in segments, or None where it now keeps its tape."""
        columns: list[Column | None] = [None] * len(scans)
        if not keep.is_all and self.layer._directions == 2:
            columns = [_column_of(scan, x, keep, len(scans) * self.layer.num_layers) for scan in scans]
        for scan, column in zip(scans, columns, strict=True):
            if column is None:
                scan.keep()
        return columns

    def _walk(self, scans: list[Any], columns: list[Column | None], is_last: bool) -> None:
        """Run the scans, or columns, of one layer; where layers run at once, with those of the last."""
        if self.waiting:
            scans[0].follow(self.waiting[-1])
        self.waiting += [column or scan for scan, column in zip(scans, columns, strict=True)] if any(columns) else scans
        if is_last or not self.at_once:
            threads.walk([each.forward for each in self.waiting], self.waiting[0])
            self.waiting = []

    # ------------------------------------------------------------ all layers a segment of steps at a time

    def _by_columns(self) -> np.ndarray | None:
        """y of the last layer; None where that is not done: in inference, in two directions, to keep the whole tape."""
        layer, tape, walks = self.layer, self.tape, self.batch.walks
        if tape is None or tape.keep.is_all or layer._directions == 2:
            return None
        y = self._new_output(True)
        columns = [self._column(walk, y) for walk in walks]
        counts = [tape.keep.segments(column, len(columns)) for column in columns]
        if not any(counts):
            return None
        for column, count in zip(columns, counts, strict=True):
            column.divide(count or 2)
        threads.run([column.forward for column in columns])
        L = layer.num_layers
        tape.stacked, tape.noise, tape.inputs = True, self.noise, [self.batch.x]
        tape.scans = [[column.scans[k] for column in columns] for k in range(L)]
        tape.columns, tape.masks, tape.outputs = [list(columns)] * L, [None] * L, [[]] * L
        return y

    def _column(self, walk: _core.Walk, y: np.ndarray) -> Column:
        """One walk through all layers: the first reads x, the last writes y."""
        x, last, noise = self.batch.x, self.layer.num_layers - 1, [each for (each,) in self.noise]
        in_scans = [each._replace(keeps_h=None, keeps_c=None) for each in noise]
        scans = [
            self._scan(walk, k, 0, None if k else x, y if k == last else None, each) for k, each in enumerate(in_scans)
        ]
        return Column(scans, x, noise, self.drops, alone=len(self.batch.walks) == 1)

    # ------------------------------------------------------------ what both do

    def _new_output(self, is_last: bool) -> np.ndarray:
        """y (T, B, D*P) of a layer, in the caller's layout if it is the last."""
        layer, T, B = self.layer, self.batch.T, self.batch.B
        width = layer._directions * layer._output_size
        if is_last and layer.batch_first:
            return _core.new_array((B, T, width), layer.dtype).swapaxes(0, 1)
        return _core.new_array((T, B, width), layer.dtype)

    def _scan(
        self, walk: _core.Walk, k: int, d: int, x: np.ndarray | None, y: np.ndarray | None, noise: Noise
    ) -> _core.Scan:
        """A walk through layer k in direction d."""
        layer, at = self.layer, k * self.layer._directions + d
        return _core.Scan(
            layer._kernel_index, layer._is_double, self.weights[at], layer._options, walk, at, layer._backwards(d),
            x, y, self.initial, self.final, self.batch.reset, noise,
        )  # fmt: skip


def _column_of(scan: _core.Scan, x: np.ndarray, keep: Kept, columns: int) -> Column | None:
    """One of so many columns that are each a walk through one layer, divided; None where all of the tape is kept."""
    column = Column([scan], x, [NO_NOISE], [], alone=False)
    count = keep.segments(column, columns)
    if count == 0:
        return None
    column.divide(count)
    return column


def _masked_weights(weights: list[tuple[Any, ...]], noise: list[list[Noise]]) -> list[tuple[Any, ...]]:
    """[layer * D + direction], with the mask onto W_hh."""
    drawn = [each.weight_hh for directions in noise for each in directions]
    return [(ih, masked(hh, mask), *rest) for (ih, hh, *rest), mask in zip(weights, drawn, strict=True)]
