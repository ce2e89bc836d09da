"""Random problems for the tests of recurrent layers: a layer, its arguments, and a loss to differentiate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from fastrnn import reference
from fastrnn.reference import DropoutMasks

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
DEFAULTS = {
    "rnn": {"nonlinearity": "tanh"},
    "gru": {"reset_after": True, "activations": ("sigmoid", "tanh")},
    "lstm": {
        "zoneout_cell": 0.0,
        "proj_size": 0,
        "peephole": False,
        "coupled": False,
        "activations": ("sigmoid", "tanh", "tanh"),
    },
}
T, B, I, H = 5, 4, 2, 3


def stand_in(cell, input_size=I, hidden_size=H, *, rng, dtype="float64", **options):
    """What the reference reads of a fastrnn layer: attributes and parameters."""
    layer = SimpleNamespace(
        cell=cell, input_size=input_size, hidden_size=hidden_size, num_layers=1, bias=True, batch_first=False,
        dropout=0.0, weight_dropout=0.0, input_dropout=0.0, recurrent_dropout=0.0, zoneout=0.0,
        bidirectional=False, reverse=False, merge="concat", clip=None, grad_clip=None, layer_norm=False,
        dtype=np.dtype(dtype), **DEFAULTS[cell],
    )  # fmt: skip
    for name, value in options.items():
        assert hasattr(layer, name), name
        setattr(layer, name, value)
    shapes = {}
    for k in range(layer.num_layers):
        width_in = input_size if k == 0 else output_width(layer)
        for suffix in ("", "_reverse") if layer.bidirectional else ("",):
            shapes |= {f"{name}_l{k}{suffix}": shape for name, shape in cell_shapes(layer, width_in).items()}
    scale = 0.8 if cell != "rnn" else 0.5
    layer.params = {name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    return layer


def state_width(layer):
    return getattr(layer, "proj_size", 0) or layer.hidden_size


def output_width(layer):
    return state_width(layer) * (2 if layer.bidirectional and layer.merge == "concat" else 1)


def cell_shapes(layer, width_in):
    rows = GATES[layer.cell] * layer.hidden_size
    shapes = {"weight_ih": (rows, width_in), "weight_hh": (rows, state_width(layer))}
    if layer.bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if layer.layer_norm:
        shapes |= {"gain_ih": (rows,), "gain_hh": (rows,)}
        if is_lstm(layer):
            shapes |= {"gain_c": (layer.hidden_size,)} | ({"bias_c": (layer.hidden_size,)} if layer.bias else {})
    if getattr(layer, "proj_size", 0):
        shapes["weight_hr"] = (layer.proj_size, layer.hidden_size)
    if getattr(layer, "peephole", False):
        shapes["weight_peephole"] = (3, layer.hidden_size)
    return shapes


def random_state(layer, rng, *batch):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = rng.standard_normal((rows, *batch, state_width(layer))).astype(layer.dtype)
    return (h, rng.standard_normal((rows, *batch, layer.hidden_size)).astype(layer.dtype)) if is_lstm(layer) else h


def random_masks(layer, k, rng):
    """What a layer drops, drawn by other means: of layer k, for each direction."""
    P = state_width(layer)

    def dropped(p, *shape):
        return (rng.random(shape) >= p) / (1 - p) if p else None

    def kept(p, *shape):
        return (rng.random(shape) < p).astype(np.uint8) if p else None

    x = dropped(layer.input_dropout, B, layer.input_size if k == 0 else output_width(layer))
    return [
        DropoutMasks(
            x=x,
            weight_hh=dropped(layer.weight_dropout, GATES[layer.cell] * H, P),
            h=dropped(layer.recurrent_dropout, B, P),
            zoneout_h=kept(layer.zoneout, T, B, P),
            zoneout_c=kept(getattr(layer, "zoneout_cell", 0.0), T, B, H),
        )
        for _ in range(2 if layer.bidirectional else 1)
    ]


def is_lstm(layer):
    return layer.cell == "lstm"


def problem(cell, options, how=()):
    """A layer, arguments for it, and a random loss: the sum of y * dy and of the final state * dstate."""
    rng = np.random.default_rng(20)
    layer = stand_in(cell, rng=rng, **options)
    batch = () if "unbatched" in how else (B,)
    axes = (B, T) if layer.batch_first and batch else (T, *batch)
    x = rng.integers(0, I, axes) if "one_hot" in how else rng.standard_normal((*axes, I))
    call = {}
    if "lengths" in how:
        call["lengths"] = np.array([T, 2, 0, 3])
    if "reset" in how:
        call["reset"] = rng.random(axes) < 0.4
    if "dropout" in how:
        shape = (T, B, output_width(layer))
        call["dropout_masks"] = [(rng.random(shape) < 0.5) / 0.5 for _ in range(layer.num_layers - 1)]
    if "masks" in how:
        call["noise"] = [random_masks(layer, k, rng) for k in range(layer.num_layers)]
    state, dstate = random_state(layer, rng, *batch), random_state(layer, rng, *batch)
    dy = rng.standard_normal((*axes, output_width(layer)))
    return SimpleNamespace(layer=layer, x=x, state=state, call=call, dy=dy, dstate=dstate)


TWO = {"num_layers": 2, "bidirectional": True}
ALL = {"weight_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.3, "zoneout": 0.4}
WITH_MASKS = {
    "rnn-weight-dropout": ("rnn", {"weight_dropout": 0.5}, ("masks",)),
    "gru-weight-dropout": ("gru", {"weight_dropout": 0.5}, ("masks",)),
    "gru-before-weight-dropout": ("gru", {"weight_dropout": 0.5, "reset_after": False}, ("masks",)),
    "lstm-weight-dropout-one-hot": ("lstm", {"weight_dropout": 0.5}, ("masks", "one_hot")),
    "rnn-input-dropout-batch-first": ("rnn", {"input_dropout": 0.5, "batch_first": True}, ("masks", "lengths")),
    "rnn-recurrent-dropout": ("rnn", {"recurrent_dropout": 0.5}, ("masks",)),
    "gru-recurrent-dropout": ("gru", {"recurrent_dropout": 0.5}, ("masks",)),
    "gru-before-recurrent-dropout": ("gru", {"recurrent_dropout": 0.5, "reset_after": False}, ("masks",)),
    "lstm-recurrent-dropout": ("lstm", {"recurrent_dropout": 0.5}, ("masks",)),
    "rnn-zoneout": ("rnn", {"zoneout": 0.5}, ("masks",)),
    "gru-zoneout": ("gru", {"zoneout": 0.5}, ("masks",)),
    "gru-before-zoneout": ("gru", {"zoneout": 0.5, "reset_after": False}, ("masks",)),
    "lstm-zoneout": ("lstm", {"zoneout": 0.5}, ("masks",)),
    "lstm-zoneout-cell": ("lstm", {"zoneout_cell": 0.5}, ("masks",)),
    "rnn-all-masks": ("rnn", {**ALL, **TWO, "batch_first": True}, ("masks", "lengths", "reset")),
    "rnn-clip-all-masks": ("rnn", {**ALL, "clip": 0.7, "reverse": True}, ("masks", "lengths", "reset")),
    "gru-all-masks": ("gru", {**ALL, **TWO}, ("masks", "lengths", "reset")),
    "gru-before-all-masks": ("gru", {**ALL, **TWO, "reset_after": False}, ("masks", "lengths", "reset")),
    "lstm-all-masks": ("lstm", {**ALL, **TWO, "zoneout_cell": 0.3, "proj_size": 2}, ("masks", "lengths", "reset")),
    "lstm-general-all-masks": (
        "lstm",
        {**ALL, "zoneout_cell": 0.3, "peephole": True, "coupled": True, "clip": 0.9},
        ("masks", "reset"),
    ),
}

NORM = {"layer_norm": True}
NORMED = {
    "rnn-norm": ("rnn", NORM),
    "rnn-norm-relu": ("rnn", {**NORM, "nonlinearity": "relu"}),
    "rnn-norm-no-bias": ("rnn", {**NORM, "bias": False}),
    "rnn-norm-one-hot-ragged-reset": ("rnn", NORM, ("one_hot", "lengths", "reset")),
    "rnn-norm-all-masks": ("rnn", {**NORM, **ALL, **TWO, "batch_first": True}, ("masks", "lengths", "reset")),
    "rnn-norm-unbatched": ("rnn", {**NORM, "reverse": True}, ("unbatched",)),
    "gru-norm": ("gru", NORM),
    "gru-norm-no-bias": ("gru", {**NORM, "bias": False}, ("one_hot",)),
    "gru-norm-stacked": ("gru", {**NORM, **TWO}, ("lengths", "reset", "dropout")),
    "gru-norm-all-masks": ("gru", {**NORM, **ALL, **TWO}, ("masks", "lengths", "reset")),
    "lstm-norm": ("lstm", NORM),
    "lstm-norm-no-bias": ("lstm", {**NORM, "bias": False}, ("one_hot",)),
    "lstm-norm-stacked": ("lstm", {**NORM, **TWO, "merge": "mul"}, ("lengths", "reset", "dropout")),
    "lstm-norm-all-masks": ("lstm", {**NORM, **ALL, **TWO, "zoneout_cell": 0.3}, ("masks", "lengths", "reset")),
}

# What there is to hold: the cell, its options, and what else comes in.
CASES = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"nonlinearity": "relu"}),
    "rnn-no-bias": ("rnn", {"bias": False}),
    "rnn-clip": ("rnn", {"clip": 0.7}),
    "rnn-one-hot": ("rnn", {}, ("one_hot",)),
    "rnn-reverse": ("rnn", {"reverse": True}),
    "rnn-reverse-ragged-reset": ("rnn", {"reverse": True}, ("lengths", "reset")),
    "rnn-batch-first-ragged-reset": ("rnn", {"batch_first": True}, ("lengths", "reset")),
    "rnn-batch-first-one-hot": ("rnn", {"batch_first": True}, ("one_hot", "lengths")),
    "rnn-unbatched-reset": ("rnn", {"num_layers": 2, "bidirectional": True}, ("unbatched", "reset")),
    "rnn-unbatched-one-hot": ("rnn", {"batch_first": True}, ("unbatched", "one_hot")),
    "rnn-stacked-ragged-reset": ("rnn", {"num_layers": 2, "bidirectional": True}, ("lengths", "reset")),
    "rnn-sum": ("rnn", {"num_layers": 2, "bidirectional": True, "merge": "sum"}, ("lengths",)),
    "rnn-mul": ("rnn", {"num_layers": 2, "bidirectional": True, "merge": "mul"}, ("lengths",)),
    "rnn-ave": ("rnn", {"num_layers": 2, "bidirectional": True, "merge": "ave"}, ("lengths",)),
    "rnn-dropout": ("rnn", {"num_layers": 3}, ("dropout",)),
    "gru": ("gru", {}),
    "gru-no-bias": ("gru", {"bias": False}),
    "gru-before": ("gru", {"reset_after": False}),
    "gru-before-no-bias": ("gru", {"reset_after": False, "bias": False}),
    "gru-before-clip": ("gru", {"reset_after": False, "clip": 0.9}),
    "gru-clip": ("gru", {"clip": 0.9}),
    "gru-activations": ("gru", {"activations": (("hard_sigmoid", 0.3), "softsign")}),
    "gru-one-hot-ragged-reset": ("gru", {}, ("one_hot", "lengths", "reset")),
    "gru-before-ragged-reset": ("gru", {"reset_after": False, "reverse": True}, ("lengths", "reset")),
    "gru-stacked": ("gru", {"num_layers": 2, "bidirectional": True}, ("lengths", "reset", "dropout")),
    "lstm": ("lstm", {}),
    "lstm-no-bias": ("lstm", {"bias": False}),
    "lstm-projected": ("lstm", {"proj_size": 2}, ("lengths", "reset")),
    "lstm-peephole": ("lstm", {"peephole": True}, ("lengths", "reset")),
    "lstm-coupled": ("lstm", {"coupled": True}),
    "lstm-peephole-coupled": ("lstm", {"peephole": True, "coupled": True}),
    "lstm-clip": ("lstm", {"clip": 0.9}),
    "lstm-everything": ("lstm", {"peephole": True, "coupled": True, "proj_size": 2, "clip": 0.9, "reverse": True}),
    "lstm-activations": ("lstm", {"activations": ("softplus", ("elu", 0.7), ("scaled_tanh", 1.7, 0.6))}),
    "lstm-one-hot-unbatched": ("lstm", {}, ("one_hot", "unbatched")),
    "lstm-stacked": ("lstm", {"num_layers": 2, "bidirectional": True, "proj_size": 2}, ("lengths", "reset", "dropout")),
} | {
    f"rnn-{name}": ("rnn", {"nonlinearity": name})
    for name in reference.FORMULAS
    if name not in ("tanh", "relu")
} | WITH_MASKS | NORMED  # fmt: skip
