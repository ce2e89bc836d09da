"""Every gradient of the layers against the derivative's definition, in float64."""

from __future__ import annotations

import copy

import fastrnn
import numpy as np
import pytest

from finite_differences import numeric_gradient
from problems import CASES, H, I, problem
from states import as_tuple

LAYERS = {"rnn": fastrnn.RNN, "gru": fastrnn.GRU, "lstm": fastrnn.LSTM}


def layer_of(p, options):
    """The layer that a problem's stand-in stands for; where the problem has dropout masks, it draws its own."""
    dropout = 0.5 if "dropout_masks" in p.call else 0.0
    layer = LAYERS[p.layer.cell](I, H, **options, dropout=dropout, dtype="float64", rng=0)
    layer.load_state_dict(p.layer.params)
    return layer


def loss_of(p, y, state):
    return (y * p.dy).sum() + sum((s * d).sum() for s, d in zip(as_tuple(state), as_tuple(p.dstate), strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_gradient_is_the_limit_of_finite_differences(case):
    p = problem(*case)
    untouched = layer_of(p, case[1])
    params = untouched.params
    call = {name: value for name, value in p.call.items() if name not in ("dropout_masks", "noise")}
    random = len(call) < len(p.call)

    def loss():
        # a copy has the generator's state too, so that it draws the same masks each time
        layer = copy.deepcopy(untouched) if random else untouched
        y, state, _ = layer.forward(p.x, p.state, **call)
        return loss_of(p, y, state)

    layer = copy.deepcopy(untouched)
    _, _, tape = layer.forward(p.x, p.state, **call)
    dx, dstate = layer.backward(tape, p.dy, p.dstate)

    step = 2e-6 if p.layer.layer_norm else 1e-5  # a norm over few numbers bends sharply

    def check(name, gradient, array):
        numeric = numeric_gradient(loss, array, step=step)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8, err_msg=name)

    for name, array in params.items():
        check(name, layer.grads[name], array)
    for letter, gradient, array in zip("hc", as_tuple(dstate), as_tuple(p.state), strict=False):
        check(letter, gradient, array)
    if dx is None:
        assert np.issubdtype(p.x.dtype, np.integer)
    else:
        check("x", dx, p.x)


# Large enough for several panels, tiles with a rest, and rows that run dry one after the other
WIDE = {
    "rnn": (fastrnn.RNN, {}),
    "rnn relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "gru": (fastrnn.GRU, {}),
    "gru reset before": (fastrnn.GRU, {"reset_after": False}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm projected": (fastrnn.LSTM, {"proj_size": 19}),
    "lstm peephole": (fastrnn.LSTM, {"peephole": True}),
}


@pytest.mark.parametrize("batch", [1, 13])
@pytest.mark.parametrize("kind", WIDE)
def test_all_gradients_of_a_wide_layer_give_the_slope_along_a_line(kind, batch):
    cls, options = WIDE[kind]
    rng = np.random.default_rng(12)
    steps = 15
    layer = cls(21, 53, num_layers=2, bidirectional=True, dtype="float64", rng=rng, **options)
    x = rng.normal(size=(steps, batch, 21))
    call = {"lengths": rng.integers(1, steps + 1, batch), "reset": rng.random((steps, batch)) < 0.1}
    y, state, tape = layer.forward(x, **call)
    dy, dstate = rng.normal(size=y.shape), [rng.normal(size=s.shape) for s in as_tuple(state)]

    def loss():
        y, state = layer(x, **call)
        return (y * dy).sum() + sum((s * d).sum() for s, d in zip(as_tuple(state), dstate, strict=True))

    dx, _ = layer.backward(tape, dy, tuple(dstate) if layer.cell == "lstm" else dstate[0])
    arrays = [x, *layer.params.values()]
    gradients = [dx, *layer.grads.values()]
    for array, gradient in zip(arrays, gradients, strict=True):
        # along the gradient itself, where nothing cancels
        line = gradient / np.linalg.norm(gradient)
        start, step = array.copy(), 1e-7  # so small that no relu bends within it
        array += step * line
        above = loss()
        array[...] = start - step * line
        below = loss()
        array[...] = start
        np.testing.assert_allclose((above - below) / (2 * step), np.linalg.norm(gradient), rtol=1e-6)
