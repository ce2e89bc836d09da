"""The keyword options of the recurrent layers, each declared once: its default, its check, and what the help says.

The layers' signatures say the names and defaults again, for help() and type checkers; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..engine.merging import MERGES
from ..util.checks import boolean, float_dtype, non_negative_int, positive_float, positive_int, probability
from .activations import Activation, activation_codes

__all__ = [
    "GRU_ACTIVATIONS",
    "LSTM_OPTIONS",
    "NONLINEARITY",
    "REQUIRED",
    "RESET_AFTER",
    "SHARED",
    "SIZES",
    "Option",
    "documented",
]

_MOST_LAYERS = 1 << 16
REQUIRED = object()  # in the place of a default


def _merge(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in MERGES:
        raise ValueError(f"expected {name} among {', '.join(MERGES)}, got {value!r}")
    return MERGES[MERGES.index(value)]


def _layers(name: str, value: Any) -> int:
    if positive_int(name, value) > _MOST_LAYERS:
        raise ValueError(f"expected {name} <= {_MOST_LAYERS}, got {value}")
    return int(value)


def _limit(name: str, value: Any) -> float | None:
    return None if value is None else positive_float(name, value)


def _nonlinearity(name: str, value: Any) -> Activation:
    return _activations(1)(name, (value,))[0]


def _activations(count: int) -> Callable[[str, Any], tuple[Activation, ...]]:
    def check(name: str, value: Any) -> tuple[Activation, ...]:
        activation_codes(value, count)
        return tuple(_plain(activation) for activation in value)

    return check


def _plain(activation: Activation) -> Activation:
    """The same with a str for the name, which may be one of a str Enum."""
    if isinstance(activation, tuple):
        return str.__str__(activation[0]), *activation[1:]
    return str.__str__(activation)


@dataclass(frozen=True)
class Option:
    """An argument of a layer's constructor. check(name, value) returns the value that the layer stores, or raises."""

    name: str
    default: Any
    check: Callable[[str, Any], Any]
    doc: str = ""
    changeable: bool = False  # it may be assigned later


def _dropout(name: str, doc: str) -> Option:
    return Option(name, 0.0, probability, doc, changeable=True)


SIZES = (
    Option("input_size", REQUIRED, positive_int),
    Option("hidden_size", REQUIRED, positive_int),
    Option("num_layers", 1, _layers),
)
SHARED = (
    Option("bias", True, boolean, "bias: whether there are b_ih and b_hh."),
    Option(
        "batch_first", False, boolean,
        "batch_first: x and y are (B, T, ...) in place of (T, B, ...); states are not affected.",
    ),
    _dropout("dropout", "dropout: probability of a zero behind each layer but the last, in training."),
    _dropout("weight_dropout", "weight_dropout: likewise of a zero in weight_hh, drawn once for a call."),
    _dropout(
        "input_dropout",
        "input_dropout: in x of each layer, drawn once for a sequence and the same at all steps. x is in vectors then.",
    ),
    _dropout("recurrent_dropout", "recurrent_dropout: in h(t-1) where it enters the product, drawn in the same way."),
    _dropout(
        "zoneout",
        "zoneout: probability that a unit of h keeps its value at a step, in training; in inference, the mean of that.",
    ),
    Option("bidirectional", False, boolean, "bidirectional: a second direction runs from the end to the start."),
    Option("reverse", False, boolean, "reverse: the only direction runs from the end to the start."),
    Option(
        "merge", "concat", _merge,
        'merge: how two directions become one y: "concat" (as torch), "sum", "mul" or "ave" (as Keras).',
    ),
    Option("clip", None, _limit, "clip: pre-activations are held within +-clip, as ONNX's attribute says."),
    Option(
        "grad_clip", None, _limit,
        "grad_clip: in `backward`, the gradient of every pre-activation is held within +-grad_clip at its step,\n"
        "before it goes on to weights, x and the step before (Graves 2013); those of c, and of h beside a GRU's\n"
        "gates, are not.",
        changeable=True,
    ),
    Option(
        "layer_norm", False, boolean,
        "layer_norm: both products are normalised, each over all units and gates of a row (Ba, Kiros, Hinton 2016):\n"
        "LN(W_ih x(t)) gain_ih + b_ih and LN(W_hh h(t-1)) gain_hh + b_hh take the place of W_ih x(t) + b_ih and\n"
        "W_hh h(t-1) + b_hh; LN(a) = (a - mean(a)) / sqrt(var(a) + 1e-5). Not with clip or other activations.",
    ),
    Option(
        "dtype", "float32", lambda name, value: float_dtype(value),
        "dtype: float32 or float64, of parameters and all arrays.",
    ),
    Option(
        "rng", None, lambda name, value: value,
        "rng: None, an int or a numpy Generator: initial values (torch's: uniform in +-1/sqrt(H)) and dropout.",
    ),
)  # fmt: skip
NONLINEARITY = Option(
    "nonlinearity", "tanh", _nonlinearity,
    'nonlinearity: "tanh" or "relu", or any activation of ONNX: a name, (name, alpha) or (name, alpha, beta), see\n'
    "fastrnn.nn.activations; the first two have kernels of their own, the others run slower.",
)  # fmt: skip
RESET_AFTER = Option(
    "reset_after", True, boolean,
    "reset_after: True, the product is made before the reset gate is applied, as torch and cuDNN do; False, after it,\n"
    "n = tanh(W_in x(t) + b_in + W_hn (r h(t-1)) + b_hn), as the original and Keras's reset_after=False do.",
)  # fmt: skip
GRU_ACTIVATIONS = Option(
    "activations", ("sigmoid", "tanh"), _activations(2),
    "activations: of the gates r, z and of n, see `RNN` for what one can be; all but the default run slower.",
)  # fmt: skip
LSTM_OPTIONS = (
    Option(
        "proj_size", 0, non_negative_int,
        "proj_size P: if not 0, h(t) = W_hr (o tanh(c(t))) of width P < H (weight_hr_l{k} (P, H)); y and h are P wide.",
    ),
    Option(
        "peephole", False, boolean,
        "peephole: i and f also see c(t-1), o sees c(t), through weight_peephole_l{k} (3, H), rows i, f, o.",
    ),
    Option(
        "coupled", False, boolean,
        "coupled: f = 1 - i, as ONNX's input_forget says; the rows of f in the weights are then unused.",
    ),
    _dropout("zoneout_cell", "zoneout_cell: as `zoneout`, of c; the h of that step still sees the new c."),
    Option(
        "activations", ("sigmoid", "tanh", "tanh"), _activations(3),
        "activations: of the gates i, f, o, of g, and of c, see `RNN` for what one can be; others run slower.",
    ),
)  # fmt: skip

Class = TypeVar("Class", bound=type)


def documented(*own: Option) -> Callable[[Class], Class]:
    """A decorator: in the class's docstring, {own} becomes the lines of these options, {shared} those of all layers."""

    def lines(options: Iterable[Option]) -> str:
        return "\n".join(option.doc for option in options).replace("\n", "\n    ")

    def decorate(cls: Class) -> Class:
        if cls.__doc__ is not None:  # as it is under python -OO
            cls.__doc__ = cls.__doc__.replace("{own}", lines(own)).replace("{shared}", lines(SHARED))
        return cls

    return decorate
