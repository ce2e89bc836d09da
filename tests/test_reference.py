"""The NumPy reference against the derivative's definition, torch's autograd and torch.nn."""

from __future__ import annotations

import doctest
import importlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from fastrnn import reference

from autograd_oracle import activate, differentiated, leaf, run_autograd
from finite_differences import numeric_gradient
from problems import CASES, B, H, I, T, is_lstm, problem, random_state, stand_in
from states import as_tuple


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")
    torch.set_num_threads(1)
    return torch


def run_reference(p):
    y, state, tape = reference.forward(p.layer, p.x, p.state, **p.call)
    dx, dstate, grads = reference.backward(p.layer, tape, p.dy, p.dstate)
    return SimpleNamespace(y=y, state=as_tuple(state), dx=dx, dstate=as_tuple(dstate), grads=grads)


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients, by three oracles
# ---------------------------------------------------------------------------------------------------------------------


@every_case
def test_every_gradient_is_the_limit_of_finite_differences(case):
    p = problem(*case)
    result = run_reference(p)

    def loss():
        y, state, _ = reference.forward(p.layer, p.x, p.state, **p.call)
        return (y * p.dy).sum() + sum((s * d).sum() for s, d in zip(as_tuple(state), as_tuple(p.dstate), strict=True))

    rtol, step = (1e-5, 2e-6) if p.layer.layer_norm else (1e-6, 1e-5)  # a norm over few numbers bends sharply

    def check(name, gradient, array):
        numeric = numeric_gradient(loss, array, step=step)
        np.testing.assert_allclose(gradient, numeric, rtol=rtol, atol=1e-8, err_msg=name)

    assert list(result.grads) == list(p.layer.params)
    for name, array in p.layer.params.items():
        check(name, result.grads[name], array)
    for name, gradient, array in zip("hc", result.dstate, as_tuple(p.state), strict=False):
        check(name, gradient, array)
    if np.issubdtype(p.x.dtype, np.integer):
        assert result.dx is None
    else:
        check("x", result.dx, p.x)


@every_case
def test_outputs_and_gradients_are_those_of_autograd(case, torch):
    p = problem(*case)
    result, expected = run_reference(p), run_autograd(torch, p)
    assert_same(result, expected)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("case", ["rnn", "rnn-relu", "gru", "gru-no-bias", "lstm", "lstm-no-bias", "lstm-projected"])
def test_outputs_and_gradients_are_those_of_torch_nn(case, num_layers, bidirectional, batch_first, ragged, torch):
    cell, options = CASES[case][:2]
    options = options | {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    p = problem(cell, options)
    module = getattr(torch.nn, cell.upper())(I, H, **options, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(p.layer.params[name]))

    if ragged:
        p.call["lengths"] = np.array([2, T, 1, 3])
    x, state = leaf(torch, p.x), [leaf(torch, s) for s in as_tuple(p.state)]
    rnn = torch.nn.utils.rnn
    lengths = torch.from_numpy(p.call["lengths"]) if ragged else None
    fed = rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False) if ragged else x
    y, last = module(fed, tuple(state) if is_lstm(p.layer) else state[0])
    if ragged:
        y, _ = rnn.pad_packed_sequence(y, batch_first=batch_first, total_length=T)
    expected = differentiated(torch, p, y, as_tuple(last), x, state, dict(module.named_parameters()))
    assert_same(run_reference(p), expected)


def assert_same(result, expected):
    assert list(result.grads) == list(expected.grads)
    pairs = [("y", result.y, expected.y)]
    pairs += [(f"state {n}", *pair) for n, *pair in zip("hc", result.state, expected.state, strict=False)]
    pairs += [(f"dstate {n}", *pair) for n, *pair in zip("hc", result.dstate, expected.dstate, strict=False)]
    pairs += [(name, result.grads[name], expected.grads[name]) for name in expected.grads]
    if expected.dx is not None:
        pairs.append(("dx", result.dx, expected.dx))
    for name, got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# What must hold beyond the gradients
# ---------------------------------------------------------------------------------------------------------------------

CELLS = ["rnn", "gru", "lstm"]
every_cell = pytest.mark.parametrize("cell", CELLS)


