"""gradcheck: it takes right gradients, finds each kind of wrong one and names it, and leaves everything as it was."""

import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn import GradientError, gradcheck

CELLS = [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM]
X = np.random.default_rng(0).normal(size=(6, 4, 3))


def linear(kind=fastrnn.Linear, sizes=(3, 4)):
    return kind(*sizes, dtype="float64", rng=0)


# ---------------------------------------------------------------- right gradients


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"num_layers": 2, "bidirectional": True, "dropout": 0.3}, {"lengths": [6, 2, 0, 5]}),
        ({"weight_dropout": 0.3, "input_dropout": 0.2, "recurrent_dropout": 0.2, "zoneout": 0.2}, {}),
        ({"layer_norm": True, "batch_first": True}, {"checkpoint": 2}),
        ({"reverse": True}, {"reset": np.random.default_rng(1).random((6, 4)) < 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers_are_right(cell, options, call):
    assert gradcheck(cell(3, 5, **options, dtype="float64", rng=0), X, **call) is True


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers_are_right_unbatched_with_indices_and_from_a_given_state(cell):
    layer = cell(3, 5, dtype="float64", rng=0)
    assert gradcheck(layer, X[:, 0])
    assert gradcheck(layer, np.arange(12).reshape(4, 3) % 3, samples=5)
    assert gradcheck(layer, X, state=layer(X)[1])


def test_a_projected_lstm_is_right():
    assert gradcheck(fastrnn.LSTM(3, 5, proj_size=2, peephole=True, dtype="float64", rng=0), X)


def test_the_other_modules_are_right():
    assert gradcheck(linear(), X)
    assert gradcheck(linear(sizes=(3, 70)), X)  # more elements than samples
    assert gradcheck(fastrnn.Embedding(9, 20, dtype="float64", rng=0), np.arange(12).reshape(4, 3) % 5)
    assert gradcheck(fastrnn.Dropout(0.3, rng=0), X)
    assert gradcheck(fastrnn.Dropout(0), X)


class Residual(fastrnn.Module):
    """y = x + gain tanh(x), with a generator of its own: as users may write one."""

    def __init__(self, size, dtype="float64"):
        super().__init__({"gain": (size,)}, dtype)
        self.params["gain"] = np.linspace(-1, 1, size).astype(dtype)
        self.noise = np.random.default_rng(0)

    @property
    def generators(self):
        return [self.noise]

    def forward(self, x):
        h = np.tanh(x) * self.noise.random()
        return x + self.params["gain"] * h, (x, h)

    def backward(self, tape, dy):
        x, h = tape
        self.grads["gain"] += (dy * h).sum(axis=tuple(range(dy.ndim - 1)))
        at_zero = np.divide(h, np.tanh(x), where=x != 0, out=np.zeros_like(x))  # the factor that was drawn
        return dy * (1 + self.params["gain"] * (1 - np.tanh(x) ** 2) * at_zero)


def test_modules_of_ones_own_are_right():
    assert gradcheck(Residual(3), X)


def test_the_default_rng_makes_it_repeatable_and_none_makes_it_another():
    def draws(rng):
        seen = []

        class Spy(fastrnn.Linear):
            def backward(self, tape, do):
                seen.append(do.copy())
                return super().backward(tape, do)

        gradcheck(linear(Spy), X, rng=rng)
        return seen[0]

    np.testing.assert_array_equal(draws(0), draws(np.random.default_rng(0)))
    assert (draws(None) != draws(None)).any()


# ---------------------------------------------------------------- wrong gradients


def wrong(kind, change):
    """A module whose backward pass goes wrong: change(module, what backward returned) -> what it returns."""

    class Wrong(kind):
        def backward(self, *arguments):
            return change(self, super().backward(*arguments))

    return Wrong


def spoil(array, index, by=1e-3):
    array[index] += by
    return array


@pytest.mark.parametrize(
    ("kind", "change", "name", "index"),
    [
        (fastrnn.Linear, lambda m, dx: spoil(m.grads["weight"], (2, 1)) is None or dx, "weight", (2, 1)),
        (fastrnn.Linear, lambda m, dx: spoil(m.grads["bias"], 3) is None or dx, "bias", (3,)),
        (fastrnn.Linear, lambda m, dx: spoil(dx, (5, 0, 2), -1e-3), "x", (5, 0, 2)),
        (fastrnn.Linear, lambda m, dx: spoil(dx, (0, 0, 0), np.nan), "x", (0, 0, 0)),
        (fastrnn.Dropout, lambda m, dx: spoil(dx, (1, 2, 0)), "x", (1, 2, 0)),
        (Residual, lambda m, dx: spoil(m.grads["gain"], 1) is None or dx, "gain", (1,)),
        (fastrnn.GRU, lambda m, ds: (ds[0], spoil(ds[1], (0, 3, 2))), "state", (0, 3, 2)),
        (fastrnn.LSTM, lambda m, ds: (ds[0], (spoil(ds[1][0], (0, 1, 2)), ds[1][1])), "state h", (0, 1, 2)),
        (fastrnn.LSTM, lambda m, ds: (ds[0], (ds[1][0], spoil(ds[1][1], (0, 0, 0)))), "state c", (0, 0, 0)),
    ],
)
def test_one_wrong_element_is_named_with_both_numbers(kind, change, name, index):
    arguments = {fastrnn.Dropout: (0.5,), Residual: (3,)}.get(kind, (3, 4))
    options = {} if kind in (fastrnn.Dropout, Residual) else {"dtype": "float64"}
    options |= {} if kind is Residual else {"rng": 0}
    assert gradcheck(kind(*arguments, **options), X)
    with pytest.raises(GradientError, match=r"backward gives .*, finite differences") as caught:
        gradcheck(wrong(kind, change)(*arguments, **options), X, samples=200)
    error = caught.value
    assert (error.name, error.index) == (name, index)
    assert f"the gradient of {name} at {index}" in str(error)
    assert np.isnan(error.gradient) or abs(error.gradient - error.difference) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("place", [(0, 0), (37, 11), (79, 49)])
@pytest.mark.parametrize("rng", [0, 1])
def test_one_wrong_element_of_thousands_is_found(place, rng):
    module = wrong(fastrnn.Linear, lambda m, dx: spoil(m.grads["weight"], place, 0.01) is None or dx)
    with pytest.raises(GradientError) as caught:
        gradcheck(linear(module, (50, 80)), np.ones((3, 50)), samples=8, rng=rng)
    assert (caught.value.name, caught.value.index) == ("weight", place)


def test_the_worst_is_named_of_many():
    def change(module, dx):
        spoil(module.grads["weight"], (0, 0), 1e-3)
        return spoil(dx, (0, 0, 0), 1.0)

    with pytest.raises(GradientError, match=r"\(2 of 88 elements that were compared are wrong\)$") as caught:
        gradcheck(linear(wrong(fastrnn.Linear, change)), X, samples=100)
    assert caught.value.name == "x"


def test_gradients_that_are_put_in_place_of_added_are_found():
    class Overwrites(fastrnn.Linear):
        def backward(self, tape, do):
            self.zero_grad()
            return super().backward(tape, do)

    with pytest.raises(GradientError, match=r"backward has to add into grads, not to overwrite what stands there$"):
        gradcheck(linear(Overwrites), X)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (fastrnn.Linear, lambda m, dx: None, r"expected a gradient of x of shape \(6, 4, 3\), got None"),
        (fastrnn.Linear, lambda m, dx: dx[0], r"of x of shape \(6, 4, 3\), got the shape \(4, 3\)"),
        (fastrnn.LSTM, lambda m, ds: (ds[0], ds[1][0]), "expected gradients of 2 states, got 1"),
        (fastrnn.GRU, lambda m, ds: (ds[0], None), r"of state of shape \(1, 4, 4\), got None"),
    ],
)
def test_a_gradient_that_is_missing_or_of_another_shape_is_named(kind, change, message):
    with pytest.raises(GradientError, match=message) as caught:
        gradcheck(linear(wrong(kind, change)), X)
    assert caught.value.index is None


