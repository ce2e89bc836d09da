"""exp, tanh and sigmoid of the kernels: the error bounds that math.hpp states, for every instruction set."""

from __future__ import annotations

import decimal
import functools
import math

import numpy as np
import pytest
from fastrnn import _core

# Largest errors in ULP.  That of tanh is promised to users; those of the others are what math.hpp says of itself.
BOUNDS = {"exp": 1.5, "tanh": 2.0, "sigmoid": 2.5}
EXACT = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}
DTYPES = [np.float32, np.float64]

every_function = pytest.mark.parametrize("name", BOUNDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


pytestmark = pytest.mark.usefixtures("instructions")


def evaluate(name, x):
    y = np.full_like(x, 77)
    _core.elementwise(name, x, y)
    return y


def representable(name, dtype):
    """The range of x in which f(x) is a normal number, up to where exp gives inf."""
    info = np.finfo(dtype)
    log_min, log_max = math.log(info.tiny), math.log(info.max) - math.log(2) / 2
    return {"exp": (log_min, log_max), "tanh": (-math.inf, math.inf), "sigmoid": (log_min, math.inf)}[name]


@functools.cache
def sweep():
    """Every 499th bit pattern of float32 that is a finite number: both signs, every exponent, 8.6 million values."""
    x = np.arange(0, 2**32, 499, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


@functools.cache
def exact_sweep(name):
    """(x, f(x) in float64, one ULP of float32 there) of the part of the sweep in which f is representable."""
    low, high = representable(name, np.float32)
    x = sweep()
    x = x[(x >= low) & (x <= high)]
    exact = EXACT[name](x.astype(np.float64))
    return x, exact, np.spacing(np.abs(exact.astype(np.float32))).astype(np.float64)


@every_function
def test_float32_is_within_the_bound_over_a_sweep_of_bit_patterns(name):
    x, exact, ulp = exact_sweep(name)
    error = np.abs(evaluate(name, x) - exact) / ulp
    worst = error.argmax()
    assert error[worst] <= BOUNDS[name], f"{name}({x[worst].hex()}) is {error[worst]:.3f} ULP off"


def exact_decimal(name, x):
    """f(x) to 40 digits; x is a float64."""
    with decimal.localcontext(prec=60, Emin=-999_999, Emax=999_999):
        x = decimal.Decimal(float(x))
        if name == "exp":
            return +x.exp()
        if name == "sigmoid":
            return 1 / (1 + (-x).exp())
        if abs(x) < decimal.Decimal("1e-20"):
            return x
        return 1 - 2 / ((2 * x).exp() + 1)


@functools.cache
def float64_sample(name):
    """(x, f(x) as Decimals): numbers where f bends, and numbers of any exponent."""
    rng = np.random.default_rng(5)
    low, high = representable(name, np.float64)
    anywhere = rng.choice([-1.0, 1.0], 3000) * 2.0 ** rng.uniform(-1022, 12, 3000)
    x = np.concatenate([rng.normal(size=4000), rng.uniform(-25, 25, 3000), rng.uniform(-720, 720, 2000), anywhere])
    x = x[(x >= low) & (x <= high)]
    return x, [exact_decimal(name, value) for value in x]


@every_function
def test_float64_is_within_the_bound_over_a_sample(name):
    x, exact = float64_sample(name)
    for value, ours, true in zip(x, evaluate(name, x), exact, strict=True):
        error = abs(decimal.Decimal(float(ours)) - true) / decimal.Decimal(math.ulp(float(true)))
        assert error <= BOUNDS[name], f"{name}({float(value).hex()}) is {error:.3f} ULP off"


@every_dtype
def test_exp_is_zero_below_the_normal_numbers_and_infinite_above_all(dtype):
    low, high = representable("exp", dtype)
    below = np.array([low * 1.0001, 2 * low, -np.finfo(dtype).max, -np.inf], dtype)
    above = np.array([high * 1.0001, 2 * high, np.finfo(dtype).max, np.inf], dtype)
    np.testing.assert_array_equal(evaluate("exp", below), np.zeros(4, dtype))
    np.testing.assert_array_equal(evaluate("exp", above), np.full(4, np.inf, dtype))


@every_dtype
def test_sigmoid_ends_at_the_least_normal_number_and_at_one(dtype):
    info = np.finfo(dtype)
    low = representable("sigmoid", dtype)[0]
    below = evaluate("sigmoid", np.array([1.01 * low, 10 * low, -info.max, -np.inf], dtype))
    np.testing.assert_allclose(below, info.tiny, rtol=-low * info.eps)  # the border itself is rounded to dtype
    np.testing.assert_array_equal(evaluate("sigmoid", np.array([-2 * low, info.max, np.inf], dtype)), 1)


@every_dtype
def test_tanh_ends_at_one(dtype):
    x = np.array([50, 1e4, np.finfo(dtype).max, np.inf], dtype)
    np.testing.assert_array_equal(evaluate("tanh", x), 1)
    np.testing.assert_array_equal(evaluate("tanh", -x), -1)


@every_dtype
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_no_value_lies_beyond_one(name, dtype):
    x = np.concatenate([np.linspace(-40, 40, 100_001), np.linspace(0, 20, 100_001)]).astype(dtype)
    assert np.abs(evaluate(name, x)).max() == 1


@every_dtype
def test_tanh_is_odd_to_the_bit(dtype):
    x = np.concatenate([np.geomspace(1e-37, 30, 5000), [0.0]]).astype(dtype)
    ours, mirrored = evaluate("tanh", x), -evaluate("tanh", -x)
    np.testing.assert_array_equal(ours, mirrored)


@every_dtype
def test_tanh_keeps_the_sign_of_zero(dtype):
    np.testing.assert_array_equal(np.signbit(evaluate("tanh", np.array([-0.0, 0.0], dtype))), [True, False])


@every_dtype
def test_denormals_are_numbers_like_any_other(dtype):
    least = np.finfo(dtype).smallest_subnormal
    x = np.array([1, 2, 3, 1000, 12345], dtype) * least
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(evaluate("tanh", x), x)
    np.testing.assert_array_equal(evaluate("exp", x), 1)
    np.testing.assert_array_equal(evaluate("sigmoid", x), 0.5)


@every_dtype
@every_function
def test_nan_gives_nan_in_its_own_lane_only(name, dtype):
    x = np.linspace(-2, 2, 45).astype(dtype)
    expected = evaluate(name, x)
    for at in range(0, 45, 4):
        holed = x.copy()
        holed[at] = -np.nan if at % 8 else np.nan
        ours = evaluate(name, holed)
        assert np.isnan(ours[at])
        np.testing.assert_array_equal(np.delete(ours, at), np.delete(expected, at))


@every_dtype
@every_function
def test_every_length_gives_the_same_bits_and_ends_where_it_should(name, dtype):
    x = np.random.default_rng(0).normal(size=70).astype(dtype)
    expected = evaluate(name, x)
    for n in range(71):
        y = np.full(72, 77, dtype)
        _core.elementwise(name, x[:n], y[:n])
        np.testing.assert_array_equal(y[:n], expected[:n])
        np.testing.assert_array_equal(y[n:], 77)