@every_cell
def test_float32_stays_float32_and_agrees_with_float64(cell):
    p = problem(cell, {"num_layers": 2, "bidirectional": True}, ("lengths", "reset", "dropout"))
    wide = run_reference(p)
    single = {name: array.astype("float32") for name, array in p.layer.params.items()}
    p.layer.params, p.layer.dtype = single, np.dtype("float32")
    p.x, p.dy = p.x.astype("float32"), p.dy.astype("float32")
    p.state, p.dstate = (as_single(s) for s in (p.state, p.dstate))
    p.call["dropout_masks"] = [mask.astype("float32") for mask in p.call["dropout_masks"]]
    narrow = run_reference(p)
    for got, wanted in zip(arrays(narrow), arrays(wide), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def as_single(state):
    return tuple(s.astype("float32") for s in state) if isinstance(state, tuple) else state.astype("float32")


def arrays(result):
    return [result.y, *result.state, result.dx, *result.dstate, *result.grads.values()]


@pytest.mark.parametrize("name", reference.FORMULAS)
def test_every_activation_keeps_float32(name):
    f = reference.Activation(name, clip=2.0)
    a = np.linspace(-3, 3, 7, dtype="float32")
    assert f(a).dtype == np.float32
    assert f.slope(a, f(a)).dtype == np.float32


@every_cell
def test_padding_is_not_looked_at_and_gets_no_gradient(cell):
    p = problem(cell, {"num_layers": 2, "bidirectional": True}, ("lengths", "reset"))
    clean = run_reference(p)
    padding = np.arange(T)[:, None] >= p.call["lengths"]
    p.x[padding], p.dy[padding] = np.nan, np.nan
    p.call["reset"] = p.call["reset"] | padding
    dirty = run_reference(p)
    for got, wanted in zip(arrays(dirty), arrays(clean), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not dirty.y[padding].any()
    assert not dirty.dx[padding].any()


@every_cell
def test_indices_in_the_padding_are_not_looked_at(cell):
    p = problem(cell, {}, ("one_hot", "lengths"))
    clean = run_reference(p)
    p.x[np.arange(T)[:, None] >= p.call["lengths"]] = -1
    dirty = run_reference(p)
    np.testing.assert_array_equal(dirty.y, clean.y)
    np.testing.assert_array_equal(dirty.grads["weight_ih_l0"], clean.grads["weight_ih_l0"])


@every_cell
def test_a_row_of_length_zero_keeps_its_state_and_hands_its_gradient_through(cell):
    p = problem(cell, {"bidirectional": True}, ("lengths", "reset"))
    result = run_reference(p)
    assert p.call["lengths"][2] == 0
    assert not result.y[:, 2].any()
    for after, before in zip(result.state, as_tuple(p.state), strict=True):
        np.testing.assert_array_equal(after[:, 2], before[:, 2])
    for before, after in zip(result.dstate, as_tuple(p.dstate), strict=True):
        np.testing.assert_array_equal(before[:, 2], after[:, 2])


@every_cell
def test_a_reset_starts_a_sequence_afresh(cell):
    p = problem(cell, {})
    p.call["reset"] = np.zeros((T, B), bool)
    p.call["reset"][2] = True
    packed, _, _ = reference.forward(p.layer, p.x, p.state, **p.call)
    first, _, _ = reference.forward(p.layer, p.x[:2], p.state)
    second, _, _ = reference.forward(p.layer, p.x[2:])
    np.testing.assert_allclose(packed, np.concatenate([first, second]), rtol=1e-13)


@every_cell
def test_no_gradient_crosses_a_reset(cell):
    p = problem(cell, {})
    p.call["reset"] = np.zeros((T, B), bool)
    p.call["reset"][2] = True
    p.dy[:2] = 0
    result = run_reference(p)
    assert not result.dx[:2].any()
    assert not any(d.any() for d in result.dstate)


@every_cell
def test_indices_act_as_one_hot_vectors(cell):
    p = problem(cell, {"num_layers": 2}, ("one_hot", "lengths"))
    by_index = run_reference(p)
    p.x = np.eye(I)[p.x]
    by_vector = run_reference(p)
    np.testing.assert_allclose(by_index.y, by_vector.y, rtol=1e-13)
    for name, gradient in by_index.grads.items():
        np.testing.assert_allclose(gradient, by_vector.grads[name], rtol=1e-12, atol=1e-14)


@every_cell
@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0, 0)], ids=["no-steps", "no-rows", "neither"])
@pytest.mark.parametrize("one_hot", [False, True], ids=["float", "one-hot"])
def test_no_steps_or_no_rows_give_empty_outputs_and_zero_gradients(cell, shape, one_hot):
    rng = np.random.default_rng(3)
    layer = stand_in(cell, rng=rng, num_layers=2, bidirectional=True)
    x = np.zeros(shape, int) if one_hot else np.zeros((*shape, I))
    state = random_state(layer, rng, shape[1])
    y, final, tape = reference.forward(layer, x, state, lengths=np.full(shape[1], shape[0]))
    dx, dstate, grads = reference.backward(layer, tape, y, state)
    assert y.shape == (*shape, 2 * H)
    assert dx is None if one_hot else dx.shape == x.shape
    for returned in (final, dstate):
        np.testing.assert_array_equal(as_tuple(returned), as_tuple(state))
    assert all(gradient.shape == layer.params[name].shape for name, gradient in grads.items())
    assert not any(gradient.any() for gradient in grads.values())


