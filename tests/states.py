"""States and other arrays of layers: taken apart, put together, compared."""

from __future__ import annotations

import numpy as np


def as_tuple(state):
    """(h,) or (h, c), of a state in either form."""
    return state if isinstance(state, tuple) else (state,)


def as_state(arrays):
    """The state, h or (h, c), of the arrays that `as_tuple` gives."""
    return tuple(arrays) if len(arrays) == 2 else arrays[0]


def mapped(function, *states):
    """function of the arrays of each state, as a state."""
    return tuple(map(function, *states)) if isinstance(states[0], tuple) else function(*states)


def assert_equal(ours, theirs):
    """Equal values throughout two arrays, or two tuples, lists or dicts of arrays."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if not isinstance(ours, tuple | list):
        ours, theirs = [ours], [theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def agree(name, ours, theirs, tolerance):
    """Differ by the tolerance at most: absolute, and beyond one relative to the largest value."""
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name)
