"""Softmax and losses: against the formula, finite differences and torch; extremes, masks and errors."""

import math

import numpy as np
import pytest
from fastrnn import mse_loss, softmax, softmax_cross_entropy

from finite_differences import numeric_gradient


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def plain(logits, targets, mask):
    """The formula, one position after the other, in float64."""
    losses, dlogits = [], np.zeros(logits.shape)
    for position in np.ndindex(targets.shape):
        if not mask[position]:
            continue
        p = np.exp(logits[position].astype(float))
        p /= p.sum()
        losses.append(-math.log(p[targets[position]]))
        dlogits[position] = p - np.eye(len(p))[targets[position]]
    return sum(losses) / len(losses), dlogits / len(losses)


@pytest.mark.parametrize("positions", [(), (1,), (9,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-13)])
def test_loss_and_gradient_are_those_of_the_formula(rng, positions, dtype, rtol):
    logits = (3 * rng.normal(size=(*positions, 5))).astype(dtype)
    targets = np.asarray(rng.integers(0, 5, positions))
    loss, dlogits = softmax_cross_entropy(logits, targets)
    expected_loss, expected = plain(logits, targets, np.ones(positions, bool))
    assert type(loss) is float
    assert dlogits.dtype == dtype
    assert dlogits.shape == logits.shape
    assert loss == pytest.approx(expected_loss, rel=rtol)
    np.testing.assert_allclose(dlogits, expected, rtol=rtol, atol=rtol / 10)


def test_gradient_agrees_with_finite_differences(rng):
    logits, targets = rng.normal(size=(4, 3, 5)), rng.integers(0, 5, (4, 3))
    mask = rng.random((4, 3)) < 0.6
    _, dlogits = softmax_cross_entropy(logits, targets, mask=mask)
    for index in np.ndindex(logits.shape):
        shifted = logits.copy(), logits.copy()
        shifted[0][index] += 1e-6
        shifted[1][index] -= 1e-6
        above, below = (softmax_cross_entropy(shift, targets, mask=mask)[0] for shift in shifted)
        assert dlogits[index] == pytest.approx((above - below) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_agree_with_torch(rng, masked):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits, targets = 5 * rng.normal(size=(40, 103)), rng.integers(0, 103, 40)
    mask = rng.random(40) < 0.5 if masked else None
    loss, dlogits = softmax_cross_entropy(logits, targets, mask=mask)
    their_logits = torch.tensor(logits, requires_grad=True)
    their_targets = torch.tensor(np.where(mask, targets, -100) if masked else targets)
    their_loss = torch.nn.functional.cross_entropy(their_logits, their_targets)
    their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), rel=1e-13)
    np.testing.assert_allclose(dlogits, their_logits.grad.numpy(), rtol=1e-12, atol=1e-17)


def test_mask_leaves_out_targets_and_logits_of_the_other_positions(rng):
    logits, targets = rng.normal(size=(6, 2, 5)).astype(np.float32), rng.integers(0, 5, (6, 2))
    mask = np.arange(12).reshape(6, 2) % 3 > 0
    loss, dlogits = softmax_cross_entropy(logits, targets, mask=mask)
    expected_loss, expected = plain(logits, targets, mask)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-5, atol=1e-6)

    logits[~mask], targets[~mask] = np.nan, -100
    again_loss, again = softmax_cross_entropy(logits, targets, mask=mask)
    assert again_loss == loss
    np.testing.assert_array_equal(again, dlogits)
    assert not again[~mask].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_ten_thousand_are_exact(dtype):
    logits = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype)
    loss, dlogits = softmax_cross_entropy(logits, np.array([0, 1, 2]))
    assert loss == pytest.approx((0 + 2e4 + math.log(3)) / 3, rel=1e-6)
    np.testing.assert_allclose(
        3 * dlogits, [[0, 0, 0], [1, -1, 0], [1 / 3, 1 / 3, -2 / 3]], rtol=1e-6, atol=np.finfo(dtype).eps
    )


def test_one_class_has_no_loss():
    loss, dlogits = softmax_cross_entropy(np.array([[3.0], [-1e4]]), np.array([0, 0]))
    assert loss == 0
    assert not dlogits.any()


def test_logit_of_minus_infinity_is_a_class_of_probability_zero():
    loss, dlogits = softmax_cross_entropy(np.array([[0, -np.inf, 0]]), np.array([0]))
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dlogits, [[-0.5, 0, 0.5]])
    assert softmax_cross_entropy(np.array([[0, -np.inf, 0]]), np.array([1]))[0] == math.inf


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_loss_is_not_finite_where_a_logit_is_not(wild):
    loss, _ = softmax_cross_entropy(np.array([[0, wild, 0], [0, 0, 0]]), np.array([0, 0]))
    assert not math.isfinite(loss)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", ">i4"])