def test_tolerances_decide():
    module = linear(wrong(fastrnn.Linear, lambda m, dx: dx * 1.001))
    assert gradcheck(module, X, rtol=1e-2)
    assert gradcheck(module, X, atol=1.0)
    with pytest.raises(GradientError):
        gradcheck(module, X)
    with pytest.raises(GradientError):  # rounding alone
        gradcheck(linear(), X, atol=0, rtol=0)


def test_the_error_is_an_assertion_that_can_be_pickled():
    error = GradientError("what is wrong", "weight", (1, 2), 0.5, 0.25)
    assert isinstance(error, AssertionError)
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == "what is wrong"
    assert (copied.name, copied.index, copied.gradient, copied.difference) == ("weight", (1, 2), 0.5, 0.25)


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.Linear, fastrnn.Dropout])
def test_parameters_gradients_generators_and_x_stay_as_they_were(kind, is_right):
    def fail(module, result):
        raise RuntimeError("in the midst of it")

    cls = kind if is_right else wrong(kind, fail)
    module = cls(0.5, rng=0) if kind is fastrnn.Dropout else cls(3, 5, dtype="float64", rng=0)
    if kind is fastrnn.LSTM:
        module.dropout, module.zoneout = 0.5, 0.5
    module.flat_grads[:] = np.arange(module.flat_grads.size)
    before = module.flat_params.copy(), module.flat_grads.copy()
    drawn = [generator.bit_generator.state for generator in module.generators]
    x = X.copy()
    if is_right:
        gradcheck(module, x)
    else:
        with pytest.raises(RuntimeError, match="in the midst of it"):
            gradcheck(module, x)
    np.testing.assert_array_equal(module.flat_params, before[0])
    np.testing.assert_array_equal(module.flat_grads, before[1])
    assert [generator.bit_generator.state for generator in module.generators] == drawn
    np.testing.assert_array_equal(x, X)


