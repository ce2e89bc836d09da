"""What a training pass leaves for its backward pass, and for a look at the gates of every step: `Tape`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from . import tuning
from .checkpointing import CheckpointedStack, CheckpointPolicy
from .dropout import DropoutMasks
from .inputs import Batch
from .spec import Arrays, LayerSpec


@dataclass(slots=True)
class Tape:
    """What `backward` needs of one call of `forward`; give it back to the layer that made it."""

    spec: LayerSpec
    weights: Arrays
    batch: Batch
    policy: CheckpointPolicy  # whether all activations are saved, or segments are recomputed
    layer_passes: list[list[_core.LayerPass]] = field(default_factory=list)  # [layer][direction and shard]
    stacks: list[list[CheckpointedStack | None]] = field(default_factory=list)  # the same; None: all is saved
    inputs: list[np.ndarray] = field(default_factory=list)  # x of each layer, (T, B, ...)
    outputs: list[list[np.ndarray]] = field(default_factory=list)  # y of each direction; only if merged by "mul"
    between: list[np.ndarray | None] = field(default_factory=list)  # dropout masks behind each layer
    masks: list[list[DropoutMasks]] = field(default_factory=list)  # [layer][direction]: masks within the layers
    is_stacked: bool = False  # whether each checkpointed stack has all layers
    is_pipelined: bool = False  # whether the layers ran at the same time, each a step behind the one below
    y_shape: tuple[int, ...] = ()
    lock: Any = field(
        default_factory=threading.Lock
    )  # of a pipeline, whose layers wait for each other: see Backward.run

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """Layers that a backward pass goes through together."""
        L = self.spec.num_layers
        return [range(L)] if self.is_stacked else [(k,) for k in range(L)]

    def gates(self, layer: int = 0, direction: int = 0) -> dict[str, np.ndarray]:
        """The activations of the gates at every step, by name, each (T, B, H), zero in padding.

        >>> import numpy as np, fastrnn
        >>> lstm = fastrnn.LSTM(3, 8, rng=0)
        >>> y, state, tape = lstm.forward(np.ones((5, 2, 3), np.float32))
        >>> {name: array.shape for name, array in tape.gates().items()}
        {'i': (5, 2, 8), 'f': (5, 2, 8), 'g': (5, 2, 8), 'o': (5, 2, 8), 'c': (5, 2, 8)}

        An LSTM has i, f, g, o and the cell state c; a GRU has r, z, n; an RNN has none, since its h is y.
        layer, direction: which one, counted from 0.  Raises IndexError if there is none.
        """
        shape = (self.batch.T, self.batch.B, self.spec.hidden_size)
        names = [*self.spec.cell.saved, *(name for name, _ in self.spec.states[1:])]
        found = {name: np.zeros(shape, self.spec.dtype) for name in names}
        for steps, rows, values in self.saved_activations(layer, direction):
            for name, array in found.items():
                array[steps, rows] = values[name]
        return found

    def passes_of(self, layer: int, direction: int) -> list[tuple[_core.LayerPass, CheckpointedStack | None]]:
        """The layer passes of one layer in one direction, each with its checkpointed stack, or None."""
        n = len(self.batch.shards)
        some = slice(direction * n, (direction + 1) * n)
        if not self.layer_passes[layer][some]:
            raise IndexError(f"expected a direction below {len(self.layer_passes[layer]) // n}, got {direction}")
        return list(zip(self.layer_passes[layer][some], self.stacks[layer][some], strict=True))

    def saved_activations(
        self, layer: int, direction: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Yield (time steps, batch rows, {name: (rows, H)} of h and the saved activations), some thousand rows each."""
        H, names = self.spec.hidden_size, self.spec.cell.saved
        for layer_pass, stack in self.passes_of(layer, direction):
            shard = layer_pass.shard
            whole = [(0, shard.T, layer_pass.saved, layer_pass.c, None)]
            segments: Any = whole if stack is None else stack.recomputed(layer_pass)
            for s0, s1, saved, c, h in segments:
                first, end = shard.first_row(s0), shard.first_row(s1)
                for start in range(first, end, tuning.INSPECTED_ROWS):
                    stop = min(start + tuning.INSPECTED_ROWS, end)
                    steps, rows = shard.where(start, stop, layer_pass.backwards)
                    part = slice(start - first, stop - first)
                    values = {name: saved[part, g * H : (g + 1) * H] for g, name in enumerate(names)}
                    for k, (name, _) in enumerate(self.spec.states[1:]):
                        values[name] = c[part, k * H : (k + 1) * H]
                    values["h"] = h[part] if h is not None else layer_pass.y[steps, rows]  # type: ignore[index]
                    yield steps, rows, values
