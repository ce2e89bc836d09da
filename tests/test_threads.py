"""Threads: the same bits for any number of them, from several callers at once, and in a forked child."""

import os
import threading

import fastrnn
import numpy as np
import pytest


@pytest.fixture
def restore_threads():
    count = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(count)


def training_step(layer, x, lengths):
    y, _, tape = layer.forward(x, lengths=lengths)
    layer.zero_grad()
    dx, _ = layer.backward(tape, np.sin(y))
    return [y, *([] if dx is None else [dx]), *(grad.copy() for grad in layer.grads.values())]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_the_same_bits_for_any_number_of_threads(cell, ragged, restore_threads):
    rng = np.random.default_rng(0)
    layer = cell(24, 96, num_layers=2, bidirectional=True, rng=rng)
    x = rng.normal(size=(20, 67, 24)).astype(np.float32)
    lengths = rng.integers(0, 21, 67) if ragged else None
    results = []
    for count in (1, 2, 3, 8):
        fastrnn.set_num_threads(count)
        results.append(training_step(layer, x, lengths))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"ragged": True}, {"reverse": True}, {"batch": 1}, {"one_hot": True}], ids=str)
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_layers_of_a_stack_that_run_at_once_do_what_each_does_alone(cell, options, restore_threads):
    rng, B, H = np.random.default_rng(0), options.get("batch", 7), 96
    T = 1050 // B
    stack = getattr(fastrnn, cell)(24, H, num_layers=3, reverse=options.get("reverse", False), rng=rng)
    one_hot, ragged = options.get("one_hot", False), options.get("ragged", False)
    x = rng.integers(0, 24, (T, B)) if one_hot else rng.normal(size=(T, B, 24)).astype(np.float32)
    lengths = rng.integers(0, T + 1, B) if ragged else None
    fastrnn.set_num_threads(1)
    below, tapes, layers = x, [], []
    for k in range(3):
        layer = getattr(fastrnn, cell)(24 if k == 0 else H, H, reverse=stack.reverse)
        layer.load_state_dict(
            {name.replace(f"_l{k}", "_l0"): a for name, a in stack.params.items() if f"_l{k}" in name}
        )
        below, _, tape = layer.forward(below, lengths=lengths)
        layers.append(layer), tapes.append(tape)
    dy = rng.normal(size=below.shape).astype(np.float32)
    dx = dy
    for layer, tape in zip(reversed(layers), reversed(tapes), strict=True):
        dx, _ = layer.backward(tape, dx)
    expected = [below, *([] if one_hot else [dx]), *(g for layer in layers for g in layer.grads.values())]

    assert stack.forward(x, lengths=lengths)[2].at_once
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        for _ in range(3):
            y, _, tape = stack.forward(x, lengths=lengths)
            np.testing.assert_array_equal(stack(x, lengths=lengths)[0], y)
            for _ in range(2):  # a tape may be walked again
                stack.zero_grad()
                dx, _ = stack.backward(tape, dy)
            for a, b in zip(expected, [y, *([] if one_hot else [dx]), *stack.grads.values()], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("input_size", [24, 5000])
def test_the_same_bits_for_any_number_of_threads_with_indices(input_size, ragged, restore_threads):
    rng = np.random.default_rng(0)
    layer = fastrnn.LSTM(input_size, 96, bidirectional=True, rng=rng)
    ids = rng.integers(0, input_size, (20, 67))
    lengths = rng.integers(0, 21, 67) if ragged else None
    results = []
    for count in (1, 2, 3, 8):
        fastrnn.set_num_threads(count)
        results.append(training_step(layer, ids, lengths))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_head_and_loss_give_the_same_bits_for_any_number_of_threads(restore_threads):
    rng = np.random.default_rng(0)
    head = fastrnn.Linear(130, 90, rng=rng)
    h = rng.normal(size=(2000, 130)).astype(np.float32)
    results = []
    for count in (1, 2, 5):
        fastrnn.set_num_threads(count)
        o, tape = head.forward(h)
        head.zero_grad()
        loss, do = fastrnn.softmax_cross_entropy(o, np.arange(2000) % 90)
        results.append([o, np.array(loss), head.backward(tape, do), *(g.copy() for g in head.grads.values())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("classes", [90, 1500])
def test_cross_entropy_gives_the_same_bits_for_any_number_of_threads(classes, restore_threads):
    rng = np.random.default_rng(0)
    head = fastrnn.Linear(130, classes, rng=rng)
    h, mask = rng.normal(size=(3500, 130)).astype(np.float32), rng.random(3500) < 0.9
    results = []
    for count in (1, 2, 5):
        fastrnn.set_num_threads(count)
        head.zero_grad()
        loss, dh = head.cross_entropy(h, np.arange(3500) % classes, mask=mask)
        results.append([np.array(loss), dh, *(g.copy() for g in head.grads.values())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_several_callers_at_once_share_a_layer(restore_threads):
    fastrnn.set_num_threads(2)
    layer = fastrnn.GRU(16, 128, rng=0)
    x = np.random.default_rng(1).normal(size=(30, 64, 16)).astype(np.float32)
    expected, wrong = layer(x)[0], []

    def call():
        for _ in range(10):
            if not np.array_equal(layer(x)[0], expected):
                wrong.append(True)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_works(restore_threads):
    fastrnn.set_num_threads(2)
    layer = fastrnn.LSTM(16, 128, rng=0)
    x = np.random.default_rng(1).normal(size=(30, 64, 16)).astype(np.float32)
    expected = layer(x)[0]  # the pool exists when the child is made
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(layer(x)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_in_a_task_reaches_the_caller(restore_threads):
    from fastrnn import threads

    def fail():
        raise MemoryError("none left")

    for count in (1, 3):
        fastrnn.set_num_threads(count)
        with pytest.raises(MemoryError, match="none left"):
            threads.run([lambda: 1, fail, lambda: 2])


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_the_number_of_threads_is_a_positive_integer(bad):
    with pytest.raises((TypeError, ValueError), match="expected n"):
        fastrnn.set_num_threads(bad)