def test_targets_may_be_of_any_integer_dtype(rng, dtype):
    logits, targets = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    loss, dlogits = softmax_cross_entropy(logits, targets)
    again_loss, again = softmax_cross_entropy(logits, targets.astype(dtype))
    assert again_loss == loss
    np.testing.assert_array_equal(again, dlogits)


def test_strided_and_read_only_logits_give_the_same_result_and_stay_as_they_are(rng):
    wide = rng.normal(size=(10, 8, 4))
    logits, targets = wide.T[:, ::2, ::-2], rng.integers(0, 5, (4, 8))[:, ::2]
    logits.flags.writeable = False
    before = logits.copy()
    loss, dlogits = softmax_cross_entropy(logits, targets)
    plain_loss, plain_dlogits = softmax_cross_entropy(before, targets.copy())
    np.testing.assert_array_equal(logits, before)
    assert loss == plain_loss
    np.testing.assert_array_equal(dlogits, plain_dlogits)


FLOATS, TARGETS, MASK = np.zeros((4, 3), np.float32), np.zeros(4, int), np.ones(4, bool)


@pytest.mark.parametrize(
    ("logits", "targets", "mask", "error", "message"),
    [
        (np.zeros((4, 3), int), TARGETS, None, TypeError, "expected logits of dtype float32 or float64, got int64"),
        (np.zeros((4, 3), np.float16), TARGETS, None, TypeError, "got float16"),
        (np.float32(1), TARGETS, None, ValueError, r"expected logits of shape \(..., K\) .* got \(\)"),
        (np.zeros((4, 0), np.float32), TARGETS, None, ValueError, r"got \(4, 0\)"),
        (FLOATS, TARGETS.astype(float), None, TypeError, "expected targets of an integer dtype, got float64"),
        (FLOATS, MASK, None, TypeError, "got bool"),
        (FLOATS, np.zeros(5, int), None, ValueError, r"expected targets of shape \(4,\), got \(5,\)"),
        (FLOATS, np.zeros((4, 3), int), None, ValueError, r"got \(4, 3\)"),
        (FLOATS, np.array([0, 1, 3, 0]), None, ValueError, r"expected targets in \[0, 3\), got 3"),
        (FLOATS, np.array([0, 1, -1, 0]), None, ValueError, "got -1"),
        (FLOATS, TARGETS, MASK.astype(int), TypeError, "expected a mask of dtype bool, got int64"),
        (FLOATS, TARGETS, MASK[:3], ValueError, r"expected a mask of shape \(4,\), got \(3,\)"),
        (FLOATS, TARGETS, ~MASK, ValueError, "expected at least one counted position"),
        (FLOATS[:0], TARGETS[:0], None, ValueError, "expected at least one counted position"),
    ],
)
def test_wrong_arguments_are_refused(logits, targets, mask, error, message):
    with pytest.raises(error, match=message):
        softmax_cross_entropy(logits, targets, mask=mask)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint32", "uint64", "int64"])
def test_masked_positions_do_not_count_whatever_integers_the_targets_are(dtype):
    """Unsigned ones too, which cannot hold the -1 that marks such a position inside."""
    logits = np.random.default_rng(0).normal(size=(3, 4))
    mask = np.array([True, False, True])
    loss, dlogits = softmax_cross_entropy(logits, np.array([1, 99, 3], dtype), mask=mask)
    expected = softmax_cross_entropy(logits[mask], np.array([1, 3]))
    assert loss == pytest.approx(expected[0], rel=1e-15)
    np.testing.assert_array_equal(dlogits[mask], expected[1])
    assert not dlogits[1].any()


