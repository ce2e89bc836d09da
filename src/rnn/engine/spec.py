"""`LayerSpec`: all that the engine has to know about a recurrent layer. Its arrays are arguments of each call.

weights      for each layer and direction, in the order [layer * D + direction], the arrays that `ARRAYS` names, each
             as torch stores it, or None where the layer has none
gradients    the same for the arrays that a backward pass adds gradients to
state        the arrays that `states` names, each (L*D, B, width)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .. import _core

# In the order of `Weights` and `Norms` in kernels/sequence.hpp
ARRAYS = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", "gain_ih", "gain_hh", "gain_c",
    "bias_c",
)  # fmt: skip

DirectionArrays = tuple[np.ndarray | None, ...]  # arrays of one layer and direction, in the order of ARRAYS
Arrays = Sequence[DirectionArrays]  # [layer * D + direction]
State = Any  # the form that callers see: h (L*D, B, H), or (h, c) for an LSTM


class CellRow(NamedTuple):
    """A row of the kernel table: its number, and what its columns hold."""

    number: int
    cell: str  # whose equations it computes
    gates: int
    states: list[str]
    saved: list[str]  # the first columns of the saved activations, H wide each
    gradients: list[tuple[str, int]]  # name and place of the blocks of dgates, as backward makes them


@dataclass(frozen=True)
class LayerSpec:
    """A stack of layers of one cell: sizes, directions, options, and the row of the kernel table that computes it.

    Letters: I input_size, H hidden_size, L num_layers, D num_directions, G gates, P output_size (H, or a projection).
    """

    kernel: str  # name of the row of the kernel table, see `_core.cells`
    input_size: int
    hidden_size: int
    states: tuple[tuple[str, int], ...]  # name and width of each state; the first is h, the output of the layer
    num_layers: int = 1
    num_directions: int = 1
    reverse: bool = False  # the only direction runs from the end to the start
    batch_first: bool = False
    merge: str = "concat"
    dtype: np.dtype[Any] = np.dtype(np.float32)  # noqa: RUF009
    activations: tuple[tuple[int, float, float], ...] = ()  # kind, alpha, beta
    clip: float | None = None
    grad_clip: float | None = None
    coupled: bool = False
    dropout: float = 0.0
    weight_dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)  # of h, of c

    @cached_property
    def cell(self) -> CellRow:
        """The row of the kernel table: its number, and the names of what it saves."""
        return CellRow(*_core.cells()[self.kernel])

    @cached_property
    def gates(self) -> int:
        return self.cell.gates

    @cached_property
    def is_double(self) -> bool:
        return self.dtype == np.float64

    @cached_property
    def output_size(self) -> int:
        """Width P of h."""
        return self.states[0][1]

    @cached_property
    def merged_size(self) -> int:
        """Width of y of a layer, with its directions merged."""
        return self.output_size * (self.num_directions if self.merge == "concat" else 1)

    @cached_property
    def has_dropout(self) -> bool:
        """Whether there is dropout or zoneout within a layer in training."""
        return bool(self.weight_dropout or self.input_dropout or self.recurrent_dropout or any(self.zoneout))

    @cached_property
    def step_work(self) -> int:
        """Multiply-adds of a step of one sequence in the first layer: one for each number of W_ih and W_hh."""
        return self.gates * self.hidden_size * (self.input_size + self.hidden_size)

    def layer_input_size(self, k: int) -> int:
        """Width of the input of layer k."""
        return self.input_size if k == 0 else self.merged_size

    def runs_backwards(self, d: int) -> bool:
        """Whether direction d runs from the end to the start."""
        return d == 1 or self.reverse

    def suffix(self, k: int, d: int) -> str:
        """What the names of layer k's parameters in direction d end in, as in torch."""
        return f"_l{k}_reverse" if d else f"_l{k}"

    def state_shapes(self, B: int) -> list[tuple[int, int, int]]:
        """The shape of each state for a batch of B sequences."""
        return [(self.num_layers * self.num_directions, B, width) for _, width in self.states]

    def arrays(self, named: Mapping[str, np.ndarray]) -> list[DirectionArrays]:
        """Parameters or gradients, given by name, in the form that the passes take."""
        return [
            tuple(named.get(name + self.suffix(k, d)) for name in ARRAYS)
            for k in range(self.num_layers)
            for d in range(self.num_directions)
        ]

    @cached_property
    def kernel_options(self) -> dict[str, Any]:
        """The options that the kernels take beside arrays."""
        return {
            "activations": self.activations,
            "clip": math.inf if self.clip is None else self.clip,
            "grad_clip": math.inf if self.grad_clip is None else self.grad_clip,
            "coupled": self.coupled,
            "zoneout": self.zoneout,
        }
