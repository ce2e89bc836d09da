"""grad_clip: the gradient of each step's pre-activations is held within bounds before it goes back further."""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest

from layer_cases import CELLS, STACKS, assert_same_as_reference, case


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_is_what_the_reference_is(cell, stack, dtype):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(len(cell) + len(stack))
    layer = kind(4, 6, **options, **STACKS[stack], grad_clip=0.05, dtype=dtype, rng=rng)
    for variant in ({}, {"ragged": True, "reset": True}):
        assert_same_as_reference(layer, *case(layer, rng, **variant), rng)


@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set_is_right(cell, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(3)
    layer = kind(6, 21, **options, grad_clip=0.05, rng=rng)
    for B in (1, 11):
        assert_same_as_reference(layer, *case(layer, rng, B=B), rng)


@pytest.mark.parametrize("cell", CELLS)
def test_bound_that_nothing_reaches_changes_nothing(cell):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(0)
    free, bound = (kind(4, 6, 2, **options, grad_clip=clip, rng=1) for clip in (None, 1e6))
    x, state, _ = case(free, rng)
    for layer in (free, bound):
        y, _, tape = layer.forward(x, state)
        layer.backward(tape, np.ones_like(y))
    for name, g in free.grads.items():
        np.testing.assert_array_equal(bound.grads[name], g)


def test_rnn_by_hand():
    """da(t) = clip((dy(t) + W^T da(t+1)) (1 - h(t)^2)), and all else from da."""
    layer = fastrnn.RNN(2, 3, grad_clip=0.1, dtype="float64", rng=0)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(6, 1, 2)), rng.normal(size=(6, 1, 3))
    y, _, tape = layer.forward(x)
    dx, dstate = layer.backward(tape, dy)
    W, U = layer.params["weight_hh_l0"], layer.params["weight_ih_l0"]
    da, after = np.empty_like(dy), np.zeros((1, 3))
    for t in reversed(range(6)):
        da[t] = after = np.minimum(np.maximum((dy[t] + after @ W) * (1 - y[t] ** 2), -0.1), 0.1)
    assert (np.abs(da) == 0.1).mean() > 0.5
    np.testing.assert_allclose(dx, da @ U, atol=1e-14)
    np.testing.assert_allclose(dstate[0], da[0] @ W, atol=1e-14)
    np.testing.assert_allclose(layer.grads["weight_ih_l0"], da[:, 0].T @ x[:, 0], atol=1e-14)
    np.testing.assert_allclose(layer.grads["weight_hh_l0"], da[1:, 0].T @ y[:-1, 0], atol=1e-14)
    np.testing.assert_allclose(layer.grads["bias_ih_l0"], da.sum(axis=(0, 1)), atol=1e-14)


def test_lstm_by_hand():
    """One unit, two steps: each of the four gradients is clipped, that of c is not."""
    layer = fastrnn.LSTM(1, 1, grad_clip=0.01, dtype="float64", rng=2)
    x = np.array([0.3, -0.8]).reshape(2, 1, 1)
    tape = layer.forward(x)[2]
    dx, (_, dc0) = layer.backward(tape, np.array([0.0, 5.0]).reshape(2, 1, 1))
    gates = {name: array[:, 0, 0] for name, array in tape.gates().items()}
    (i, f, g, o), c = (gates[name] for name in "ifgo"), gates["c"]
    W, U, q = layer.params["weight_hh_l0"][:, 0], layer.params["weight_ih_l0"][:, 0], np.tanh(c)

    def step(t, dh, dc, c_before):
        dc = dc + dh * o[t] * (1 - q[t] ** 2)
        da = [dc * g[t] * i[t] * (1 - i[t]), dc * c_before * f[t] * (1 - f[t]), dc * i[t] * (1 - g[t] ** 2)]
        return np.clip([*da, dh * q[t] * o[t] * (1 - o[t])], -0.01, 0.01), dc * f[t]

    second, dc = step(1, 5.0, 0.0, c[0])
    first, dc = step(0, second @ W, dc, 0.0)
    assert (np.abs(second) == 0.01).sum() >= 2
    np.testing.assert_allclose(dx[:, 0, 0], [first @ U, second @ U], atol=1e-14)
    np.testing.assert_allclose(dc0, dc, atol=1e-14)
    np.testing.assert_allclose(layer.grads["bias_ih_l0"], first + second, atol=1e-14)


def test_gradient_that_would_overflow_stays_finite():
    for grad_clip in (None, 1.0):
        layer = fastrnn.RNN(1, 1, nonlinearity="identity", bias=False, grad_clip=grad_clip)
        layer.params["weight_hh_l0"][...] = 10
        y, _, tape = layer.forward(np.zeros((100, 1, 1), np.float32))
        dx, _ = layer.backward(tape, np.ones_like(y))
        assert np.isfinite(dx).all() == (grad_clip is not None)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_is_not_hidden(cell):
    kind, options = CELLS[cell]
    layer = kind(4, 6, **options, grad_clip=1.0, rng=0)
    y, _, tape = layer.forward(np.ones((3, 2, 4), np.float32))
    dy = np.full_like(y, np.nan)
    dx, _ = layer.backward(tape, dy)
    assert np.isnan(dx).all()


@pytest.mark.parametrize("value", [0, -1.0, np.inf])
def test_bound_must_be_positive(value):
    with pytest.raises(ValueError, match="grad_clip"):
        fastrnn.GRU(2, 3, grad_clip=value)
