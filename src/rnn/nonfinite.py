"""Where a value that is not finite arose: a search after the fact, so that the passes themselves look for nothing.

    forward     parameters, x, and for each layer from the first: state, then gates, c and h of each step of the walk
    backward    dy, and for each layer from the last: gradients of the gates, from the last step of the walk back

What depends on a value comes after it in this order, so the first that is found is one that no other has caused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import threads
from .backward import Backward

# Blocks of dgates, by cell and their number, as backward makes them one after the other; see the heads of the kernels
_GRADIENTS = {
    ("gru", 3): (("gate n", 2), ("gate z", 1), ("gate r", 0)),
    ("gru", 4): (("gate n", 3), ("gate z", 1), ("gate r", 0), ("gate n", 2)),
    ("lstm", 4): (("gate o", 3), ("gate i", 0), ("gate f", 1), ("gate g", 2)),
}


class NonFinite(NamedTuple):
    """The first value that is not finite, see `first_nonfinite`.

    what: "parameter weight_hh_l0", "x", "the initial state h", "gate f", "c", "h"; "dy", "the gradient of gate f".
    layer, direction: counted from 0, where it is in one.   step: the time step.   row: of the batch.
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


def first_nonfinite(tape: Any, dy: Any = None, dstate: Any = None) -> NonFinite | None:
    """Where the first NaN or infinity of a forward pass arose, or with dy, of the backward pass after it; or None.

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.RNN(3, 8, num_layers=2, nonlinearity="relu", rng=0)
    >>> layer.params["weight_hh_l1"][...] = 10  # h grows without bound
    >>> y, state, tape = layer.forward(np.ones((50, 4, 3), np.float32))
    >>> print(fastrnn.training.first_nonfinite(tape))
    h, layer 1, time step 21, batch row 0, forward direction

    tape: what `layer.forward` returned, x and parameters unchanged since.   dy, dstate: as `layer.backward` takes them;
    the backward pass is then made once more, and `layer.grads` are as before.
    For a loss that is not finite though this finds nothing in the forward pass, look at what comes after the layer.
    Raises what `backward` raises.
    """
    found = _in_forward(tape)
    if found is None and not (dy is None and dstate is None):
        found = _in_backward(tape, dy, dstate)
    return found


def _in_forward(tape: Any) -> NonFinite | None:
    layer, x = tape.layer, tape.batch.x
    for name, array in layer.params.items():
        if not np.isfinite(array).all():
            return NonFinite(f"parameter {name}")
    if x.dtype.kind == "f":
        for t in range(len(x)):
            bad = _is_bad(x[t])
            if tape.batch.lengths is not None:
                bad &= t < tape.batch.lengths
            if bad.any():
                return NonFinite("x", step=t, row=int(bad.argmax()))
    for k in range(layer.num_layers):
        for d in range(layer._directions):
            found = _in_direction(tape, k, d)
            if found is not None:
                return found
    return None


def _in_direction(tape: Any, k: int, d: int) -> NonFinite | None:
    scans = [scan for scan, _ in tape.scans_of(k, d)]
    backwards = scans[0].backwards
    direction = "reverse" if backwards else "forward"
    for scan in scans:
        for letter, state in (("h", scan.h0), ("c", scan.c0)):
            if state is not None and _is_bad(state).any():
                row = int(scan.walk.members[_is_bad(state).argmax()])
                return NonFinite(f"the initial state {letter}", k, direction, row=row)
    found = []
    for steps, rows, values in tape.walked(k, d):
        bad = {name if name in "ch" else f"gate {name}": _is_bad(array) for name, array in values.items()}
        any_bad = np.logical_or.reduce(list(bad.values()))
        if any_bad.any():
            at = any_bad.argmax()
            what = next(name for name, is_bad in bad.items() if is_bad[at])
            step = int(steps[at])
            found.append((-step if backwards else step, NonFinite(what, k, direction, step, int(rows[at]))))
    return min(found, key=lambda each: each[0])[1] if found else None


def _in_backward(tape: Any, dy: Any, dstate: Any) -> NonFinite | None:
    layer, back = tape.layer, Backward(tape, dy, dstate, search=True)
    for t, bad in enumerate(map(_is_bad, back.dy)):
        if bad.any():
            return NonFinite("dy", step=t, row=int(bad.argmax()))
    for letter, array in zip("hc", back.final, strict=False):
        if not np.isfinite(array).all():
            return NonFinite(f"dstate {letter}")
    before = layer._flat_grads.copy()
    try:
        for layers in reversed(tape.groups):
            back.enter(layers)
            found = _named(tape, layers[0], threads.run(back.tasks))
            if found is not None:
                return found
            back.finish()
    finally:
        layer._flat_grads[...] = before
    return None


def _named(tape: Any, first: int, searched: list[Any]) -> NonFinite | None:
    """What the walks through some layers found, put into words: nearest to y, that of the first direction."""
    layer = tape.layer
    found = [(0, *result)[-4:] for result in searched if result is not None]  # a scan's does not say the layer
    nearest = max((above for above, *_ in found), default=0)
    for index, result in enumerate(searched):
        if result is None or (0, *result)[-4] != nearest:
            continue
        step, row, blocks = result[-3:]
        k = first + nearest
        scan = tape.scans[k][index]
        if scan.backwards:
            step = int(scan.walk.lengths[row]) - 1 - step
        what = _where_overflowed(layer, blocks)
        direction = "reverse" if scan.backwards else "forward"
        return NonFinite(f"the gradient of {what}", k, direction, step, int(scan.walk.members[row]))
    return None


def _where_overflowed(layer: Any, blocks: int) -> str:
    """By the blocks of dgates that hold a value that is not finite, one bit each."""
    if layer.cell == "rnn":
        return "the pre-activation"
    if layer.layer_norm:  # which spreads the gradient of one gate over all
        return "the gates"
    width = 4 if layer.cell == "gru" and layer.reset_after else layer._gates
    return next(name for name, block in _GRADIENTS[layer.cell, width] if blocks >> block & 1)


def _is_bad(array: np.ndarray) -> np.ndarray:
    """Which rows of (n, ...) hold a value that is not finite."""
    bad: np.ndarray = ~np.isfinite(array).all(axis=-1)
    return bad
