"""The output layer, and its loss in one: values, gradients by finite differences and by torch, errors, memory."""

import math
import tracemalloc

import numpy as np
import pytest
from fastrnn.engine import tuning
from fastrnn.nn.linear import Linear
from fastrnn.nn.losses import softmax_cross_entropy

from finite_differences import numeric_gradient


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
    np.testing.assert_allclose(dh, numeric_gradient(loss, h, step=1e-6), rtol=1e-7, atol=1e-8)
    assert set(head.grads) == ({"weight", "bias"} if bias else {"weight"})
    for name, array in head.params.items():
        np.testing.assert_allclose(
            head.grads[name], numeric_gradient(loss, array, step=1e-6), rtol=1e-7, atol=1e-8, err_msg=name
        )


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
    assert first.flat_params.tobytes() == second.flat_params.tobytes()
    assert first.flat_params.tobytes() != Linear(5, 3, rng=4).flat_params.tobytes()


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
    before = head.flat_grads.tobytes()
    with pytest.raises(error, match="expected do"):
        head.backward(tape, do)
    assert head.flat_grads.tobytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "expected in_features >= 1, got 0"),
        ((5, -1), ValueError, "expected out_features >= 1, got -1"),
        ((5.0, 3), TypeError, "expected in_features to be an integer, got 5.0"),
        ((True, 3), TypeError, "in_features"),
        ((2**63, 3), ValueError, r"expected in_features < 2\*\*63, got 9223372036854775808"),
        ((5, 10**400), ValueError, r"expected out_features < 2\*\*63"),
    ],
)
def test_wrong_sizes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Linear(*arguments)


@pytest.mark.parametrize("bias", [None, "no", 1, np.zeros(2)])
def test_a_bias_that_is_neither_true_nor_false_is_refused(bias):
    with pytest.raises(TypeError, match="expected bias to be True or False"):
        Linear(5, 3, bias=bias)


@pytest.mark.parametrize("dtype", ["float16", ">f4", "int32"])
def test_wrong_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="expected dtype float32 or float64"):
        Linear(5, 3, dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Logits, softmax and cross-entropy in one
# ---------------------------------------------------------------------------------------------------------------------


def one_after_the_other(head, h, targets, mask):
    """Loss, dh and the gradients of the head by the three functions that `cross_entropy` is made of."""
    o, tape = head.forward(h)
    loss, do = softmax_cross_entropy(o, targets, mask=mask)
    head.zero_grad()
    return loss, head.backward(tape, do), {name: grad.copy() for name, grad in head.grads.items()}


@pytest.fixture(params=["one block", "blocks of 3 rows"])
def blocks(request, monkeypatch):
    if request.param == "blocks of 3 rows":
        monkeypatch.setattr(tuning, "LOGITS_AT_ONCE", 1)
        monkeypatch.setattr(tuning, "LEAST_ROWS_AT_ONCE", 3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [((), 5, 3), ((7,), 5, 3), ((3, 4), 6, 1), ((13, 100), 37, 301), ((1031,), 19, 2003)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-4), ("float64", 1e-12)])
