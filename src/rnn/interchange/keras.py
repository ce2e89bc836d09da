"""Keras: SimpleRNN, GRU, LSTM and Bidirectional, to and from.

Keras's kernels are transposed, its gates are in another order, and it has one bias where we have two, except in a GRU
with reset_after:

    kernel (I, G*H)    recurrent_kernel (H, G*H)    bias (G*H,), or (2, G*H)
    GRU z, r, h        LSTM i, f, c, o
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..nn.activations import Activation
from ..nn.layers import GRU
from ..nn.recurrent import Recurrent
from .common import DROPOUT, activations_of, build, checked_layer, refuse_unless, reorder, same_activation, suffixes

__all__ = ["from_keras", "to_keras"]

if TYPE_CHECKING:
    import keras

_GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 1, 2, 3)}  # which of Keras's gates each of ours is
_ACTIVATIONS: dict[str, Activation] = {
    "tanh": "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "linear": "identity",
    "softsign": "softsign",
    "softplus": "softplus",
    "elu": ("elu", 1.0),
    "leaky_relu": ("leaky_relu", 0.2),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
}


def from_keras(layer: keras.layers.Layer) -> Any:
    """The layer that computes what a Keras layer does: SimpleRNN, GRU or LSTM, alone, in Bidirectional, or stacked.

        from fastrnn.interchange import from_keras
        model = keras.layers.Bidirectional(keras.layers.GRU(16, return_sequences=True), merge_mode="sum")
        y = model(x)                                       # x (B, T, I)
        layer = from_keras(model)
        y, h = layer(x)                                    # h (2, B, 16)

    layer: a built layer, or a keras.Sequential of such layers of one kind and size, with at most Dropout of one rate
    between them, which becomes a stack.  The parameters are copied.  The result has batch_first=True and returns every
    step and the final state, whatever return_sequences and return_state say: without return_sequences Keras gives the
    final h, in Bidirectional both merged.  Where Keras takes a mask, give `lengths` to the call.  Initialisers,
    regularisers and constraints belong to training in Keras, not to the layer, and are ignored.

    Raises TypeError for another layer, also for one of a class derived from these, and for a dtype other than float32
    and float64; ValueError for a layer that is not built, and for what a layer here does not have: dropout of the input
    or the state, stateful, go_backwards with return_sequences (Keras gives those outputs last step first), other
    activations, merge_mode None, and directions or layers that differ from each other.
    """
    import keras

    stack, dropout = ([layer], 0.0) if not isinstance(layer, keras.Sequential) else _unstack(layer)
    parts = [_read_layer(part) for part in stack]
    cell, options, _ = parts[0]
    for other_cell, other, _ in parts[1:]:
        if (other_cell, other | {"input_size": 0}) != (cell, options | {"input_size": 0}):
            raise ValueError(f"expected equal layers in a stack, got {cell} {options} and {other_cell} {other}")
    for part in stack[:-1]:
        if not part.return_sequences:
            raise ValueError(f"expected return_sequences=True of {part.name}, which has a layer behind it")
    params = {f"{name}_l{k}{end}": array for k, (_, _, arrays) in enumerate(parts) for (name, end), array in arrays}
    return build(cell, options | {"num_layers": len(parts), "dropout": dropout}, params)


def to_keras(layer: Recurrent, *, return_sequences: bool = True, return_state: bool = False) -> keras.layers.Layer:
    """The Keras layer that computes what the layer does: SimpleRNN, GRU or LSTM, in Bidirectional if it runs both ways.

        import fastrnn
        from fastrnn.interchange import to_keras
        layer = fastrnn.LSTM(8, 16, batch_first=True)
        model = to_keras(layer)
        y = model(x)                                       # x (B, T, 8) -> y (B, T, 16), as layer(x)[0]

    return_sequences, return_state: Keras's options of these names.  x is (B, T, I) there, whatever batch_first is.  A
    stack becomes a keras.Sequential, with Dropout between its layers.  The parameters are copied; where Keras has one
    bias, it is the sum of the two.

    Raises TypeError if `layer` is not a recurrent layer of this package; ValueError for what Keras does not have: clip,
    grad_clip, peephole, coupled, proj_size, activations with other parameters or different ones around an LSTM's cell
    state, reverse with return_sequences (Keras gives the last step first) or in a stack, return_state of a stack, and
    float64 if the backend has it switched off; and for weight_dropout, input_dropout, recurrent_dropout, zoneout
    and layer_norm.
    """
    import keras

    checked_layer(layer)
    refuse_unless(layer, "Keras", clip=None, grad_clip=None, peephole=False, coupled=False, proj_size=0)
    refuse_unless(layer, "Keras", layer_norm=False)
    refuse_unless(layer, "to_keras", **DROPOUT)
    if return_sequences:
        refuse_unless(layer, "Keras with return_sequences", reverse=False)
    if layer.num_layers == 1:
        return _write_layer(layer, 0, return_sequences, return_state)
    if return_state:
        refuse_unless(layer, "Keras with return_state", num_layers=1)
    refuse_unless(layer, "Keras in a stack", reverse=False)
    stack = []
    for k in range(layer.num_layers):
        last = k == layer.num_layers - 1
        stack.append(_write_layer(layer, k, return_sequences or not last, False))
        if layer.dropout and not last:
            stack.append(keras.layers.Dropout(layer.dropout))
    model = keras.Sequential(stack)
    model.build((None, None, layer.input_size))
    return model


# ------------------------------------------------------------ from Keras

_Params = list[tuple[tuple[str, str], np.ndarray]]  # ((weight_ih, "" or "_reverse"), array)


def _unstack(model: keras.Sequential) -> tuple[list[Any], float]:
    """The recurrent layers of a model, and the rate of the dropout between them."""
    import keras

    recurrent: list[Any] = []
    rates: list[float] = []
    for part in model.layers:
        if isinstance(part, keras.layers.Dropout) and len(rates) < len(recurrent):
            if part.noise_shape is not None:
                raise ValueError(f"expected noise_shape=None of {part.name}, got {part.noise_shape}")
            rates.append(float(part.rate))
        else:
            rates += [0.0] * (len(recurrent) - len(rates))
            recurrent.append(part)
    if not recurrent:
        raise ValueError("expected a keras.Sequential of recurrent layers, got an empty one")
    if len(rates) == len(recurrent) or len(set(rates)) > 1:
        raise ValueError(f"expected Dropout of one rate between layers and none behind the last, got rates {rates}")
    return recurrent, rates[0] if rates else 0.0


def _read_layer(layer: Any) -> tuple[str, dict[str, Any], _Params]:
    """(cell, options, parameters) of one Keras layer, with both directions if it has two."""
    import keras

    if type(layer) is not keras.layers.Bidirectional:
        cell, options, arrays = _read_direction(layer)
        if layer.go_backwards and layer.return_sequences:
            raise ValueError(
                f"{layer.name} goes backwards and returns sequences, last step first, where a layer here keeps the "
                "order of time; set return_sequences=False, and flip its y where Keras's order is needed"
            )
        return cell, options | {"reverse": layer.go_backwards}, [((name, ""), array) for name, array in arrays]
    if layer.merge_mode is None:
        raise ValueError(f"expected a merge_mode of {layer.name}: a layer here has one y, not one of each direction")
    if layer.forward_layer.go_backwards:
        raise ValueError(f"expected the forward_layer of {layer.name} to go forward, it goes backwards")
    cell, options, arrays = _read_direction(layer.forward_layer)
    other_cell, other, other_arrays = _read_direction(layer.backward_layer)
    if (other_cell, other) != (cell, options):
        raise ValueError(f"expected equal directions of {layer.name}, got {cell} {options} and {other_cell} {other}")
    both = [((name, ""), array) for name, array in arrays]
    both += [((name, "_reverse"), array) for name, array in other_arrays]
    return cell, options | {"bidirectional": True, "merge": layer.merge_mode}, both


def _read_direction(layer: Any) -> tuple[str, dict[str, Any], list[tuple[str, np.ndarray]]]:
    """(cell, options, parameters) of a SimpleRNN, GRU or LSTM."""
    import keras

    kinds = {keras.layers.SimpleRNN: "rnn", keras.layers.GRU: "gru", keras.layers.LSTM: "lstm"}
    cell = kinds.get(type(layer))
    if cell is None:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"expected {names} of Keras, Bidirectional or Sequential of one, got {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"expected {layer.name} to be built, so that it has weights; call it on an input first")
    for name, value in (
        ("dropout", layer.cell.dropout),
        ("recurrent_dropout", layer.cell.recurrent_dropout),
        ("stateful", layer.stateful),
    ):
        if value:
            raise ValueError(
                f"a layer here cannot express {name}={value} of {layer.name}; for inference alone, set it to 0 first "
                f"({layer.name}{'' if name == 'stateful' else '.cell'}.{name} = {type(value)(0)})"
            )
    dtypes = {layer.variable_dtype, layer.compute_dtype}
    if dtypes not in ({"float32"}, {"float64"}):
        raise TypeError(f"expected {layer.name} in float32 or float64 throughout, got {', '.join(sorted(dtypes))}")
    arrays = _params(cell, layer.cell)
    H = int(layer.cell.units)
    activations = _read_activations(cell, layer)
    options: dict[str, Any] = {
        "input_size": arrays[0][1].shape[1], "hidden_size": H, "bias": layer.cell.use_bias, "batch_first": True,
        "dtype": layer.variable_dtype,
    }  # fmt: skip
    options |= {"nonlinearity": activations[0]} if cell == "rnn" else {"activations": activations}
    options |= {"reset_after": layer.cell.reset_after} if cell == "gru" else {}
    return cell, options, arrays


def _params(cell: str, weights: Any) -> list[tuple[str, np.ndarray]]:
    """The parameters of a Keras cell with our names, order of gates and orientation."""
    from keras.ops import convert_to_numpy

    gates = _GATES[cell]
    arrays = [
        ("weight_ih", reorder(convert_to_numpy(weights.kernel.value).T, gates)),
        ("weight_hh", reorder(convert_to_numpy(weights.recurrent_kernel.value).T, gates)),
    ]
    if weights.use_bias:
        bias = convert_to_numpy(weights.bias.value)
        b_ih, b_hh = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        arrays += [("bias_ih", reorder(b_ih, gates)), ("bias_hh", reorder(b_hh, gates))]
    return arrays


def _read_activations(cell: str, layer: Any) -> tuple[Activation, ...]:
    inner = _read_activation(layer, layer.cell.activation)
    if cell == "rnn":
        return (inner,)
    gates = _read_activation(layer, layer.cell.recurrent_activation)
    return (gates, inner) if cell == "gru" else (gates, inner, inner)


def _read_activation(layer: Any, function: Any) -> Activation:
    """Our name of an activation of Keras, which is recognised by identity: another function could have any name."""
    import keras

    for name, activation in _ACTIVATIONS.items():
        if function is getattr(keras.activations, name):
            return activation
    shown = getattr(function, "__name__", function)
    raise ValueError(f"expected activations of {layer.name} among {', '.join(_ACTIVATIONS)} of Keras, got {shown}")


# ------------------------------------------------------------ to Keras


def _write_layer(layer: Recurrent, k: int, return_sequences: bool, return_state: bool) -> Any:
    """Layer k of a stack as a built Keras layer."""
    import keras

    kind = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[layer.cell]
    written = kind(
        layer.hidden_size,
        use_bias=layer.bias,
        go_backwards=layer.reverse,
        return_sequences=return_sequences,
        return_state=return_state,
        dtype=layer.dtype.name,
        **_written_activations(layer),
        **({"reset_after": layer.reset_after} if isinstance(layer, GRU) else {}),
    )
    if layer.bidirectional:
        written = keras.layers.Bidirectional(written, merge_mode=layer.merge, dtype=layer.dtype.name)
    ends = suffixes(layer)[k]
    written.build((None, None, layer.params[f"weight_ih{ends[0]}"].shape[1]))
    directions = [written.forward_layer, written.backward_layer] if layer.bidirectional else [written]
    for direction, end in zip(directions, ends, strict=True):
        direction.set_weights(_written_weights(layer, end))
    if keras.ops.convert_to_numpy(directions[0].cell.kernel.value).dtype != layer.dtype:  # JAX without jax_enable_x64
        raise ValueError(f"Keras's backend {keras.backend.backend()} is not set up for {layer.dtype}")
    return written


def _written_weights(layer: Recurrent, end: str) -> list[np.ndarray]:
    """kernel, recurrent_kernel and bias of one direction."""
    gates, params = np.argsort(_GATES[layer.cell]), layer.params
    weights = [reorder(params[f"{name}{end}"], gates).T for name in ("weight_ih", "weight_hh")]
    if layer.bias:
        b_ih, b_hh = (reorder(params[f"{name}{end}"], gates) for name in ("bias_ih", "bias_hh"))
        weights.append(np.stack([b_ih, b_hh]) if getattr(layer, "reset_after", False) else b_ih + b_hh)
    return weights


def _written_activations(layer: Recurrent) -> dict[str, str]:
    activations = activations_of(layer)
    if layer.cell == "rnn":
        return {"activation": _written_activation(layer, activations[0])}
    if layer.cell == "lstm" and not same_activation(*activations[1:]):
        raise ValueError(f"Keras has one activation for the cell input and output of an LSTM, got {activations[1:]}")
    gates, inner = (_written_activation(layer, activation) for activation in activations[:2])
    return {"recurrent_activation": gates, "activation": inner}


def _written_activation(layer: Recurrent, activation: Activation) -> str:
    for name, known in _ACTIVATIONS.items():
        if same_activation(activation, known):
            return name
    known_ones = ", ".join(f"{name} ({known!r} here)" for name, known in _ACTIVATIONS.items())
    raise ValueError(
        f"Keras cannot express the activation {activation!r} of a {type(layer).__name__}; it has {known_ones}"
    )
