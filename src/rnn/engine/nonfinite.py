"""Where the first value that is not finite arose: a search after the fact, so that the passes need no checks.

    forward     parameters, x, and for each layer from the first: state, then gates, c and h of each step in turn
    backward    dy, and for each layer from the last: gradients of the gates, from the last step back

A value comes after all that it depends on in this order, so the first one found was caused by no other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .backward_pass import Backward
from .spec import ARRAYS, Arrays, LayerSpec
from .tape import Tape


class NonFinite(NamedTuple):
    """The first value that is not finite, see `first_nonfinite`.

    what: "parameter weight_hh_l0", "x", "the initial state h", "gate f", "c", "h"; "dy", "the gradient of gate f".
    layer: counted from 0; None, like direction, if the value is in no layer.   step: of time.   row: of the batch.
    """

    what: str
    layer: int | None = None
    direction: str | None = None  # "forward" or "reverse"
    step: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        parts = [self.what]
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.step is not None:
            parts.append(f"time step {self.step}")
        if self.row is not None:
            parts.append(f"batch row {self.row}")
        if self.direction is not None:
            parts.append(f"{self.direction} direction")
        return ", ".join(parts)


def first_nonfinite(tape: Tape, dy: Any = None, dstate: Any = None) -> NonFinite | None:
    """Where the first NaN or infinity of a forward pass arose, or with dy, of the backward pass after it; or None.

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.RNN(3, 8, num_layers=2, nonlinearity="relu", rng=0)
    >>> layer.params["weight_hh_l1"][...] = 10  # h grows without bound
    >>> y, state, tape = layer.forward(np.ones((50, 4, 3), np.float32))
    >>> print(fastrnn.training.first_nonfinite(tape))
    h, layer 1, time step 21, batch row 0, forward direction

    tape: what `layer.forward` returned; x and the parameters must be unchanged since.   dy, dstate: as `layer.backward`
    takes them; the backward pass is then run once more, without changing `layer.grads`.
    If a loss is not finite and this finds nothing in the forward pass, look at what comes after the layer.
    Raises TypeError or ValueError as `layer.backward` does.
    """
    found = _in_forward(tape)
    if found is None and not (dy is None and dstate is None):
        found = _in_backward(tape, dy, dstate)
    return found


def _in_forward(tape: Tape) -> NonFinite | None:
    spec, x = tape.spec, tape.batch.x
    name = _parameter(spec, tape.weights)
    if name is not None:
        return NonFinite(f"parameter {name}")
    if x.dtype.kind == "f":
        for t in range(len(x)):
            bad = _is_bad(x[t])
            if tape.batch.lengths is not None:
                bad &= t < tape.batch.lengths
            if bad.any():
                return NonFinite("x", step=t, row=int(bad.argmax()))
    for k in range(spec.num_layers):
        for d in range(spec.num_directions):
            found = _in_direction(tape, k, d)
            if found is not None:
                return found
    return None


def _parameter(spec: LayerSpec, weights: Arrays) -> str | None:
    """The name of the first parameter that holds a value that is not finite, or None."""
    for k in range(spec.num_layers):
        for d in range(spec.num_directions):
            for name, array in zip(ARRAYS, weights[k * spec.num_directions + d], strict=True):
                if array is not None and not np.isfinite(array).all():
                    return name + spec.suffix(k, d)
    return None


def _in_direction(tape: Tape, k: int, d: int) -> NonFinite | None:
    passes = [layer_pass for layer_pass, _ in tape.passes_of(k, d)]
    backwards = passes[0].backwards
    direction = "reverse" if backwards else "forward"
    H = tape.spec.hidden_size
    for each in passes:
        for place, (letter, _) in enumerate(tape.spec.states):
            state = each.h0 if place == 0 else each.c0[:, (place - 1) * H : place * H]
            if _is_bad(state).any():
                row = int(each.shard.sorted_indices[_is_bad(state).argmax()])
                return NonFinite(f"the initial state {letter}", k, direction, row=row)
    found = []
    states = [name for name, _ in tape.spec.states]
    for steps, rows, values in tape.saved_activations(k, d):
        bad = {name if name in states else f"gate {name}": _is_bad(array) for name, array in values.items()}
        any_bad = np.logical_or.reduce(list(bad.values()))
        if any_bad.any():
            at = any_bad.argmax()
            what = next(name for name, is_bad in bad.items() if is_bad[at])
            step = int(steps[at])
            found.append((-step if backwards else step, NonFinite(what, k, direction, step, int(rows[at]))))
    return min(found, key=lambda each: each[0])[1] if found else None


def _in_backward(tape: Tape, dy: Any, dstate: Any) -> NonFinite | None:
    zeros = [tuple(None if w is None else np.zeros_like(w) for w in arrays) for arrays in tape.weights]
    back = Backward(tape, dy, dstate, zeros, search=True)
    for t, bad in enumerate(map(_is_bad, back.dy)):
        if bad.any():
            return NonFinite("dy", step=t, row=int(bad.argmax()))
    for (letter, _), array in zip(tape.spec.states, back.final, strict=True):
        if not np.isfinite(array).all():
            return NonFinite(f"dstate {letter}")
    for layers in reversed(tape.groups):
        back.enter(layers)
        found = _named(tape, layers[0], parallel.run(back.tasks))
        if found is not None:
            return found
        back.finish()
    return None


def _named(tape: Tape, first: int, searched: list[Any]) -> NonFinite | None:
    """The result of the tasks of some layers, in words: the one nearest to y and, among these, of the first task."""
    found = [(0, *result)[-4:] for result in searched if result is not None]  # a layer pass returns no layer
    nearest = max((above for above, *_ in found), default=0)
    for index, result in enumerate(searched):
        if result is None or (0, *result)[-4] != nearest:
            continue
        step, row, blocks = result[-3:]
        k = first + nearest
        layer_pass = tape.layer_passes[k][index]
        if layer_pass.backwards:
            step = int(layer_pass.shard.lengths[row]) - 1 - step
        what = _where_overflowed(tape.spec, blocks)
        direction = "reverse" if layer_pass.backwards else "forward"
        return NonFinite(f"the gradient of {what}", k, direction, step, int(layer_pass.shard.sorted_indices[row]))
    return None


def _where_overflowed(spec: LayerSpec, blocks: int) -> str:
    """The gate whose gradient overflowed first. blocks: a bit for each block of dgates that is not finite."""
    gradients = spec.cell.gradients  # in the order in which backward computes them
    if not gradients:  # with layer normalisation: the gradient of one gate is spread over all gates
        return "the gates" if spec.gates > 1 else "the pre-activation"
    name = next(name for name, block in gradients if blocks >> block & 1)
    return f"gate {name}" if spec.gates > 1 else "the pre-activation"


def _is_bad(array: np.ndarray) -> np.ndarray:
    """Which rows of (n, ...) hold a value that is not finite."""
    bad: np.ndarray = ~np.isfinite(array).all(axis=-1)
    return bad