def test_x_and_state_may_be_read_only():
    layer = fastrnn.LSTM(3, 5, dtype="float64", rng=0)
    x, state = X.copy(), layer(X)[1]
    for array in (x, *state):
        array.flags.writeable = False
    assert gradcheck(layer, x, state=state)


# ---------------------------------------------------------------- bad arguments


class Bare(fastrnn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("module", "x", "options", "error", "message"),
    [
        (fastrnn.GRU(3, 4), X, {}, TypeError, "expected a module of dtype float64, got float32"),
        (lambda x: x, X, {}, TypeError, "expected a module, such as a layer, got function"),
        (linear(), X.astype("f4"), {}, TypeError, "expected x of dtype float64, or of an integer dtype, got float32"),
        (linear(), [[0.0], [1.0, 2.0]], {}, TypeError, "expected x as one array"),
        (linear(fastrnn.GRU), X, {"state": np.zeros((1, 4, 4), "f4")}, TypeError, "expected state of dtype float64"),
        (linear(), X, {"samples": 0}, ValueError, "expected samples >= 1"),
        (linear(), X, {"eps": 0}, ValueError, "expected eps > 0"),
        (linear(), X, {"eps": "1"}, TypeError, "expected eps to be a number"),
        (linear(), X, {"atol": -1}, ValueError, "expected a finite atol >= 0"),
        (linear(), X, {"rtol": np.nan}, ValueError, "expected a finite rtol >= 0"),
        (Bare(), X, {}, TypeError, r"expected forward to return \(y, tape\) or \(y, state, tape\), got ndarray"),
    ],
)
def test_what_cannot_be_checked_is_refused(module, x, options, error, message):
    with pytest.raises(error, match=message):
        gradcheck(module, x, **options)