@every_cell
def test_an_initial_state_or_its_gradient_left_out_is_zero(cell):
    p = problem(cell, {"num_layers": 2, "bidirectional": True})
    zeros = tuple(np.zeros_like(s) for s in as_tuple(p.state))
    p.state = p.dstate = zeros if is_lstm(p.layer) else zeros[0]
    given = run_reference(p)
    p.state = p.dstate = None
    for got, wanted in zip(arrays(run_reference(p)), arrays(given), strict=True):
        np.testing.assert_array_equal(got, wanted)


@every_cell
def test_nothing_returned_is_part_of_the_tape_or_of_the_arguments(cell):
    p = problem(cell, {}, ("reset",))
    expected = run_reference(p)
    state = tuple(s.copy() for s in as_tuple(p.state))
    y, last, tape = reference.forward(p.layer, p.x, p.state, **p.call)
    for array in (y, *as_tuple(last), p.x, *as_tuple(p.state)):
        array[...] = np.nan
    dx, dstate, grads = reference.backward(p.layer, tape, p.dy, p.dstate)
    for got, wanted in zip((dx, *as_tuple(dstate), *grads.values()), arrays(expected)[1 + len(state) :], strict=True):
        np.testing.assert_array_equal(got, wanted)


@every_cell
def test_the_final_state_of_a_cell_is_not_part_of_its_tape_or_its_initial_state(cell):
    p = problem(cell, {})
    forward, backward = getattr(reference, f"{cell}_forward"), getattr(reference, f"{cell}_backward")
    before, dstate = ([s[0] for s in as_tuple(state)] for state in (p.state, p.dstate))
    weights = {name.removesuffix("_l0"): array for name, array in p.layer.params.items()}
    for x in (p.x, p.x[:0]):
        _, *last, tape = forward(x, *before, **weights)
        expected = backward(tape, p.dy[: len(x)], *dstate)
        for s in last:
            assert not any(np.shares_memory(s, b) for b in before)
            s[...] = np.nan
        result = backward(tape, p.dy[: len(x)], *dstate)
        for got, wanted in zip(
            (*result[:-1], *result[-1].values()), (*expected[:-1], *expected[-1].values()), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


def test_the_gradients_are_returned_and_not_added_into_the_layer():
    p = problem("gru", {})
    p.layer.grads = {name: np.zeros_like(array) for name, array in p.layer.params.items()}
    assert run_reference(p).grads["weight_hh_l0"].any()
    assert not any(gradient.any() for gradient in p.layer.grads.values())


def test_the_forget_rows_of_a_coupled_lstm_get_no_gradient():
    result = run_reference(problem("lstm", {"coupled": True, "peephole": True}))
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert not result.grads[name][H : 2 * H].any()
        assert result.grads[name][:H].any()
    assert not result.grads["weight_peephole_l0"][1].any()


def test_all_pre_activations_beyond_the_clip_leave_no_gradient():
    p = problem("rnn", {"clip": 1e-6})
    result = run_reference(p)
    np.testing.assert_allclose(np.abs(result.y), 1e-6, rtol=1e-6)
    assert not result.dx.any()
    assert not any(gradient.any() for gradient in result.grads.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": np.zeros((T, B, I), "float32")},
            TypeError,
            "expected x of dtype float64, or of an integer dtype, got float32",
        ),
        ({"x": np.zeros((T, B, I + 1))}, ValueError, r"expected x of shape \(T, B, 2\), or without B, got \(5, 4, 3\)"),
        ({"x": np.zeros((T, B, I, 1))}, ValueError, "expected x of shape"),
        ({"x": np.zeros((T, B, I), int)}, ValueError, r"expected x of shape \(T, B\), or without B"),
        ({"x": np.full((T, B), I)}, ValueError, r"expected integer x from 0 to 1, got 2 to 2"),
        ({"x": np.full((T, B), -1)}, ValueError, r"expected integer x from 0 to 1, got -1 to -1"),
        ({"state": np.zeros((1, B, H))}, TypeError, r"expected state of an LSTM as a pair \(h, c\), got ndarray"),
        ({"state": (np.zeros((1, B, H)), np.zeros((2, B, H)))}, ValueError, "expected state c of shape"),
        ({"state": (np.zeros((1, B, H), "float32"),) * 2}, TypeError, "expected state h of dtype float64"),
        ({"lengths": np.ones(B)}, TypeError, "expected lengths of an integer dtype, got float64"),
        ({"lengths": np.ones(B - 1, int)}, ValueError, r"expected lengths of shape \(4,\), got \(3,\)"),
        ({"lengths": np.array([0, 1, 2, T + 1])}, ValueError, r"expected lengths from 0 to T = 5, got 0 to 6"),
        ({"lengths": np.array([-1, 1, 2, 3])}, ValueError, r"expected lengths from 0 to T = 5, got -1 to 3"),
        ({"reset": np.zeros((T, B))}, TypeError, "expected reset of dtype bool, got float64"),
        ({"reset": np.zeros((B, T), bool)}, ValueError, r"expected reset of shape \(5, 4\), got \(4, 5\)"),
    ],
)
def test_forward_refuses_what_does_not_fit(change, error, message):
    layer = stand_in("lstm", rng=np.random.default_rng(0))
    with pytest.raises(error, match=message):
        reference.forward(layer, **{"x": np.zeros((T, B, I)), **change})


