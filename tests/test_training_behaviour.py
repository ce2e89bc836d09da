"""What holds around the passes: tapes, gradients that add up, sequences cut and joined, randomness, copies."""

from __future__ import annotations

import copy
import pickle

import fastrnn
import numpy as np
import pytest

from states import as_tuple, assert_equal, mapped

T, B, I, H = 7, 4, 3, 5
KINDS = {
    "rnn": (fastrnn.RNN, {}),
    "rnn softsign": (fastrnn.RNN, {"nonlinearity": "softsign"}),
    "gru": (fastrnn.GRU, {}),
    "gru reset before": (fastrnn.GRU, {"reset_after": False}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm projected, peephole": (fastrnn.LSTM, {"proj_size": 2, "peephole": True}),
}
STACK = {"num_layers": 2, "bidirectional": True}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, **options):
    cls, own = KINDS[kind]
    return cls(I, H, **{"dtype": "float64", "rng": 1} | own | options)


def random_x(T=T, B=B, dtype="float64"):
    return np.random.default_rng(20).normal(size=(T, B, I)).astype(dtype)


def random_like(seed, arrays):
    rng = np.random.default_rng(seed)
    return mapped(lambda array: rng.normal(size=array.shape), arrays)


def gradients(layer):
    return {name: grad.copy() for name, grad in layer.grads.items()}


def assert_close(ours, theirs, tolerance=1e-12):
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = tuple(ours.values()), tuple(theirs.values())
    for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Tapes and gradients
# ---------------------------------------------------------------------------------------------------------------------


@every_kind
def test_inference_gives_the_bits_of_training(kind):
    layer = make(kind, **STACK)
    for call in ({}, {"lengths": np.array([3, 0, T, 1])}, {"reset": np.eye(T, B, dtype=bool)}):
        y, state, _ = layer.forward(random_x(), **call)
        assert_equal((y, *as_tuple(state)), (layer(random_x(), **call)[0], *as_tuple(layer(random_x(), **call)[1])))


@every_kind
def test_a_tape_can_be_used_again(kind):
    layer = make(kind, **STACK, merge="mul", dropout=0.5)
    y, state, tape = layer.forward(random_x(), lengths=np.array([3, 0, T, 1]))
    dy, dstate = random_like(1, y), random_like(2, state)

    def results():
        layer.zero_grad()
        dx, dinitial = layer.backward(tape, dy, dstate)
        return (dx, *as_tuple(dinitial), *gradients(layer).values())

    assert_equal(results(), results())


@every_kind
def test_tapes_do_not_disturb_each_other(kind):
    layer = make(kind)
    x = random_x()
    y, _, tape = layer.forward(x)
    dy = random_like(1, y)
    expected = layer.backward(tape, dy)[0]
    _, _, first = layer.forward(x)
    _, _, other = layer.forward(2 * x[:3])
    layer.backward(other, dy[:3])
    np.testing.assert_array_equal(layer.backward(first, dy)[0], expected)


@every_kind
def test_backward_adds_into_the_gradients(kind):
    layer = make(kind, **STACK)
    y, _, tape = layer.forward(random_x())
    dy = random_like(1, y)
    layer.backward(tape, dy)
    once = gradients(layer)
    assert all(grad.any() for grad in once.values())
    layer.backward(tape, dy)
    assert_close(gradients(layer), {name: 2 * grad for name, grad in once.items()})
    layer.zero_grad()
    assert not any(grad.any() for grad in layer.grads.values())


@every_kind
def test_no_gradient_of_the_state_is_one_of_zeros(kind):
    layer = make(kind, **STACK)
    y, state, tape = layer.forward(random_x())
    dy = random_like(1, y)
    layer.backward(tape, dy)
    without = gradients(layer)
    layer.zero_grad()
    layer.backward(tape, dy, mapped(np.zeros_like, state))
    assert_equal(gradients(layer), without)