def test_cross_entropy_is_forward_loss_and_backward(rng, sizes, dtype, rtol, bias, masked):
    leading, features, classes = sizes
    head = Linear(features, classes, bias=bias, dtype=dtype, rng=0)
    h, targets = rng.normal(size=(*leading, features)).astype(dtype), np.asarray(rng.integers(0, classes, leading))
    mask = np.asarray(rng.random(leading) < 0.7) if masked else None
    expected_loss, expected_dh, expected_grads = one_after_the_other(head, h, targets, mask)
    head.zero_grad()
    loss, dh = head.cross_entropy(h, targets, mask=mask)
    assert type(loss) is float
    assert loss == pytest.approx(expected_loss, rel=rtol)
    assert dh.dtype == dtype
    assert dh.shape == h.shape
    atol = rtol * np.abs(expected_dh).max()
    np.testing.assert_allclose(dh, expected_dh, rtol=rtol, atol=atol)
    for name, grad in head.grads.items():
        np.testing.assert_allclose(grad, expected_grads[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_cross_entropy_agree_with_finite_differences(rng, blocks, masked):
    head = Linear(5, 4, dtype="float64", rng=0)
    h, targets = rng.normal(size=(4, 2, 5)), rng.integers(0, 4, (4, 2))
    mask = rng.random((4, 2)) < 0.6 if masked else None

    def loss():
        return head.cross_entropy(h, targets, mask=mask, gradients=False)[0]

    _, dh = head.cross_entropy(h, targets, mask=mask)
    np.testing.assert_allclose(dh, numeric_gradient(loss, h, step=1e-6), rtol=1e-7, atol=1e-9)
    for name, array in head.params.items():
        np.testing.assert_allclose(
            head.grads[name], numeric_gradient(loss, array, step=1e-6), rtol=1e-7, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_agrees_with_torch(rng, blocks, masked):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    head, theirs = Linear(5, 103, dtype="float64", rng=0), torch.nn.Linear(5, 103, dtype=torch.float64)
    head.load_state_dict({name: array.detach().numpy() for name, array in theirs.named_parameters()})
    h, targets = rng.normal(size=(8, 5, 5)), rng.integers(0, 103, (8, 5))
    mask = rng.random((8, 5)) < 0.5 if masked else None
    loss, dh = head.cross_entropy(h, targets, mask=mask)
    their_h = torch.tensor(h, requires_grad=True)
    their_targets = torch.tensor(np.where(mask, targets, -100) if masked else targets)
    their_loss = torch.nn.functional.cross_entropy(theirs(their_h).flatten(0, 1), their_targets.flatten())
    their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), rel=1e-13)
    np.testing.assert_allclose(dh, their_h.grad.numpy(), rtol=1e-11, atol=1e-17)
    for name, array in theirs.named_parameters():
        np.testing.assert_allclose(head.grads[name], array.grad.numpy(), rtol=1e-11, atol=1e-16, err_msg=name)


def test_cross_entropy_adds_into_the_gradients(rng, blocks):
    head = Linear(5, 3, dtype="float64", rng=0)
    h, targets = rng.normal(size=(4, 2, 5)), rng.integers(0, 3, (4, 2))
    head.cross_entropy(h, targets)
    once = {name: array.copy() for name, array in head.grads.items()}
    head.cross_entropy(h, targets)
    for name, array in head.grads.items():
        np.testing.assert_allclose(array, 2 * once[name], err_msg=name)


def test_cross_entropy_without_gradients_is_the_same_loss_and_leaves_them_as_they_are(rng, blocks):
    head = Linear(5, 3, rng=0)
    h, targets = rng.normal(size=(4, 2, 5)).astype(np.float32), rng.integers(0, 3, (4, 2))
    loss, _ = head.cross_entropy(h, targets)
    before = head.flat_grads.tobytes()
    assert head.cross_entropy(h, targets, gradients=False) == (loss, None)
    assert head.flat_grads.tobytes() == before


def test_cross_entropy_does_not_look_at_targets_that_the_mask_leaves_out(rng, blocks):
    head = Linear(5, 3, rng=0)
    h, targets = rng.normal(size=(6, 2, 5)).astype(np.float32), rng.integers(0, 3, (6, 2))
    mask = np.arange(12).reshape(6, 2) % 3 > 0
    loss, dh = head.cross_entropy(h, targets, mask=mask)
    assert not dh[~mask].any()
    targets[~mask] = -100
    again_loss, again = head.cross_entropy(h, targets, mask=mask)
    assert again_loss == loss
    np.testing.assert_array_equal(again, dh)


@pytest.mark.parametrize("wild", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["h", "weight", "bias"])
def test_cross_entropy_is_not_finite_where_a_logit_is_not(blocks, where, wild):
    head = Linear(5, 3, rng=0)
    h = np.ones((7, 5), np.float32)
    array = h if where == "h" else head.params[where]
    array[(-1,) * array.ndim] = wild
    loss, _ = head.cross_entropy(h, np.zeros(7, int))
    assert not math.isfinite(loss)


def test_strided_and_read_only_h_gives_the_same_cross_entropy(rng, blocks):
    head = Linear(5, 3, rng=0)
    h = rng.normal(size=(10, 8, 4)).astype(np.float32).T[:, ::2, ::-2]  # (4, 4, 5)
    h.flags.writeable = False
    targets = rng.integers(0, 3, (4, 8))[:, ::2]
    loss, dh = head.cross_entropy(h, targets)
    plain_loss, plain_dh = head.cross_entropy(h.copy(order="C"), targets.copy())
    assert loss == plain_loss
    np.testing.assert_array_equal(dh, plain_dh)


def test_cross_entropy_never_holds_the_logits_of_all_rows(rng):
    head = Linear(8, 2000, rng=0)
    h, targets = rng.normal(size=(64, 64, 8)).astype(np.float32), rng.integers(0, 2000, (64, 64))
    tracemalloc.start()
    try:
        head.cross_entropy(h, targets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 64 * 2000 * 4 / 4


HIDDEN, TARGETS, MASK = np.zeros((4, 5), np.float32), np.zeros(4, int), np.ones(4, bool)


@pytest.mark.parametrize(
    ("h", "targets", "mask", "error", "message"),
    [
        (np.zeros((4, 5)), TARGETS, None, TypeError, "expected h of dtype float32, got float64"),
        (HIDDEN[:, :4], TARGETS, None, ValueError, r"expected h of shape \(\.\.\., 5\), got \(4, 4\)"),
        (HIDDEN, TARGETS.astype(float), None, TypeError, "expected targets of an integer dtype, got float64"),
        (HIDDEN, TARGETS[:3], None, ValueError, r"expected targets of shape \(4,\), got \(3,\)"),
        (HIDDEN, np.array([0, 1, 3, 0]), None, ValueError, r"expected targets in \[0, 3\), got 3"),
        (HIDDEN, np.array([0, 1, -1, 0]), None, ValueError, "got -1"),
        (HIDDEN, TARGETS, MASK.astype(int), TypeError, "expected a mask of dtype bool, got int64"),
        (HIDDEN, TARGETS, MASK[:3], ValueError, r"expected a mask of shape \(4,\), got \(3,\)"),
        (HIDDEN, TARGETS, ~MASK, ValueError, "expected at least one counted position"),
        (HIDDEN[:0], TARGETS[:0], None, ValueError, "expected at least one counted position"),
    ],
)
def test_wrong_arguments_of_cross_entropy_are_refused_and_change_nothing(h, targets, mask, error, message):
    head = Linear(5, 3, rng=0)
    head.cross_entropy(HIDDEN + 1, TARGETS)
    before = head.flat_grads.tobytes()
    with pytest.raises(error, match=message):
        head.cross_entropy(h, targets, mask=mask)
    assert head.flat_grads.tobytes() == before
