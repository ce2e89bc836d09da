"""What the interchange modules share: reading the options of a layer, building one, refusing unsupported options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..nn.activations import Activation, activation_code
from ..nn.layers import GRU, LSTM, RNN
from ..nn.recurrent import Recurrent

__all__ = [
    "DROPOUT",
    "LAYERS",
    "ZONEOUT",
    "activations_of",
    "build",
    "checked_layer",
    "options_of",
    "refuse_unless",
    "reorder",
    "same_activation",
    "suffixes",
]

# Options of dropout inside a layer, off; zoneout also changes inference
ZONEOUT = {"zoneout": 0, "zoneout_cell": 0}
DROPOUT = {"weight_dropout": 0, "input_dropout": 0, "recurrent_dropout": 0, **ZONEOUT}

LAYERS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def build(cell: str, options: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Any:
    """The layer with these constructor arguments and these parameters, which are copied once.

    If the two do not fit together, an error is raised before memory of the sizes in `options` is allocated.
    """
    return LAYERS[cell]._with_parameters(params, **options, rng=0)  # no initial values remain


def checked_layer(layer: object) -> Recurrent:
    """`layer` itself if it is an RNN, GRU or LSTM of this package; raises TypeError otherwise."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"expected a fastrnn RNN, GRU or LSTM, got {type(layer).__name__}")
    return layer


def options_of(layer: Recurrent) -> dict[str, Any]:
    """The constructor arguments that make a layer like this one, except rng."""
    return {name: getattr(layer, name) for name in inspect.signature(type(layer)).parameters if name != "rng"}


def suffixes(layer: Recurrent) -> list[list[str]]:
    """What the names of parameters end in, as [layer][direction]."""
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    return [[f"_l{k}{direction}" for direction in directions] for k in range(layer.num_layers)]


def activations_of(layer: Recurrent) -> tuple[Activation, ...]:
    """All activations of a layer, in the order f, g, h of ONNX's operators."""
    if isinstance(layer, RNN):
        return (layer.nonlinearity,)
    assert isinstance(layer, GRU | LSTM)
    return layer.activations


def same_activation(a: Activation, b: Activation) -> bool:
    """Whether two specifications, with default parameters filled in, mean the same function."""
    return activation_code(a) == activation_code(b)


def refuse_unless(layer: Recurrent, target: str, **expected: Any) -> None:
    """Raise ValueError if one of these options of the layer has another value."""
    for name, value in expected.items():
        actual = getattr(layer, name, value)
        if actual != value:
            raise ValueError(f"{target} cannot express {name}={actual!r} of a {type(layer).__name__}")


def reorder(array: np.ndarray, order: Sequence[int] | np.ndarray) -> np.ndarray:
    """The gates (blocks of H rows) of `array` (G*H, ...) in another order: gate j of the result is gate order[j]."""
    return array.reshape(len(order), -1, *array.shape[1:])[list(order)].reshape(array.shape)
