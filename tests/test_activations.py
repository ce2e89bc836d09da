"""Activations at their corners, where value or slope jumps: as the reference has them, and torch where it has them."""

import fastrnn
import numpy as np
import pytest
from fastrnn import reference

TINY, LARGE = 1e-30, 50.0
# What goes in: zero, a threshold, and the numbers beside it.
ZERO = (0.0, -0.0, TINY, -TINY, 1.0, -1.0, LARGE, -LARGE)
CORNERS = {
    "tanh": ZERO,
    "relu": ZERO,
    "sigmoid": ZERO,
    "identity": ZERO,
    ("affine", 0.5, 0.25): ZERO,
    ("leaky_relu", 0.25): ZERO,
    ("leaky_relu", -0.5): ZERO,
    ("thresholded_relu", 0.75): (0.75, 0.7499, 0.7501, *ZERO),
    ("thresholded_relu", 0.0): ZERO,
    ("scaled_tanh", 1.5, 0.5): ZERO,
    ("hard_sigmoid", 0.25, 0.5): (-2.0, -2.001, -1.999, 2.0, 1.999, 2.001, *ZERO),
    ("hard_sigmoid", -0.25, 0.5): (-2.0, -2.001, -1.999, 2.0, 1.999, 2.001, *ZERO),
    "elu": ZERO,
    ("elu", 0.25): ZERO,
    ("elu", -2.0): ZERO,
    ("elu", 0.0): ZERO,
    "softsign": ZERO,
    "softplus": ZERO,
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def value_and_slope(spec, a, clip=None):
    """By a layer whose pre-activations are its inputs."""
    layer = fastrnn.RNN(len(a), len(a), nonlinearity=spec, clip=clip, bias=False, dtype=a.dtype, rng=0)
    layer.params["weight_ih_l0"][...] = np.eye(len(a))
    layer.params["weight_hh_l0"][...] = 0
    y, _, tape = layer.forward(a[None, None])
    dx, _ = layer.backward(tape, np.ones_like(y))
    return y[0, 0], dx[0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", CORNERS, ids=str)
def test_values_and_slopes_at_corners_are_the_reference_s(spec, dtype, instructions):
    a = np.array(CORNERS[spec], dtype)
    f = reference.Activation(spec)
    y, slope = value_and_slope(spec, a)
    expected = f(a)
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype], atol=TINY)
    np.testing.assert_allclose(slope, f.slope(a, expected), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", CORNERS, ids=str)
def test_the_slope_at_the_clip_is_the_reference_s(spec, dtype, instructions):
    a = np.array([-1.5, -1.501, -1.499, 1.5, 1.501, 1.499, 0.0], dtype)
    f = reference.Activation(spec, 1.5)
    y, slope = value_and_slope(spec, a, clip=1.5)
    np.testing.assert_allclose(y, f(a), rtol=TOLERANCE[dtype], atol=TINY)
    np.testing.assert_allclose(slope, f.slope(a, f(a)), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("alpha", [1.0, 0.25, -2.0])
def test_slope_of_elu_at_zero_is_alpha(alpha, instructions):
    _, slope = value_and_slope(("elu", alpha), np.zeros(19, np.float32))
    np.testing.assert_array_equal(slope, np.float32(alpha))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "softsign", "softplus", "sigmoid", "tanh"])
def test_slopes_at_zero_are_torch_s(name, instructions):
    torch = pytest.importorskip("torch")
    spec = (name, 0.25) if name in ("leaky_relu", "elu") else name
    x = torch.zeros(3, requires_grad=True)
    getattr(torch.nn.functional, name)(x, *spec[1:] if isinstance(spec, tuple) else ()).sum().backward()
    np.testing.assert_allclose(value_and_slope(spec, np.zeros(3, np.float32))[1], x.grad.numpy(), rtol=1e-6)


def test_every_activation_is_tried():
    assert {spec if isinstance(spec, str) else spec[0] for spec in CORNERS} == set(reference.FORMULAS)
