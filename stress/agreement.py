"""Whether a layer agrees with `fastrnn.reference`, and how far it may be from it.

The bound is that of the tests: 2e-5 in float32 and 1e-12 in float64 of the largest magnitude of each array, four times
that for the gradients of parameters, which are sums over all steps.  Random activations make networks that amplify
rounding, some of them by orders of magnitude.  Where the bound is passed, the reference itself runs in both
precisions: what it loses in float32 is what the network amplifies, and eight times as much, in units of the precision,
is allowed on top of the bound.  Arrays with values beyond 1e15 (float32: a square of them overflows soon) or none
finite are not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastrnn import reference
from fastrnn.noise import Noise

from .layers import as_tuple

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
LARGEST = 1e15
AMPLIFIED = 8

Outcome = dict[str, np.ndarray]  # arrays by name: y, state h, dx, weight_ih_l0, ...


def disagreement(ours: Outcome, run: Callable[[str], Outcome]) -> str | None:
    """What is wrong with the arrays, by those of the reference: `run(dtype)` runs it in that precision; or None."""
    dtype = str(next(iter(ours.values())).dtype)
    theirs, suspects = run(dtype), []
    for name, array in ours.items():
        expected = theirs[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            return f"{name} is {array.dtype} {array.shape}, not {expected.dtype} {expected.shape}"
        if np.isfinite(expected).all() and np.abs(expected).max(initial=0) < LARGEST:
            if not _error(array, expected) <= _bound(name, expected, dtype):
                suspects.append(name)
    if not suspects:
        return None
    narrow, wide = run("float32"), run("float64")
    for name in suspects:
        lost = _error(narrow[name], wide[name]) * np.finfo(dtype).eps / np.finfo("float32").eps
        error, bound = _error(ours[name], wide[name]), _bound(name, wide[name], dtype)
        if not error <= AMPLIFIED * lost + bound:
            return f"{name} is off by {error:.3g}, expected at most {bound:.3g}; the reference loses {lost:.3g}"
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


def stand_in(layer: Any, dtype: str) -> Any:
    """What the reference reads of a layer, in a precision that may be another."""
    names = ("cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "reverse",
             "merge", "clip", "grad_clip", "layer_norm", "zoneout", "zoneout_cell", "proj_size", "peephole", "coupled",
             "activations", "nonlinearity", "reset_after")  # fmt: skip
    options = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    params = {name: array.astype(dtype) for name, array in layer.params.items()}
    return SimpleNamespace(**options, params=params, dtype=np.dtype(dtype))


def inference_of_reference(layer: Any, call: Any, dtype: str) -> Outcome:
    y, state, _ = reference.forward(
        stand_in(layer, dtype), cast(call.x, dtype), cast(call.state, dtype), **call.keywords
    )
    return named(y, state)


def training_of_reference(layer: Any, call: Any, tape: Any, dy: Any, dstate: Any, dtype: str) -> Outcome:
    """With what the layer dropped, as its tape has it. dy None: zeros."""
    other = stand_in(layer, dtype)
    masks = [cast(mask, dtype) for mask in tape.masks[:-1]] if layer.dropout else None
    noise = [[Noise(*(cast(mask, dtype) for mask in each)) for each in directions] for directions in tape.noise]
    y, state, walked = reference.forward(
        other, cast(call.x, dtype), cast(call.state, dtype), **call.keywords, dropout_masks=masks, noise=noise
    )
    dy = np.zeros(y.shape, dtype) if dy is None else cast(dy, dtype)
    dx, dinitial, grads = reference.backward(other, walked, dy, cast(dstate, dtype))
    return named(y, state, dx, dinitial, grads)


def cast(value: Any, dtype: str) -> Any:
    """Arrays of floats, alone or in tuples, in another precision; all else as it is."""
    if isinstance(value, tuple):
        return tuple(cast(each, dtype) for each in value)
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