@every_kind
def test_no_state_is_one_of_zeros(kind):
    layer = make(kind, **STACK)
    y, state = layer(random_x())
    zeros = mapped(np.zeros_like, state)
    assert_equal((y, *as_tuple(state)), (layer(random_x(), zeros)[0], *as_tuple(layer(random_x(), zeros)[1])))


@pytest.mark.parametrize("options", [{}, STACK, {"batch_first": True}, STACK | {"merge": "sum"}], ids=str)
@every_kind
def test_y_of_forward_is_read_only(kind, options):
    layer = make(kind, **options)
    y, state, _ = layer.forward(random_x())
    with pytest.raises(ValueError, match="read-only"):
        y[0, 0, 0] = 1
    assert all(array.flags.writeable for array in as_tuple(state))
    assert layer(random_x())[0].flags.writeable


@every_kind
def test_the_final_state_is_the_callers_own(kind):
    layer = make(kind, **STACK)
    y, state, tape = layer.forward(random_x())
    dy, kept = random_like(1, y), y.copy()
    expected = layer.backward(tape, dy)[0]
    for array in as_tuple(state):
        array.fill(np.nan)
    np.testing.assert_array_equal(y, kept)
    np.testing.assert_array_equal(layer.backward(tape, dy)[0], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Sequences cut and joined
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, T - 1])
@every_kind
def test_two_pieces_with_the_state_carried_are_the_whole(kind, cut):
    layer = make(kind, num_layers=2)
    x = random_x()
    y, state, tape = layer.forward(x)
    dy, dstate = random_like(1, y), random_like(2, state)
    dx, dinitial = layer.backward(tape, dy, dstate)
    whole = gradients(layer)

    layer.zero_grad()
    y1, between, tape1 = layer.forward(x[:cut])
    y2, final, tape2 = layer.forward(x[cut:], between)
    dx2, dbetween = layer.backward(tape2, dy[cut:], dstate)
    dx1, dfirst = layer.backward(tape1, dy[:cut], dbetween)
    assert_close((np.concatenate([y1, y2]), *as_tuple(final)), (y, *as_tuple(state)))
    assert_close((np.concatenate([dx1, dx2]), *as_tuple(dfirst)), (dx, *as_tuple(dinitial)))
    assert_close(gradients(layer), whole)


@pytest.mark.parametrize("one_hot", [False, True], ids=["float x", "indices"])
@pytest.mark.parametrize("hidden_size", [3, 17, 40])
@every_kind
def test_one_step_at_a_time_is_the_whole(kind, hidden_size, one_hot):
    # calls of few rows take other paths through the kernels, which read the weights unpacked
    cls, own = KINDS[kind]
    width = 6  # the whole makes a table of one-hot products, a step has fewer rows than it would
    layer = cls(width, hidden_size, dtype="float64", rng=1, **own)
    rng = np.random.default_rng(21)
    for batch in (1, 2, 4, 5):
        shape = (T, batch)
        x = rng.integers(0, width, shape) if one_hot else rng.normal(size=(*shape, width))
        y, state, tape = layer.forward(x)
        dy, dstate = random_like(1, y), random_like(2, state)
        layer.zero_grad()
        dx, dinitial = layer.backward(tape, dy, dstate)
        whole = gradients(layer)

        layer.zero_grad()
        carried, steps = mapped(np.zeros_like, state), []
        for t in range(T):
            alone = layer(x[t : t + 1], carried)
            y_t, carried, tape = layer.forward(x[t : t + 1], carried)
            assert_equal((y_t, *as_tuple(carried)), (alone[0], *as_tuple(alone[1])))
            assert_close(y_t[0], y[t])
            steps.append(tape)
        assert_close(carried, state)
        for t in reversed(range(T)):
            dx_t, dstate = layer.backward(steps[t], dy[t : t + 1], dstate)
            assert dx is None if one_hot else np.allclose(dx_t[0], dx[t], rtol=0, atol=1e-12)
        assert_close(dstate, dinitial)
        assert_close(gradients(layer), whole)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, STACK], ids=str)