def test_backward_refuses_what_does_not_fit():
    layer = stand_in("gru", rng=np.random.default_rng(0))
    y, state, tape = reference.forward(layer, np.zeros((T, B, I)))
    with pytest.raises(ValueError, match=r"expected dy of shape \(5, 4, 3\), got \(4, 4, 3\)"):
        reference.backward(layer, tape, y[1:])
    with pytest.raises(TypeError, match="expected dy of dtype float64, got float32"):
        reference.backward(layer, tape, y.astype("float32"))
    with pytest.raises(ValueError, match=r"expected dstate of shape \(1, 4, 3\), got \(1, 3, 3\)"):
        reference.backward(layer, tape, y, state[:, 1:])


# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------

ACTIVATIONS = [*reference.FORMULAS, ("affine", 0.6, -0.2), ("leaky_relu", 0.3), ("thresholded_relu", 0.45),
               ("scaled_tanh", 1.7, 0.6), ("hard_sigmoid", 0.4), ("hard_sigmoid", -0.4, 0.1), ("elu", 0.7)]  # fmt: skip


@pytest.mark.parametrize("clip", [None, 1.3])
@pytest.mark.parametrize("spec", ACTIVATIONS, ids=str)
def test_values_are_torch_s_and_slopes_the_limit_of_finite_differences(spec, clip, torch):
    a = np.linspace(-6, 6, 41) + 0.01  # no point on a kink
    f = reference.Activation(spec, clip)
    y = f(a)
    np.testing.assert_allclose(y, activate(torch, spec, clip, torch.from_numpy(a)).numpy(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(f.slope(a, y), numeric_gradient(lambda: f(a).sum(), a), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", ACTIVATIONS, ids=str)
def test_activations_of_huge_numbers_are_finite_and_warn_of_nothing(spec, dtype):
    a = np.array([-np.finfo(dtype).max / 4, -1e4, -800, -1e-30, 0, 1e-30, 800, 1e4, np.finfo(dtype).max / 4], dtype)
    f = reference.Activation(spec)
    with warnings.catch_warnings(), np.errstate(over="warn", invalid="warn", divide="warn"):
        warnings.simplefilter("error")
        y = f(a)
        slope = f.slope(a, y)
    assert np.isfinite(y).all()
    assert np.isfinite(slope).all()


def test_the_sigmoid_is_precise_where_it_is_tiny():
    np.testing.assert_allclose(reference.sigmoid(np.array([-700.0, -40.0])), np.exp([-700.0, -40.0]), rtol=1e-14)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("Tanh", ValueError, "expected an activation among tanh, relu, .*, got 'Tanh'"),
        (("tanh", 1.0), ValueError, "expected at most 0 parameters for tanh, got 1"),
        (("elu", 1.0, 2.0), ValueError, "expected at most 1 parameters for elu, got 2"),
        (("elu", "1"), TypeError, r"expected an activation as name, \(name, alpha\) or \(name, alpha, beta\)"),
        ((), TypeError, "expected an activation as name"),
        (None, TypeError, "expected an activation as name"),
    ],
)
def test_unknown_activations_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        reference.Activation(spec)


# ---------------------------------------------------------------------------------------------------------------------
# The output layer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_its_gradient_are_torch_s_and_the_limit_of_finite_differences(masked, torch):
    rng = np.random.default_rng(1)
    logits, targets = 3 * rng.standard_normal((T, B, 6)), rng.integers(0, 6, (T, B))
    mask = rng.random((T, B)) < 0.6 if masked else None
    loss, dlogits = reference.softmax_cross_entropy(logits, targets, mask=mask)
    numeric = numeric_gradient(lambda: reference.softmax_cross_entropy(logits, targets, mask=mask)[0], logits)
    np.testing.assert_allclose(dlogits, numeric, rtol=1e-6, atol=1e-9)

    o, counted = leaf(torch, logits), np.ones((T, B), bool) if mask is None else mask
    expected = torch.nn.functional.cross_entropy(o[counted], torch.from_numpy(targets)[counted])
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(dlogits, o.grad.numpy(), rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_is_stable_for_logits_of_1e4(dtype):
    logits = np.array([[1e4, -1e4, 0], [1e4, 1e4, -1e4]], dtype)
    loss, dlogits = reference.softmax_cross_entropy(logits, np.array([1, 0]))
    assert loss == pytest.approx((2e4 + np.log(2)) / 2)
    np.testing.assert_allclose(dlogits, [[0.5, -0.5, 0], [-0.25, 0.25, 0]], atol=1e-6)
    assert dlogits.dtype == dtype
    np.testing.assert_allclose(reference.softmax(logits), [[1, 0, 0], [0.5, 0.5, 0]])


def test_positions_that_do_not_count_may_hold_anything():
    logits, targets = np.array([[0.0, 0.0], [np.nan, np.inf]]), np.array([1, 99])
    loss, dlogits = reference.softmax_cross_entropy(logits, targets, mask=np.array([True, False]))
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5], [0, 0]])


