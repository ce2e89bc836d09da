"""Activation functions and their slopes: every formula of ONNX's recurrent operators, and the identity.

A cell holds an `Activation` f and writes ``y = f(a)`` going forward and ``da = dy * f.slope(a, y)`` going back.
The slope may use both a and y, whichever is cheaper: tanh'(a) = 1 - tanh(a)^2 = 1 - y^2.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import numpy as np

__all__ = ["FORMULAS", "Activation", "Formula", "sigmoid"]

Spec = str | tuple[str] | tuple[str, float] | tuple[str, float, float]


def sigmoid(a: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-a), written with e^-|a| <= 1 so that it never overflows.

    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    e = np.exp(-np.abs(a))
    y: np.ndarray = np.where(a >= 0, 1, e) / (1 + e)
    return y


class Formula(NamedTuple):
    """y = value(a, *parameters) and dy/da = slope(a, y, *parameters); parameters are (), (alpha,) or (alpha, beta)."""

    value: Callable[..., np.ndarray]
    slope: Callable[..., np.ndarray]
    defaults: tuple[float, ...] = ()


# At a kink the slope is that of the flat or leaky side, as in torch: relu'(0) = 0.  The defaults are those of the
# ONNX operators of the same name.
FORMULAS: dict[str, Formula] = {
    "tanh": Formula(
        lambda a: np.tanh(a),
        lambda a, y: 1 - y * y,
    ),
    "relu": Formula(
        lambda a: np.maximum(a, 0),
        lambda a, y: a > 0,
    ),
    "sigmoid": Formula(
        lambda a: sigmoid(a),
        lambda a, y: y * (1 - y),
    ),
    "identity": Formula(
        lambda a: a + 0,
        lambda a, y: np.ones_like(a),
    ),
    "affine": Formula(
        lambda a, alpha, beta: alpha * a + beta,
        lambda a, y, alpha, beta: np.full_like(a, alpha),
        (1.0, 0.0),
    ),
    "leaky_relu": Formula(
        lambda a, alpha: np.where(a > 0, a, alpha * a),
        lambda a, y, alpha: np.where(a > 0, 1, alpha),
        (0.01,),
    ),
    "thresholded_relu": Formula(
        lambda a, alpha: np.where(a >= alpha, a, 0),
        lambda a, y, alpha: a >= alpha,
        (1.0,),
    ),
    "scaled_tanh": Formula(
        lambda a, alpha, beta: alpha * np.tanh(beta * a),
        lambda a, y, alpha, beta: alpha * beta * (1 - np.tanh(beta * a) ** 2),
        (1.0, 1.0),
    ),
    "hard_sigmoid": Formula(
        lambda a, alpha, beta: np.clip(alpha * a + beta, 0, 1),
        lambda a, y, alpha, beta: alpha * ((y > 0) & (y < 1)),
        (0.2, 0.5),
    ),
    "elu": Formula(
        lambda a, alpha: np.where(a > 0, a, alpha * np.expm1(np.minimum(a, 0))),
        lambda a, y, alpha: np.where(a > 0, 1, alpha * np.exp(np.minimum(a, 0))),
        (1.0,),
    ),
    "softsign": Formula(
        lambda a: a / (1 + np.abs(a)),
        lambda a, y: (1 / (1 + np.abs(a))) ** 2,
    ),
    "softplus": Formula(
        lambda a: np.logaddexp(0, a),
        lambda a, y: sigmoid(a),
    ),
}


class Activation:
    """An activation by its name, with its parameters and an optional clip of its argument.

    >>> f = Activation(("leaky_relu", 0.1))
    >>> f(np.array([-2.0, 3.0]))
    array([-0.2,  3. ])

    spec: a name of `FORMULAS`, or (name, alpha), or (name, alpha, beta); parameters that are left out have defaults.
    clip: None, or c > 0: y = f(min(max(a, -c), c)), so the slope is zero wherever a was clamped.
    Raises TypeError if `spec` is none of these, ValueError for an unknown name or too many parameters.
    Formulas: the ONNX operator specification, RNN-22, GRU-22 and LSTM-22.
    """

    def __init__(self, spec: Spec, clip: float | None = None) -> None:
        name, parameters = _parsed(spec)
        self.name = name
        self.formula = FORMULAS[name]
        self.parameters = parameters + self.formula.defaults[len(parameters) :]
        self.clip = clip

    def __call__(self, a: np.ndarray) -> np.ndarray:
        return self.formula.value(self._clipped(a), *self.parameters)

    def slope(self, a: np.ndarray, y: np.ndarray) -> np.ndarray:
        """dy/da at a, where y = f(a)."""
        slope = self.formula.slope(self._clipped(a), y, *self.parameters).astype(a.dtype, copy=False)
        return slope if self.clip is None else np.where(np.abs(a) <= self.clip, slope, 0)

    def _clipped(self, a: np.ndarray) -> np.ndarray:
        return a if self.clip is None else np.clip(a, -self.clip, self.clip)


def _parsed(spec: Spec) -> tuple[str, tuple[float, ...]]:
    name, *parameters = (spec,) if isinstance(spec, str) else spec if isinstance(spec, tuple) and spec else (None,)
    if not isinstance(name, str) or not all(isinstance(p, Real) for p in parameters):
        raise TypeError(f"expected an activation as name, (name, alpha) or (name, alpha, beta), got {spec!r}")
    if name not in FORMULAS:
        raise ValueError(f"expected an activation among {', '.join(FORMULAS)}, got {name!r}")
    most = len(FORMULAS[name].defaults)
    if len(parameters) > most:
        raise ValueError(f"expected at most {most} parameters for {name}, got {len(parameters)}")
    return name, tuple(float(p) for p in parameters)