@every_kind
def test_a_ragged_batch_is_its_sequences_one_by_one(kind, options):
    layer = make(kind, **options)
    x, lengths = random_x(), np.array([3, 0, T, 1])
    initial = random_like(3, layer(x)[1])
    y, state, tape = layer.forward(x, initial, lengths=lengths)
    dy, dstate = random_like(1, y), random_like(2, state)
    dx, dinitial = layer.backward(tape, dy, dstate)
    together = gradients(layer)

    layer.zero_grad()
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)

        def of_row(array, row=row):
            return array[:, row]

        y_b, state_b, tape_b = layer.forward(x[:n, row], mapped(of_row, initial))
        dx_b, dinitial_b = layer.backward(tape_b, dy[:n, row], mapped(of_row, dstate))
        assert_close((y[:n, row], *as_tuple(mapped(of_row, state))), (y_b, *as_tuple(state_b)))
        assert_close((dx[:n, row], *as_tuple(mapped(of_row, dinitial))), (dx_b, *as_tuple(dinitial_b)))
        assert not y[n:, row].any()
        assert not dx[n:, row].any()
    assert_close(together, gradients(layer))


@every_kind
def test_a_reset_starts_a_sequence_anew(kind):
    layer = make(kind, num_layers=2)
    x = random_x()
    at = 3
    reset = np.zeros((T, B), bool)
    reset[at] = True
    initial = random_like(3, layer(x)[1])
    y, state, tape = layer.forward(x, initial, reset=reset)
    dy, dstate = random_like(1, y), random_like(2, state)
    dx, dinitial = layer.backward(tape, dy, dstate)
    together = gradients(layer)

    layer.zero_grad()
    y1, _, tape1 = layer.forward(x[:at], initial)
    y2, state2, tape2 = layer.forward(x[at:])
    dx1, dinitial1 = layer.backward(tape1, dy[:at])
    dx2, _ = layer.backward(tape2, dy[at:], dstate)
    assert_close((y, *as_tuple(state)), (np.concatenate([y1, y2]), *as_tuple(state2)))
    assert_close((dx, *as_tuple(dinitial)), (np.concatenate([dx1, dx2]), *as_tuple(dinitial1)))
    assert_close(together, gradients(layer))


# ---------------------------------------------------------------------------------------------------------------------
# Randomness and dropout
# ---------------------------------------------------------------------------------------------------------------------


@every_kind
def test_the_same_rng_gives_the_same_parameters(kind):
    assert_equal(make(kind, rng=3).state_dict(), make(kind, rng=np.random.default_rng(3)).state_dict())
    for other in (4, None):
        assert not np.array_equal(make(kind, rng=3).flat_params, make(kind, rng=other).flat_params)
    assert not np.array_equal(make(kind, rng=None).flat_params, make(kind, rng=None).flat_params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_kind
def test_parameters_start_uniform_between_the_inverse_roots_of_the_hidden_size(kind, dtype):
    cls, own = KINDS[kind]
    layer = cls(40, 25, dtype=dtype, rng=0, **own)
    bound = 1 / np.sqrt(25)
    for name, array in layer.params.items():
        assert np.abs(array).max() <= bound, name
        assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.25), name


@every_kind
def test_the_same_rng_gives_the_same_dropout(kind):
    layers = [make(kind, **STACK, dropout=0.5, rng=seed) for seed in (3, 3, 4)]
    layers[2].load_state_dict(layers[0].state_dict())
    x = random_x()
    first, same, other = ([layer.forward(x)[0] for _ in range(3)] for layer in layers)
    assert_equal(tuple(first), tuple(same))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])


@every_kind
def test_inference_has_no_dropout_and_draws_nothing(kind):
    x = random_x()
    layer, same, without = make(kind, **STACK, dropout=0.5), make(kind, **STACK, dropout=0.5), make(kind, **STACK)
    assert_equal(layer(x)[0], without(x)[0])
    np.testing.assert_array_equal(layer.forward(x)[0], same.forward(x)[0])
    assert not np.array_equal(same.forward(x)[0], without(x)[0])


