"""`Call`: what a call of a module says, carried out by the engine on arrays, and the tape that it leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .. import _core, engine
from ..engine import DirectionArrays, LayerSpec, State, Tape

__all__ = ["Call", "Layout", "SmallTape", "arranged", "one_or_all", "torch_layout"]

# For each layer and direction: where, among a module's weights, each of engine.ARRAYS stands; None: there is no such
Layout = tuple[tuple[int | None, ...], ...]


@lru_cache(maxsize=1024)
def torch_layout(parts: int, has_bias: bool, has_projection: bool) -> Layout:
    """The layout of torch's modules, whose weights are weight_ih, weight_hh, bias_ih, bias_hh and weight_hr."""
    names = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * has_bias, *["weight_hr"] * has_projection]
    return tuple(
        tuple(part * len(names) + names.index(name) if name in names else None for name in engine.ARRAYS)
        for part in range(parts)
    )


def arranged(layout: Layout, arrays: Sequence[np.ndarray | None]) -> list[DirectionArrays]:
    """A module's weights, or their gradients, as the engine takes them."""
    return [tuple([None if at is None else arrays[at] for at in row]) for row in layout]


_SOONER_CELLS = {"rnn_tanh": 0, "rnn_relu": 0, "gru": 1 << 17, "lstm": 1 << 16}  # see `Call.is_sooner_in_torch`


class Call(NamedTuple):
    """What a call says beside tensors of numbers.

    form: how the arrays lie that torch has: "engine", as the engine takes them; "batch first", x and y (B, T, ...);
    "cell", x (B, I) and states (B, H) of one step, without y.
    """

    spec: LayerSpec
    layout: Layout
    form: str
    operator: str | None  # torch's own, of torch._VF
    has_bias: bool
    states: int  # how many are given: all or none
    batch_sizes: Tensor | None = None  # of packed x
    lengths: np.ndarray | None = None
    reset: np.ndarray | None = None
    seed: int | None = None  # of dropout; None: nothing is dropped

    @property
    def is_padded(self) -> bool:
        """Whether all sequences have all time steps, and nothing happens within them."""
        return self.batch_sizes is None and self.lengths is None and self.reset is None

    def is_sooner_in_torch(self, x: Tensor) -> bool:
        """Whether torch's operators make a training pass sooner: of so few steps that packing large weights does not
        pay. Found by measurement, with multiply-adds of a step as the measure of weights."""
        if self.form == "cell":
            return self.spec.step_work >= _SOONER_CELLS.get(self.operator or "", math.inf)
        if self.operator not in ("rnn_tanh", "rnn_relu", "gru") or not self.is_padded:
            return False
        T = x.shape[1 if self.form == "batch first" else 0]
        return self.spec.step_work >= T * T << 17

    def infer(
        self,
        weights: list[DirectionArrays],
        x: np.ndarray,
        states: Sequence[np.ndarray],
        small: _core.SmallInference | None,
    ) -> list[np.ndarray]:
        """The outputs, nothing being kept."""
        x, state = self.axes(x), one_or_all(self._engine_states(states))
        done = small.run(x, state) if small is not None and self.is_padded else None
        return self.outputs(*(done or engine.infer(self.spec, weights, x, state, **self._time())))

    def forward(
        self,
        weights: list[DirectionArrays],
        x: np.ndarray,
        states: Sequence[np.ndarray],
        small: _core.SmallTraining | None = None,
    ) -> tuple[list[np.ndarray], Tape | SmallTape]:
        """The outputs, and the tape."""
        x, states = self.axes(x), self._engine_states(states)
        if small is not None and self.is_padded and self.seed is None:
            done = small.forward(x, states)
            if done is not None:
                y, final, passes = done
                return self.outputs(y, final), SmallTape(small, passes)
        rng = None if self.seed is None else np.random.default_rng(self.seed)
        y, final, tape = engine.forward(self.spec, weights, x, one_or_all(states), **self._time(), rng=rng)
        y.flags.writeable = True  # it is torch's now, which notices when it is written into before backward
        return self.outputs(y, final), tape

    def backward(
        self,
        tape: Tape | SmallTape,
        grads: Sequence[np.ndarray | None],
        gradients: list[DirectionArrays],
        wants_dx: bool,
    ) -> tuple[np.ndarray | None, list[np.ndarray]]:
        """dx and the gradients of the states, from those of the outputs; those of the weights are added."""
        dy, finals = (None, grads) if self.form == "cell" else (grads[0], grads[1:])
        dy, finals = None if dy is None else self.axes(dy), self._engine_states(finals)
        if isinstance(tape, SmallTape):
            dx, dstate = tape.small.backward(tape.passes, dy, finals, gradients, wants_dx)
        else:
            dx, dstate = engine.backward(tape, dy, one_or_all(finals), gradients, wants_dx)
        given = self.outputs(dx, dstate)[-len(self.spec.states) :] if self.states else []
        return None if dx is None else self._axes_back(dx), given

    def _time(self) -> dict[str, Any]:
        sizes = None if self.batch_sizes is None else self.batch_sizes.numpy()
        return {"lengths": self.lengths, "reset": self.reset, "batch_sizes": sizes}

    def axes(self, array: np.ndarray) -> np.ndarray:
        """x or dy with the axes of the engine."""
        if self.form == "engine":
            return array
        return array[None] if self.form == "cell" else array.swapaxes(0, 1)

    def _axes_back(self, array: np.ndarray) -> np.ndarray:
        """y or dx with the axes of torch."""
        if self.form == "engine":
            return array
        return array[0] if self.form == "cell" else array.swapaxes(0, 1)

    def _engine_states(self, states: Sequence[Any]) -> tuple[Any, ...]:
        """States, or their gradients, as the engine takes them."""
        if self.form != "cell" or not states:
            return tuple(states)
        return tuple([None if state is None else state[None] for state in states])

    def outputs(self, y: Any, final: State) -> list[np.ndarray]:
        """(y, *final states) as torch has them; of a cell, the states alone."""
        finals = final if isinstance(final, tuple) else (final,)
        if self.form == "engine":
            return [y, *finals]
        if self.form == "cell":
            return [state[0] for state in finals]
        return [y if y is None else self._axes_back(y), *finals]


class SmallTape(NamedTuple):
    """The tape of a call that was too small for one of the engine."""

    small: _core.SmallTraining
    passes: list[_core.LayerPass]

    @property
    def between(self) -> list[None]:
        """The dropout masks behind each layer: none."""
        return [None] * len(self.passes)


def one_or_all(states: Sequence[Any]) -> State:
    """One state by itself, several as they are; None for none."""
    return (states if len(states) > 1 else states[0]) if states else None