# ---------------------------------------------------------------- softmax


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 4), (2, 1)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-14)])
def test_softmax_is_that_of_torch(rng, shape, dtype, rtol):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits = (10 * rng.normal(size=shape)).astype(dtype)
    before = logits.copy()
    p = softmax(logits)
    assert p.dtype == dtype
    np.testing.assert_allclose(p, torch.softmax(torch.from_numpy(logits), -1).numpy(), rtol=10 * rtol, atol=0)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=rtol)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_neither_overflows_nor_loses_a_class_of_probability_zero(dtype):
    logits = np.array([[1e4, -1e4, 1e4], [0, -np.inf, 0], [-1e30, -1e30, -1e30]], dtype)
    np.testing.assert_allclose(softmax(logits), [[0.5, 0, 0.5], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("wild", [[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]])
def test_softmax_of_what_is_not_finite_is_nan_in_its_row_alone(wild):
    p = softmax(np.array([wild, [0, 0]], float))
    assert np.isnan(p[0]).any()
    assert p[1].tolist() == [0.5, 0.5]


def test_softmax_reads_strided_logits(rng):
    logits = rng.normal(size=(8, 6, 4)).T[:, ::2, ::-2]
    np.testing.assert_array_equal(softmax(logits), softmax(logits.copy()))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (np.zeros((4, 3), int), TypeError, r"expected logits of dtype float32 or float64, got int64; \.astype"),
        ([[0.0], [1.0, 2.0]], TypeError, "expected logits as one array"),
        (np.float32(1), ValueError, r"expected logits of shape \(..., K\) .* got \(\)"),
        (np.zeros((4, 0)), ValueError, r"got \(4, 0\)"),
    ],
)
def test_softmax_refuses_what_has_no_classes(logits, error, message):
    with pytest.raises(error, match=message):
        softmax(logits)


# ---------------------------------------------------------------- mean squared error


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-14)])
def test_mse_loss_is_that_of_torch(rng, shape, dtype, rtol):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    y, targets = (np.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    loss, dy = mse_loss(y, targets)
    assert type(loss) is float
    assert dy.dtype == dtype
    assert dy.shape == y.shape
    theirs = torch.tensor(y, requires_grad=True)
    expected = torch.nn.functional.mse_loss(theirs, torch.tensor(targets))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(dy, theirs.grad.numpy(), rtol=rtol, atol=rtol / 100)


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_mse_loss_counts_what_the_mask_says(rng, axes):
    y, targets = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3, 2))
    mask = np.asarray(rng.random((4, 3, 2)[:axes]) < 0.6) if axes else np.array(True)
    error = (y - targets)[mask]
    loss, dy = mse_loss(y, targets, mask=mask)
    assert loss == pytest.approx((error**2).mean(), rel=1e-14)
    np.testing.assert_allclose(dy[mask], 2 * error / error.size, rtol=1e-14)
    assert not dy[~mask].any()

    y[~mask], targets[~mask] = np.inf, np.inf
    assert mse_loss(y, targets, mask=mask)[0] == loss
    np.testing.assert_array_equal(mse_loss(y, targets, mask=mask)[1], dy)


def test_gradient_of_mse_loss_agrees_with_finite_differences(rng):
    y, targets, mask = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), np.array([True, False, True, True])
    expected = numeric_gradient(lambda: mse_loss(y, targets, mask=mask)[0], y)
    np.testing.assert_allclose(mse_loss(y, targets, mask=mask)[1], expected, rtol=1e-8, atol=1e-10)


def test_mse_loss_shows_what_is_not_finite_and_sums_in_double():
    assert math.isnan(mse_loss(np.array([np.nan, 0]), np.zeros(2))[0])
    assert mse_loss(np.array([np.inf, 0]), np.zeros(2))[0] == math.inf
    loss, _ = mse_loss(np.full(10**6, 0.1, np.float32), np.zeros(10**6, np.float32))
    assert loss == pytest.approx(float(np.float32(0.1)) ** 2, rel=1e-12)


@pytest.mark.parametrize(
    ("y", "targets", "mask", "error", "message"),
    [
        (np.zeros(3, int), np.zeros(3), None, TypeError, "expected y of dtype float32 or float64, got int64"),
        (
            FLOATS,
            FLOATS.astype(float),
            None,
            TypeError,
            r"targets of dtype float32, got float64; \.astype\('float32'\)",
        ),
        (FLOATS, TARGETS, None, TypeError, "expected targets of dtype float32, got int64"),
        (FLOATS, FLOATS[:3], None, ValueError, r"expected targets of shape \(4, 3\), got \(3, 3\)"),
        (FLOATS, FLOATS[:, :1], None, ValueError, r"got \(4, 1\)"),
        (FLOATS, FLOATS, MASK.astype(int), TypeError, "expected a mask of dtype bool, got int64"),
        (FLOATS, FLOATS, MASK[:3], ValueError, r"expected a mask over leading axes of \(4, 3\), got \(3,\)"),
        (FLOATS, FLOATS, np.ones((4, 3, 1), bool), ValueError, r"got \(4, 3, 1\)"),
        (FLOATS, FLOATS, ~MASK, ValueError, r"expected at least one counted element, got none in the shape \(4, 3\)"),
        (FLOATS[:0], FLOATS[:0], None, ValueError, "expected at least one counted element"),
    ],
)
def test_mse_loss_refuses_what_does_not_fit(y, targets, mask, error, message):
    with pytest.raises(error, match=message):
        mse_loss(y, targets, mask=mask)