@pytest.mark.parametrize(
    ("logits", "targets", "mask", "error", "message"),
    [
        (np.zeros((2, 3)), [0, 1], np.zeros(2, bool), ValueError, "expected at least one counted position, got none"),
        (np.zeros((0, 3)), np.zeros(0, int), None, ValueError, "expected at least one counted position, got none"),
        (np.zeros((2, 3)), [0, 3], None, ValueError, r"expected targets in \[0, 3\), got 0 to 3"),
        (np.zeros((2, 3)), [0, -1], None, ValueError, r"expected targets in \[0, 3\), got -1 to 0"),
        (np.zeros((2, 3)), [0], None, ValueError, r"expected targets of shape \(2,\), got \(1,\)"),
        (np.zeros((2, 3)), [0.0, 1.0], None, TypeError, "expected targets of an integer dtype, got float64"),
        (np.zeros((2, 3), int), [0, 1], None, TypeError, "expected logits of dtype float32 or float64, got int64"),
        (np.zeros((2, 3)), [0, 1], [1, 1], TypeError, "expected mask of dtype bool, got int64"),
        (np.zeros((2, 3)), [0, 1], [True], ValueError, r"expected mask of shape \(2,\), got \(1,\)"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(logits, targets, mask, error, message):
    with pytest.raises(error, match=message):
        reference.softmax_cross_entropy(logits, targets, mask=mask)


def test_the_gradients_of_the_linear_layer_are_the_limit_of_finite_differences():
    rng = np.random.default_rng(2)
    h, weight, bias = rng.standard_normal((T, B, H)), rng.standard_normal((6, H)), rng.standard_normal(6)
    do = rng.standard_normal((T, B, 6))
    dh, grads = reference.linear_backward(h, weight, do)

    def loss():
        return (reference.linear_forward(h, weight, bias) * do).sum()

    for gradient, array in [(dh, h), (grads["weight"], weight), (grads["bias"], bias)]:
        np.testing.assert_allclose(gradient, numeric_gradient(loss, array), rtol=1e-6, atol=1e-8)


def test_the_linear_layer_without_bias_has_no_gradient_of_one():
    h, weight = np.ones((2, H)), np.ones((6, H))
    np.testing.assert_array_equal(reference.linear_forward(h, weight), np.full((2, 6), H))
    assert list(reference.linear_backward(h, weight, np.ones((2, 6)), bias=False)[1]) == ["weight"]


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["activations", "gru", "lstm", "output", "rnn", "stack", "steps"])
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(f"fastrnn.reference.{name}")
    assert doctest.testmod(module).failed == 0


def test_finite_differences_are_those_of_a_known_derivative():
    a = np.array([[0.5, -2.0], [3.0, 0.1]])
    before = a.copy()
    np.testing.assert_allclose(numeric_gradient(lambda: np.sin(a).sum(), a), np.cos(a), rtol=1e-8)
    np.testing.assert_array_equal(a, before)
    with pytest.raises(TypeError, match="expected an array of dtype float64, got float32"):
        numeric_gradient(lambda: 0.0, a.astype("float32"))
