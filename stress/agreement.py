"""Whether a layer agrees with `fastrnn.reference`, and how far it may be from it.

The bound is that of the tests: 2e-5 in float32 and 1e-12 in float64 of the largest magnitude of each array, four times
that for the gradients of parameters, which are sums over all steps.  Random activations, and norms over few numbers,
make networks that amplify rounding, some of them by orders of magnitude.  Where the bound is passed, the reference runs
in float64 again, as it is and four times with all that goes in changed at random by one rounding of the layer's
precision, and in float32.  64 times the largest change that this makes (float32's in units of the precision) is allowed
on top of the bound, for a layer rounds some dozens of times on the way, in an order of its own.  A network that
explodes, whose reference has values beyond 1e6 or such as are not finite, is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastrnn import reference
from fastrnn.reference import DropoutMasks

from .layers import as_tuple

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
LARGEST = 1e6
AMPLIFIED = 64
NUDGES = 4

Outcome = dict[str, np.ndarray]  # arrays by name: y, state h, dx, weight_ih_l0, ...


@dataclass
class Precision:
    """In which the reference runs, and what changes in what goes in: by a part of at most `nudge`, at random."""

    dtype: str
    nudge: float = 0.0
    rng: np.random.Generator | None = None

    def cast(self, value: Any) -> Any:
        """Arrays of floats, alone or in tuples; all else as it is."""
        if isinstance(value, tuple):
            return tuple(self.cast(each) for each in value)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        array = value.astype(self.dtype)
        return array if self.rng is None else array * (1 + self.nudge * self.rng.uniform(-1, 1, array.shape))


Run = Callable[[Precision], Outcome]  # the reference


def disagreement(ours: Outcome, run: Run) -> str | None:
    """What is wrong with the arrays, by those of the reference; or None."""
    dtype = str(next(iter(ours.values())).dtype)
    theirs, suspects = run(Precision(dtype)), []
    if not all(np.isfinite(array).all() and np.abs(array).max(initial=0) < LARGEST for array in theirs.values()):
        return None
    for name, array in ours.items():
        expected = theirs[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            return f"{name} is {array.dtype} {array.shape}, not {expected.dtype} {expected.shape}"
        if not _error(array, expected) <= _bound(name, expected, dtype):
            suspects.append(name)
    if not suspects:
        return None
    exact, rng = run(Precision("float64")), np.random.default_rng(0)
    nudged = [run(Precision("float64", float(np.finfo(dtype).eps) / 2, rng)) for _ in range(NUDGES)]
    narrow, unit = run(Precision("float32")), float(np.finfo(dtype).eps / np.finfo("float32").eps)
    for name in suspects:
        amplified = max(_error(each[name], exact[name]) for each in nudged)
        amplified = max(amplified, unit * _error(narrow[name], exact[name]))
        error, bound = _error(ours[name], exact[name]), _bound(name, exact[name], dtype)
        if not error <= AMPLIFIED * amplified + bound:
            return f"{name} is off by {error:.3g}, expected {bound:.3g}, where one rounding makes {amplified:.3g}"
    return None


def _error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max(initial=0))


def _bound(name: str, expected: np.ndarray, dtype: str) -> float:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return (4 if "_l" in name else 1) * TOLERANCE[dtype] * scale


def named(y: Any = None, state: Any = None, dx: Any = None, dstate: Any = None, grads: Any = None) -> Outcome:
    """What a layer, or the reference, returned, by name."""
    arrays = {} if y is None else {"y": y}
    for name, pair in (("state", state), ("dstate", dstate)):
        if pair is not None:
            arrays |= {f"{name} {letter}": s for letter, s in zip("hc", as_tuple(pair), strict=False)}
    if dx is not None:
        arrays["dx"] = dx
    return {name: np.array(array) for name, array in {**arrays, **(grads or {})}.items()}


def stand_in(layer: Any, precision: Precision) -> Any:
    """What the reference reads of a layer."""
    names = ("cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "reverse",
             "merge", "clip", "grad_clip", "layer_norm", "zoneout", "zoneout_cell", "proj_size", "peephole", "coupled",
             "activations", "nonlinearity", "reset_after")  # fmt: skip
    options = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    params = {name: precision.cast(array) for name, array in layer.params.items()}
    return SimpleNamespace(**options, params=params, dtype=np.dtype(precision.dtype))


def inference_of_reference(layer: Any, call: Any, precision: Precision) -> Outcome:
    x, state = precision.cast(call.x), precision.cast(call.state)
    return named(*reference.forward(stand_in(layer, precision), x, state, **call.keywords)[:2])


def training_of_reference(layer: Any, call: Any, tape: Any, dy: Any, dstate: Any, precision: Precision) -> Outcome:
    """With what the layer dropped, as its tape has it. dy None: zeros."""
    other, cast, same = stand_in(layer, precision), precision.cast, Precision(precision.dtype).cast
    y, state, tape_of_reference = reference.forward(
        other, cast(call.x), cast(call.state), **call.keywords,
        dropout_masks=[same(mask) for mask in tape.between[:-1]] if layer.dropout else None,
        noise=[[DropoutMasks(*(same(mask) for mask in each)) for each in directions] for directions in tape.masks],
    )  # fmt: skip
    dy = np.zeros(y.shape, precision.dtype) if dy is None else cast(dy)
    dx, dinitial, grads = reference.backward(other, tape_of_reference, dy, cast(dstate))
    return named(y, state, dx, dinitial, grads)