@every_kind
def test_dropout_of_zero_and_behind_the_only_layer_is_none(kind):
    x = random_x()
    layer = make(kind, **STACK, dropout=0.0)
    assert_equal(layer.forward(x)[0], layer(x)[0])
    layer = make(kind, bidirectional=True, dropout=0.9)
    assert_equal(layer.forward(x)[0], layer(x)[0])


def two_linear_layers(dropout, dtype="float64"):
    """y of the second layer is what it gets of y of the first, which is x."""
    layer = fastrnn.RNN(H, H, 2, nonlinearity="identity", bias=False, dropout=dropout, dtype=dtype, rng=5)
    for name, array in layer.params.items():
        array[...] = np.eye(H) if "weight_ih" in name else 0
    return layer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_zeroes_with_probability_p_and_scales_the_rest(p, dtype):
    layer = two_linear_layers(p, dtype)
    y, _, tape = layer.forward(np.ones((200, 20, H), dtype))
    kept = y != 0
    # 20,000 draws: four standard deviations
    assert abs((~kept).mean() - p) < 4 * np.sqrt(p * (1 - p) / kept.size)
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=2 * np.finfo(dtype).eps)
    dx, _ = layer.backward(tape, np.ones_like(y))
    np.testing.assert_array_equal(dx, y)  # the same mask on the way back


def test_dropout_is_drawn_for_each_step_row_and_unit():
    y = two_linear_layers(0.5).forward(np.ones((100, 20, H)))[0]
    for axis in range(3):
        assert (np.ptp(y, axis=axis) > 0).any()


def test_dropout_of_one_lets_nothing_through():
    layer = two_linear_layers(1.0)
    y, _, tape = layer.forward(np.ones((T, B, H)))
    assert not y.any()
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert not dx.any()
    np.testing.assert_array_equal(layer(np.ones((T, B, H)))[0], 1)


# ---------------------------------------------------------------------------------------------------------------------
# Copies and state dicts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_kind
def test_a_copy_is_the_same_layer_and_stands_alone(kind, dtype, duplicate):
    layer = make(kind, **STACK, dropout=0.5, clip=2.0, merge="ave", dtype=dtype)
    x = random_x(dtype=dtype)
    y, _, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    twin = duplicate(layer)
    assert type(twin) is type(layer)
    assert twin.spec == layer.spec
    assert repr(twin) == repr(layer)
    assert_equal(twin.state_dict(), layer.state_dict())
    assert all(array.any() for array in gradients(layer).values())
    assert not any(array.any() for array in gradients(twin).values())
    assert_equal(twin.forward(x)[0], layer.forward(x)[0])  # the generators go on alike

    params, grads, y = layer.state_dict(), gradients(layer), layer(x)[0]
    for array in (*twin.params.values(), *twin.grads.values()):
        array[...] = 0
    assert not twin(x)[0].any()  # what was written are the weights that it reads
    assert_equal(layer.state_dict(), params)
    assert_equal(gradients(layer), grads)
    assert_equal(layer(x)[0], y)


@every_kind
def test_a_pickled_layer_is_little_larger_than_its_parameters(kind):
    layer = KINDS[kind][0](64, 64, rng=1)
    assert len(pickle.dumps(layer)) < layer.flat_params.nbytes + 4096


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda params: pickle.loads(pickle.dumps(params))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
def test_a_copy_of_the_parameters_stands_alone(duplicate):
    layer = make("gru", **STACK)
    before = layer.state_dict()
    for twin in (duplicate(layer.params), duplicate(layer.grads)):
        twin["weight_ih_l0"] = np.full_like(twin["weight_ih_l0"], 7)  # copies into its array, as ever
        with pytest.raises(TypeError, match="the set of parameters is fixed"):
            twin.update(before)
    assert_equal(layer.state_dict(), before)
    assert not any(array.any() for array in layer.grads.values())
    twin = duplicate(layer.params)
    assert type(twin) is type(layer.params)
    assert_equal(twin, before)
    assert not any(np.may_share_memory(twin[name], layer.params[name]) for name in twin)


