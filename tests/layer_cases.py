"""Layers with all that they can be asked to do, arguments for them, and their comparison with the reference."""

from __future__ import annotations

import fastrnn
from fastrnn import reference

from problems import random_state
from states import agree, as_state, as_tuple, assert_equal

CLASSES = {"rnn": fastrnn.RNN, "gru": fastrnn.GRU, "lstm": fastrnn.LSTM}
BY_NAME = {kind.__name__: kind for kind in CLASSES.values()}
CELLS = {
    "rnn tanh": (fastrnn.RNN, {}),
    "rnn relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn softsign, clip": (fastrnn.RNN, {"nonlinearity": "softsign", "clip": 0.4}),
    "gru": (fastrnn.GRU, {}),
    "gru clip": (fastrnn.GRU, {"clip": 0.3}),
    "gru reset before": (fastrnn.GRU, {"reset_after": False}),
    "gru reset before, hard sigmoid": (
        fastrnn.GRU,
        {"reset_after": False, "activations": (("hard_sigmoid", 0.3), "tanh")},
    ),
    "lstm": (fastrnn.LSTM, {}),
    "lstm projected": (fastrnn.LSTM, {"proj_size": 3}),
    "lstm peephole": (fastrnn.LSTM, {"peephole": True}),
    "lstm coupled, peephole, projected, clip": (
        fastrnn.LSTM,
        {"coupled": True, "peephole": True, "proj_size": 5, "clip": 0.5},
    ),
    "lstm other activations": (
        fastrnn.LSTM,
        {"activations": ("hard_sigmoid", ("scaled_tanh", 1.2, 0.7), ("elu", 0.8))},
    ),
}
STACKS = {
    "one layer": {},
    "no bias": {"bias": False},
    "reversed": {"reverse": True},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "summed": {"bidirectional": True, "merge": "sum"},
    "multiplied": {"bidirectional": True, "merge": "mul", "num_layers": 2},
    "averaged": {"bidirectional": True, "merge": "ave"},
}
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
# What a layer drops at random, but for zoneout and what is between layers
DROPOUTS = {"weight_dropout": 0.4, "input_dropout": 0.3, "recurrent_dropout": 0.35}


def case(layer, rng, T=7, B=5, ragged=False, reset=False, one_hot=False):
    """Arguments of one call: x, state, and the keywords."""
    x = rng.normal(size=(T, B, layer.input_size)).astype(layer.dtype)
    if one_hot:
        x = rng.integers(0, layer.input_size, (T, B))
    state = random_state(layer, rng, B)
    keywords = {}
    if ragged:
        lengths = rng.integers(0, T + 1, B)
        lengths[: min(B, 2)] = (T, 0)[: min(B, 2)]
        keywords["lengths"] = lengths
    if reset:
        keywords["reset"] = rng.random((T, B)) < 0.3
    return x, state, keywords


def drops(layer):
    """Whether training differs from inference."""
    return any(getattr(layer, name, 0) for name in ("dropout", *DROPOUTS, "zoneout", "zoneout_cell"))


def assert_same_as_reference(layer, x, state, keywords, rng, tolerances=TOLERANCE):
    """Outputs, states and every gradient; the reference is given what the layer dropped."""
    tolerance = tolerances[layer.dtype.name]
    y, final, tape = layer.forward(x, state, **keywords)
    dropped = {"dropout_masks": tape.between[:-1] if layer.dropout else None, "noise": tape.masks}
    y_ref, final_ref, tape_ref = reference.forward(layer, x, state, **keywords, **(dropped if drops(layer) else {}))
    agree("y", y, y_ref, tolerance)
    if not drops(layer):
        y_inference, final_inference = layer(x, state, **keywords)
        assert_equal((y_inference, *as_tuple(final_inference)), (y, *as_tuple(final)))
    dy = rng.normal(size=y.shape).astype(layer.dtype)
    dfinal = as_state([rng.normal(size=s.shape).astype(layer.dtype) for s in as_tuple(final)])
    layer.zero_grad()
    dx, dinitial = layer.backward(tape, dy, dfinal)
    dx_ref, dinitial_ref, grads_ref = reference.backward(layer, tape_ref, dy, dfinal)
    for name, a, b in (("state", final, final_ref), ("dstate", dinitial, dinitial_ref)):
        for i, (ours, theirs) in enumerate(zip(as_tuple(a), as_tuple(b), strict=True)):
            agree(f"{name} {'hc'[i]}", ours, theirs, tolerance)
    if dx_ref is None:
        assert dx is None
    else:
        agree("dx", dx, dx_ref, tolerance)
    for name, grad in grads_ref.items():
        agree(name, layer.grads[name], grad, 4 * tolerance)
