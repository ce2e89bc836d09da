"""Activations by name, as ONNX's recurrent operators define them.

name               formula                               default alpha, beta
tanh               tanh(a)
relu               max(a, 0)
sigmoid            1 / (1 + e^-a)
affine             alpha a + beta                        1, 0
leaky_relu         a if a > 0 else alpha a               0.01
thresholded_relu   a if a >= alpha else 0                1
scaled_tanh        alpha tanh(beta a)                    1, 1
hard_sigmoid       min(max(alpha a + beta, 0), 1)        0.2, 0.5
elu                a if a > 0 else alpha (e^a - 1)       1
softsign           a / (1 + |a|)
softplus           log(1 + e^a)
identity           a
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .. import _core

__all__ = ["ACTIVATIONS", "Activation", "activation_code", "activation_codes"]

# The values are the default parameters
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "tanh": (),
    "relu": (),
    "sigmoid": (),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
    "identity": (),
}
Activation = str | tuple[Any, ...]  # a name, (name, alpha) or (name, alpha, beta)


def activation_code(activation: Activation) -> tuple[int, float, float]:
    """(kind, alpha, beta) for the kernels; raises ValueError or TypeError that lists what is known."""
    name, *parameters = activation if isinstance(activation, tuple) and activation else (activation,)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, got {name!r}")
    defaults = ACTIVATIONS[name]
    if len(parameters) > len(defaults):
        raise ValueError(f"expected at most {len(defaults)} parameters for {name}, got {tuple(parameters)}")
    if not all(isinstance(value, int | float) for value in parameters):
        raise TypeError(f"expected numbers as parameters of {name}, got {tuple(parameters)}")
    if not all(abs(value) <= sys.float_info.max for value in parameters):
        raise ValueError(f"expected finite parameters of {name}, got {tuple(parameters)}")
    values = [float(value) for value in parameters] + list(defaults[len(parameters) :])
    alpha, beta = (*values, 0.0, 0.0)[:2]
    return _core.activation_names().index(name), alpha, beta


def activation_codes(activations: Sequence[Activation], count: int) -> tuple[tuple[int, float, float], ...]:
    """`activation_code` of each; raises ValueError if there are not `count` of them."""
    if not isinstance(activations, tuple | list) or len(activations) != count:
        raise ValueError(f"expected a sequence of {count} activations, got {activations!r}")
    return tuple(activation_code(activation) for activation in activations)
