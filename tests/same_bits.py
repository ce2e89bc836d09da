"""What must not change a bit of what a layer computes: the number of threads, and back-propagation in segments."""

from __future__ import annotations

import copy

import fastrnn
import numpy as np

from states import as_state, as_tuple, assert_equal


def assert_all_equal(results):
    """Lists of arrays with the same values."""
    for other in results[1:]:
        assert_equal(results[0], other)


def assert_same_for_any_number_of_threads(layer, x):
    """y, dx and all gradients of a layer that may draw at random, to the bit."""
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        copied = copy.deepcopy(layer)
        y, _, tape = copied.forward(x)
        results.append([y, copied.backward(tape, y)[0], *copied.grads.values()])
    assert_all_equal(results)


def passes(layer, x, state, keywords, **how):
    """Everything that a forward and a backward pass give, in one list of arrays."""
    rng = np.random.default_rng(5)
    layer.zero_grad()
    layer._rng = np.random.default_rng(6)  # of dropout
    y, final, tape = layer.forward(x, state, **keywords, **how)
    dy = rng.normal(size=y.shape).astype(layer.dtype)
    dfinal = as_state([rng.normal(size=s.shape).astype(layer.dtype) for s in as_tuple(final)])
    y_before = y.copy()
    dx, dinitial = layer.backward(tape, dy, dfinal)
    np.testing.assert_array_equal(y, y_before)
    gradients = [g.copy() for g in layer.grads.values()]
    return [y_before, *as_tuple(final), *([] if dx is None else [dx]), *as_tuple(dinitial), *gradients], tape


def assert_same_bits_in_segments(layer, x, state, keywords, **how):
    """A pass with `checkpoint` or `memory_limit` and one without; returns the tape of the first."""
    (plain, _), (segmented, tape) = passes(layer, x, state, keywords), passes(layer, x, state, keywords, **how)
    for ours, theirs in zip(segmented, plain, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    return tape


def segments(tape):
    """How many each stack of the tape has; 0 where all is saved."""
    return [0 if stack is None else len(stack.begin) - 1 for stacks in tape.stacks for stack in stacks]
