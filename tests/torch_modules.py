"""What the tests of fastrnn.torch share."""

import copy

import fastrnn.torch as ft
import torch

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}


def both(module):
    """The module and a copy that runs here."""
    return module, ft.accelerate(copy.deepcopy(module))


def why(module):
    """Why torch ran the last call that torch ran of any module in this one; None: it ran none."""
    return next((row.why for row in ft.report(module).rows if row.why), None)


def assert_close(found, expected, message=""):
    assert (found is None) == (expected is None), message
    if expected is not None:
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), message
        tolerance = TOLERANCE[expected.dtype]
        scale = expected.abs().max().item() if expected.numel() else 0
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance * max(scale, 1), msg=lambda m: f"{m} {message}"
        )


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)
