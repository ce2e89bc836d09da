"""The output layer: values, gradients by finite differences and by torch, errors."""

import numpy as np
import pytest
from fastrnn.linear import Linear


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def numeric_gradient(function, array, eps=1e-6):
    """Central differences of the scalar function() by every entry of an array that it reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + eps
        above = function()
        array[index] = kept - eps
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * eps)
    return gradient


@pytest.mark.parametrize("leading", [(), (7,), (5, 3), (2, 3, 4), (0,), (4, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_output_is_the_affine_map_of_the_last_axis(rng, leading, dtype):
    head = Linear(6, 4, dtype=dtype, rng=0)
    h = rng.normal(size=(*leading, 6)).astype(dtype)
    o = head(h)
    assert o.shape == (*leading, 4)
    assert o.dtype == dtype
    expected = np.einsum("...h,kh->...k", h, head.params["weight"]) + head.params["bias"]
    np.testing.assert_allclose(o, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(head.forward(h)[0], o)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_agree_with_finite_differences(rng, bias):
    head = Linear(5, 3, bias=bias, dtype="float64", rng=0)
    h, do = rng.normal(size=(4, 2, 5)), rng.normal(size=(4, 2, 3))

    def loss():
        return float(np.sum(np.sin(head(h)) * do))

    o, tape = head.forward(h)
    dh = head.backward(tape, np.cos(o) * do)
    np.testing.assert_allclose(dh, numeric_gradient(loss, h), rtol=1e-7, atol=1e-8)
    assert set(head.grads) == ({"weight", "bias"} if bias else {"weight"})
    for name, array in head.params.items():
        np.testing.assert_allclose(head.grads[name], numeric_gradient(loss, array), rtol=1e-7, atol=1e-8, err_msg=name)


def test_values_and_gradients_agree_with_torch(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    head, theirs = Linear(5, 3, dtype="float64", rng=0), torch.nn.Linear(5, 3, dtype=torch.float64)
    assert {name: array.shape for name, array in head.params.items()} == {
        name: tuple(array.shape) for name, array in theirs.named_parameters()
    }
    head.load_state_dict({name: array.detach().numpy() for name, array in theirs.named_parameters()})
    h, do = rng.normal(size=(4, 2, 5)), rng.normal(size=(4, 2, 3))
    o, tape = head.forward(h)
    dh = head.backward(tape, do)
    their_h = torch.tensor(h, requires_grad=True)
    their_o = theirs(their_h)
    their_o.backward(torch.tensor(do))
    np.testing.assert_allclose(o, their_o.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(dh, their_h.grad.numpy(), rtol=1e-12)
    for name, array in theirs.named_parameters():
        np.testing.assert_allclose(head.grads[name], array.grad.numpy(), rtol=1e-12, err_msg=name)


def test_initial_values_fill_torchs_uniform_range():
    head = Linear(16, 500, rng=0)
    for name, array in head.params.items():
        assert np.abs(array).max() <= 0.25, name
        assert np.abs(array).max() > 0.24, name
        assert abs(array.mean()) < 0.03, name


def test_backward_adds_into_the_gradients(rng):
    head = Linear(5, 3, dtype="float64", rng=0)
    _, tape = head.forward(rng.normal(size=(4, 5)))
    do = rng.normal(size=(4, 3))
    head.backward(tape, do)
    once = {name: array.copy() for name, array in head.grads.items()}
    head.backward(tape, do)
    for name, array in head.grads.items():
        np.testing.assert_allclose(array, 2 * once[name], err_msg=name)


def test_strided_and_read_only_arrays_give_the_same_result(rng):
    head = Linear(5, 3, rng=0)
    wide = rng.normal(size=(10, 8, 4)).astype(np.float32)
    h = wide.T[:, ::2, ::-2]  # (4, 4, 5)
    h.flags.writeable = False
    o, tape = head.forward(h)
    dh = head.backward(tape, o[::1])
    strided = {name: array.copy() for name, array in head.grads.items()}
    head.zero_grad()
    plain_o, plain_tape = head.forward(h.copy(order="C"))
    np.testing.assert_array_equal(o, plain_o)
    np.testing.assert_array_equal(dh, head.backward(plain_tape, np.asfortranarray(o)))
    for name, array in head.grads.items():
        np.testing.assert_allclose(array, strided[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("make_rng", [lambda: 3, lambda: np.random.default_rng(3)])
def test_same_rng_gives_the_same_bits(make_rng):
    first, second = Linear(5, 3, rng=make_rng()), Linear(5, 3, rng=make_rng())
    assert first._flat_params.tobytes() == second._flat_params.tobytes()
    assert first._flat_params.tobytes() != Linear(5, 3, rng=4)._flat_params.tobytes()


@pytest.mark.parametrize(
    ("h", "error", "message"),
    [
        (np.zeros((4, 6), np.float32), ValueError, r"expected h of shape \(\.\.\., 5\), got \(4, 6\)"),
        (np.float32(1), ValueError, r"got \(\)"),
        (np.zeros((4, 5)), TypeError, "expected h of dtype float32, got float64"),
        (np.zeros((4, 5), ">f4"), TypeError, "got >f4"),
        (np.zeros((4, 5), int), TypeError, "got int64"),
    ],
)
def test_wrong_input_is_refused(h, error, message):
    head = Linear(5, 3, rng=0)
    with pytest.raises(error, match=message):
        head(h)
    with pytest.raises(error, match=message):
        head.forward(h)


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (np.zeros((4, 4), np.float32), ValueError),
        (np.zeros((3, 3), np.float32), ValueError),
        (np.zeros((2, 2, 3), np.float32), ValueError),
        (np.zeros((4, 3)), TypeError),
    ],
)
def test_wrong_output_gradient_is_refused_and_changes_nothing(do, error):
    head = Linear(5, 3, rng=0)
    _, tape = head.forward(np.ones((4, 5), np.float32))
    head.backward(tape, np.ones((4, 3), np.float32))
    before = head._flat_grads.tobytes()
    with pytest.raises(error, match="expected do"):
        head.backward(tape, do)
    assert head._flat_grads.tobytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "expected in_features >= 1, got 0"),
        ((5, -1), ValueError, "expected out_features >= 1, got -1"),
        ((5.0, 3), TypeError, "expected in_features to be an integer, got 5.0"),
        ((True, 3), TypeError, "in_features"),
    ],
)
def test_wrong_sizes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Linear(*arguments)


@pytest.mark.parametrize("dtype", ["float16", ">f4", "int32"])
def test_wrong_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="expected dtype float32 or float64"):
        Linear(5, 3, dtype=dtype)