def test_a_shallow_copy_of_the_parameters_shares_the_arrays():
    layer = make("gru")
    twin = copy.copy(layer.params)
    assert type(twin) is type(layer.params)
    assert twin is not layer.params
    assert list(twin) == list(layer.params)
    assert all(twin[name] is layer.params[name] for name in twin)


def test_a_tape_of_a_layer_is_not_one_of_its_copy():
    layer = make("gru")
    y, _, tape = layer.forward(random_x())
    with pytest.raises(ValueError, match="expected the tape that this layer's forward returned"):
        copy.deepcopy(layer).backward(tape, np.ones_like(y))


@every_kind
def test_what_is_written_into_params_is_what_the_layer_reads(kind):
    layer = make(kind, **STACK)
    for name in layer.params:
        layer.params[name][...] = 0
    assert not layer(random_x())[0].any()


@every_kind
def test_a_state_dict_carries_a_layer_over(kind):
    layer, other = make(kind, **STACK), make(kind, **STACK, rng=2)
    state = layer.state_dict()
    other.load_state_dict(state)
    assert_equal(other(random_x())[0], layer(random_x())[0])
    for array in state.values():
        array.fill(0)
    assert_equal(other.state_dict(), layer.state_dict())
    assert all(array.any() for array in layer.params.values())


def without_the_last(state):
    state.popitem()


def with_one_more(state):
    state["weight_ih_l7"] = np.zeros(3)


def changed(change):
    def apply(state):
        last = list(state)[-1]
        state[last] = change(state[last])

    return apply


BAD_STATE_DICTS = {
    "one is missing": (without_the_last, KeyError, "missing .*_l1_reverse"),
    "one is unknown": (with_one_more, KeyError, "unknown .*weight_ih_l7"),
    "float32": (changed(lambda a: a.astype("f4")), TypeError, "expected .*_l1_reverse of dtype float64, got float32"),
    "byte-swapped": (changed(lambda a: a.astype(">f8")), TypeError, "expected .*_l1_reverse of dtype float64, got >f8"),
    "another shape": (changed(lambda a: a[:-1]), ValueError, r"expected .*_l1_reverse of shape \(.*\), got \("),
    "another rank": (changed(lambda a: a[None]), ValueError, r"expected .*_l1_reverse of shape \(.*\), got \(1, "),
    "no array": (changed(lambda a: None), TypeError, "expected .*_l1_reverse of dtype float64, got object"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_STATE_DICTS.values(), ids=BAD_STATE_DICTS)
@every_kind
def test_a_state_dict_that_does_not_fit_changes_nothing(kind, spoil, error, message):
    layer, other = make(kind, **STACK), make(kind, **STACK, rng=2)
    before, state = layer.state_dict(), other.state_dict()
    spoil(state)  # the last entry: those before it would fit
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert_equal(layer.state_dict(), before)


def test_a_parameter_that_does_not_fit_changes_nothing():
    layer = make("gru")
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"expected weight_hh_l0 of shape \(15, 5\), got \(5, 15\)"):
        layer.params["weight_hh_l0"] = np.zeros((5, 15))
    with pytest.raises(TypeError, match="expected weight_hh_l0 of dtype float64, got float32"):
        layer.params["weight_hh_l0"] = np.zeros((15, 5), "f4")
    with pytest.raises(KeyError, match="no parameter named 'weight'"):
        layer.params["weight"] = np.zeros((15, 5))
    with pytest.raises(TypeError, match="the set of parameters is fixed"):
        del layer.params["weight_hh_l0"]
    assert_equal(layer.state_dict(), before)
