"""Truncated back-propagation through time: which gradients, from which state, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from fastrnn import reference
from fastrnn.training import tbptt

from finite_differences import numeric_gradient
from layer_cases import CELLS
from states import as_tuple

I, H, B, T = 2, 3, 2, 13
K1_K2 = [(1, 1), (4, 4), (20, 20), (1, 3), (3, 6), (3, 7), (4, 5), (5, 13), (4, 30), (2, 100)]


def make(cell="gru", **options):
    kind, own = CELLS[cell]
    if "proj_size" in own:
        own = own | {"proj_size": 2}
    return kind(I, H, **{"dtype": "float64", "rng": 1} | own | options)


def sequence(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, B, I)), rng.normal(size=(T, B, H)), rng.random((T, B)) < 0.15


def loss(y, targets):
    """A sum over steps, with a slope that depends on y."""
    return float((np.sin(y) * targets[..., : y.shape[-1]]).sum()), np.cos(y) * targets[..., : y.shape[-1]]


def step(layer):
    """A large step downhill, so that a state or gradient by other weights would be seen."""
    for name, g in layer.grads.items():
        layer.params[name][...] -= 0.05 * g
    layer.zero_grad()


def by_brute_force(layer, x, targets, reset, k1, k2):
    """By the definition, with the reference: (loss, gradients) of every update, and the state at the end."""
    found, state, begin = [], None, 0  # state: that before step `begin`
    for first in range(0, len(x), k1):
        end = min(first + k1, len(x))
        y, after, tape = reference.forward(layer, x[begin:end], state, reset=reset[begin:end])
        value, dy_newest = loss(y[first - begin :], targets[first:end])
        dy = np.zeros_like(y)
        dy[first - begin :] = dy_newest
        grads = reference.backward(layer, tape, dy)[2]
        found.append((value, grads))
        next_begin = max(0, first + k1 - (k2 - k1))
        if next_begin > begin:
            _, state, _ = reference.forward(layer, x[begin:next_begin], state, reset=reset[begin:next_begin])
            begin = next_begin
        for name, g in grads.items():
            layer.params[name][...] -= 0.05 * g
    return found, after


@pytest.mark.parametrize(("k1", "k2"), K1_K2)
@pytest.mark.parametrize("cell", CELLS)
def test_updates_are_those_of_brute_force(cell, k1, k2):
    x, targets, reset = sequence()
    theirs, after = by_brute_force(make(cell, num_layers=2), x, targets, reset, k1, k2)
    layer = make(cell, num_layers=2)
    ours = tbptt(layer, [(x, targets, reset)], loss, k1=k1, k2=k2)
    done = 0
    for update, (value, grads) in zip(ours, theirs, strict=True):
        done = min(T, done + k1)
        assert update.steps == done
        np.testing.assert_allclose(update.loss, value, rtol=1e-12)
        for name, g in grads.items():
            np.testing.assert_allclose(layer.grads[name], g, rtol=0, atol=1e-12, err_msg=name)
        step(layer)
    for a, b in zip(as_tuple(update.state), as_tuple(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 6), (3, 9)])
def test_gradient_is_the_slope_of_the_newest_loss_given_the_state_before_the_window(k1, k2):
    x, targets, reset = sequence()
    layer = make("lstm")
    for update in tbptt(layer, [(x, targets, reset)], loss, k1=k1, k2=k2):
        if update.steps == 12:
            break
        layer.zero_grad()
    begin, first = 12 - k2, 12 - k1
    before = layer(x[:begin], reset=reset[:begin])[1]

    def newest_loss():
        y, _ = layer(x[begin:12], before, reset=reset[begin:12])
        return loss(y[first - begin :], targets[first:12])[0]

    for name, array in layer.params.items():
        np.testing.assert_allclose(layer.grads[name], numeric_gradient(newest_loss, array), atol=1e-8, err_msg=name)


def test_one_window_for_the_whole_sequence_is_bptt():
    x, targets, _ = sequence()
    layer, plain = make(), make()
    list(tbptt(layer, [(x, targets)], loss, k1=T))
    y, _, tape = plain.forward(x)
    plain.backward(tape, loss(y, targets)[1])
    for name, g in plain.grads.items():
        np.testing.assert_array_equal(layer.grads[name], g)


@pytest.mark.parametrize(("k1", "k2"), K1_K2)
@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_how_the_sequence_comes_in_blocks_does_not_matter(size, k1, k2):
    arrays = sequence()
    memory = [np.empty((size, *array.shape[1:]), array.dtype) for array in arrays]

    def blocks():  # all in the same memory
        for start in range(0, T, size):
            block = [array[start : start + size] for array in arrays]
            for room, part in zip(memory, block, strict=True):
                room[: len(part)] = part
            yield tuple(room[: len(block[0])] for room in memory)

    whole, cut = make(), make()
    for a, b in zip(
        tbptt(whole, [arrays], loss, k1=k1, k2=k2), tbptt(cut, blocks(), loss, k1=k1, k2=k2), strict=True
    ):  # fmt: skip
        assert a.loss == b.loss
        np.testing.assert_array_equal(a.state, b.state)
        step(whole)
        step(cut)


def test_endless_blocks_are_read_as_they_are_needed():
    read = []

    def blocks():
        rng = np.random.default_rng(0)
        while True:
            read.append(1)
            yield rng.normal(size=(10, B, I)), np.ones((10, B, H))

    updates = tbptt(make(), blocks(), loss, k1=5, k2=20)
    for _ in range(4):
        next(updates)
    assert len(read) == 2


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (3, 7)])
def test_layouts_give_the_same_updates(k1, k2):
    x, targets, reset = sequence()
    plain, first = make("lstm"), make("lstm", batch_first=True)
    swapped = tuple(array.swapaxes(0, 1) for array in (x, targets, reset))
    ours = tbptt(first, [swapped], loss, k1=k1, k2=k2)
    for a, b in zip(tbptt(plain, [(x, targets, reset)], loss, k1=k1, k2=k2), ours, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-12)
        step(plain)
        step(first)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_indices_are_taken(batch_first):
    ids = np.random.default_rng(0).integers(0, I, T)
    layer = make("lstm", batch_first=batch_first)
    updates = list(tbptt(layer, [(ids, np.ones((T, H)))], loss, k1=5, k2=8))
    assert [update.steps for update in updates] == [5, 10, 13]
    y, state = layer(ids)
    for a, b in zip(updates[-1].state, state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(sum(update.loss for update in updates), np.sin(y).sum(), rtol=1e-12)


def test_no_steps_are_no_updates():
    assert list(tbptt(make(), [], loss, k1=3)) == []
    assert list(tbptt(make(), [(np.ones((0, B, I)), np.ones((0, B, H)))], loss, k1=3)) == []


@pytest.mark.parametrize(
    ("options", "how", "error", "message"),
    [
        ({}, {"k1": 0}, ValueError, "expected k1 >= 1, got 0"),
        ({}, {"k1": 5, "k2": 4}, ValueError, "expected k2 >= k1 = 5, got 4"),
        ({}, {"k1": 5, "k2": 7.5}, TypeError, "expected k2 to be an integer, got 7.5"),
        ({"reverse": True}, {"k1": 5}, ValueError, "expected a layer that runs forwards alone"),
        ({"bidirectional": True}, {"k1": 5}, ValueError, "expected a layer that runs forwards alone"),
    ],
)
def test_wrong_arguments_are_told_at_once(options, how, error, message):
    with pytest.raises(error, match=f"^{message}"):
        tbptt(make(**options), [], loss, **how)


def test_wrong_blocks_are_told():
    x, targets, _ = sequence()
    with pytest.raises(ValueError, match=r"^expected blocks \(x, targets\) or \(x, targets, reset\), got one of 1"):
        list(tbptt(make(), [(x,)], loss, k1=3))
    with pytest.raises(ValueError, match=r"^expected blocks of arrays with as many steps on axis 0, got shapes"):
        list(tbptt(make(), [(x, targets[1:])], loss, k1=3))
    with pytest.raises(ValueError, match=r"^expected dy of shape"):
        list(tbptt(make(), [(x, targets)], lambda y, targets: (0.0, y[:1]), k1=3))
