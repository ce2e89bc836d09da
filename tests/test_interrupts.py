"""Ctrl-C: it comes out of long calls soon, hangs nothing, and leaves whole what comes after."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.engine import parallel
from fastrnn.training import load_checkpoint, save_checkpoint

from states import as_tuple, assert_equal

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")

LONG = 0.5  # seconds that the calls below would take, about


@contextmanager
def alarm(handler, *seconds):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_left(call, *arguments):
    """Whether an interrupt comes out of the call's compiled part, and not after it.

    Where it comes before, as on a busy machine, it is tried again with a later one.
    """
    for delay in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        with alarm(signal.default_int_handler, delay):
            try:
                call(*arguments)
            except KeyboardInterrupt as interrupt:
                places = traceback.extract_tb(interrupt.__traceback__)
                if any(place.filename.endswith((".pxi", ".pyx")) for place in places):
                    return True
    return False


def steps_for(call, T):
    """So many times T that call(T) takes about LONG, measured."""
    call(T)
    began = time.perf_counter()
    call(T)
    return int(T * LONG / (time.perf_counter() - began))


# ---------------------------------------------------------------- long calls are left


LAYERS = {
    "one shard": (lambda: fastrnn.LSTM(1, 64, rng=0), 1),
    "shards of a batch": (lambda: fastrnn.GRU(1, 256, rng=0), 32),
    "directions": (lambda: fastrnn.RNN(1, 64, bidirectional=True, rng=0), 2),
    "many short shards": (lambda: fastrnn.LSTM(1, 128, bidirectional=True, rng=0), 128),
    "pipelined layers": (lambda: fastrnn.GRU(1, 64, num_layers=3, rng=0), 1),
    "units of each step": (lambda: fastrnn.LSTM(1, 300, rng=0), 1),
    "layer normalisation": (lambda: fastrnn.LSTM(1, 64, layer_norm=True, rng=0), 1),
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_long_pass_is_left_and_the_next_is_right(name, count, restore_threads):
    make, B = LAYERS[name]
    fastrnn.set_num_threads(count)
    layer = make()

    def step(T, **options):
        layer.zero_grad()
        y, state, tape = layer.forward(np.ones((T, B, 1), np.float32), **options)
        dx, dstate = layer.backward(tape, y)
        return [y, *as_tuple(state), dx, *as_tuple(dstate), *(grad.copy() for grad in layer.grads.values())]

    T = steps_for(step, 2000)
    expected = step(300)
    x = np.ones((T, B, 1), np.float32)
    y, _, tape = layer.forward(x)
    assert is_left(layer.backward, tape, y)
    x = np.ones((4 * T, B, 1), np.float32)
    assert is_left(layer, x)
    assert is_left(layer.forward, x)
    assert_equal(step(300), expected)


def test_a_long_pass_back_is_left(restore_threads):
    fastrnn.set_num_threads(2)
    layer = fastrnn.LSTM(1, 64, num_layers=2, rng=0)
    y, _, tape = layer.forward(np.ones((100_000, 1, 1), np.float32), checkpoint=100)

    def back():
        for _ in range(100):
            layer.backward(tape, y)

    assert is_left(back)
    expected, _, short = layer.forward(np.ones((100, 1, 1), np.float32))
    assert_equal([layer(np.ones((100, 1, 1), np.float32))[0]], [expected])
    layer.backward(short, expected)


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_a_stream_that_is_left_leaves_the_state_as_it_was(count, weights, restore_threads):
    fastrnn.set_num_threads(count)
    layer = fastrnn.LSTM(1, 256, num_layers=2, rng=0)
    layer.compress(weights)
    stream = layer.stream()
    T = steps_for(lambda T: stream.run(np.ones((T, 1), np.float32)), 500)
    state = stream.state
    assert is_left(stream.run, np.ones((T, 1), np.float32))
    assert_equal(stream.state, state)
    other = stream.copy()
    np.testing.assert_array_equal(stream.run(np.ones((50, 1), np.float32)), other.run(np.ones((50, 1), np.float32)))


def test_writing_is_left_and_leaves_the_state_as_it_was():
    model = fastrnn.LanguageModel("gru", 128, rng=0)
    model.fit("to be or not to be " * 50, steps=1, batch_size=2, seq_len=8, progress=False)
    stream = model.stream()
    stream.feed("to be")
    state = stream.state
    assert is_left(lambda: stream.write(500_000, rng=0))
    assert_equal([stream.state], [state])
    assert is_left(lambda: stream.run("to be or not " * 50_000))
    assert_equal([stream.state], [state])
    assert is_left(lambda: stream.feed("to be or not " * 100_000))
    assert_equal([stream.state], [state])
    assert len(stream.write(5)) == 5


# ---------------------------------------------------------------- signals that do not end a call


@pytest.mark.parametrize("count", [1, 2])
def test_handlers_run_in_the_midst_of_a_call_which_goes_on_where_they_raise_nothing(count, restore_threads):
    fastrnn.set_num_threads(count)
    layer, x, came = fastrnn.LSTM(1, 256, rng=0), np.ones((12_000, 4, 1), np.float32), []
    expected, _ = layer(x)
    with alarm(lambda *_: came.append(True), 0.01, 0.01):
        y, _ = layer(x)
        assert came
    np.testing.assert_array_equal(y, expected)


def test_other_threads_hear_no_signals(restore_threads):
    """Python runs handlers in its main thread alone."""
    fastrnn.set_num_threads(2)
    layer, x, results = fastrnn.LSTM(1, 256, rng=0), np.ones((6_000, 4, 1), np.float32), []
    caller = threading.Thread(target=lambda: results.append(layer(x)[0]))

    def wait():
        caller.start()
        while caller.is_alive():
            time.sleep(0.001)

    with alarm(signal.default_int_handler, 0.05), pytest.raises(KeyboardInterrupt):
        wait()
    caller.join()
    np.testing.assert_array_equal(results[0], layer(x)[0])


def test_the_error_of_a_handler_is_what_the_caller_sees(restore_threads):
    fastrnn.set_num_threads(2)

    def handle(*_):
        raise TimeoutError("enough")

    layer, x = fastrnn.GRU(1, 64, bidirectional=True, rng=0), np.ones((500_000, 2, 1), np.float32)
    with alarm(handle, 0.05), pytest.raises(TimeoutError, match="enough"):
        layer(x)


# ---------------------------------------------------------------- an interrupt at every place where one can come


def interrupts_at_each_place(call, stride=1):
    """Call again and again, with an interrupt at the first, second, ... instruction of Python, until there is none."""
    for place in range(0, 1_000_000, stride):
        left = place

        def trace(frame, event, _):
            nonlocal left
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            call()
            return
        except KeyboardInterrupt:
            yield place
        finally:
            sys.settrace(None)


@pytest.fixture
def no_coverage():
    """Who traces already is put back."""
    tracer = sys.gettrace()
    yield
    sys.settrace(tracer)


OPTIMIZERS = {
    "SGD": lambda modules: fastrnn.optim.SGD(modules, momentum=0.9, groups={"bias*": {"lr": 1e-2}}),
    "Adam": fastrnn.optim.Adam,
    "RMSprop": lambda modules: fastrnn.optim.RMSprop(modules, centered=True, momentum=0.5),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_an_optimiser_is_made_whole_or_not_at_all(name, count, restore_threads, monkeypatch, no_coverage):
    monkeypatch.setattr("fastrnn.engine.tuning.UPDATED", 64)  # several tasks
    fastrnn.set_num_threads(count)
    modules = [fastrnn.GRU(3, 8, rng=0), fastrnn.Linear(8, 5, rng=0)]
    optimizer = OPTIMIZERS[name](modules)
    for module in modules:
        for grad in module.grads.values():
            grad[...] = 0.1

    def all_of_it():
        states = [each.state_dict() for each in (*modules, optimizer)]
        return [array for state in states for array in state.values()]

    def begin_anew():
        for each, state in zip((*modules, optimizer), states, strict=True):
            each.load_state_dict(state)

    before, states = all_of_it(), [each.state_dict() for each in (*modules, optimizer)]
    optimizer.step(max_norm=1.0)
    after = all_of_it()
    begin_anew()
    made = []
    for _ in interrupts_at_each_place(lambda: optimizer.step(max_norm=1.0)):
        assert_equal(all_of_it(), after if optimizer.steps else before)
        made.append(optimizer.steps)
        begin_anew()
    assert made.count(0) > 100
    assert made.count(1) > 1
    assert made == sorted(made)


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_at_any_place_of_a_pass_leaves_threads_and_layer_in_order(count, restore_threads, no_coverage):
    fastrnn.set_num_threads(count)
    layer = fastrnn.LSTM(3, 24, num_layers=2, bidirectional=True, rng=0)
    x = np.random.default_rng(0).standard_normal((30, 70, 3), dtype=np.float32)

    def step():
        layer.zero_grad()
        y, _, tape = layer.forward(x, checkpoint=3)
        dx, _ = layer.backward(tape, y)
        return [y, dx, *(grad.copy() for grad in layer.grads.values())]

    expected, places = step(), 0
    for place in interrupts_at_each_place(step, stride=29):
        places += 1
        if place % 10 == 0:
            assert_equal(step(), expected)
    assert places > 50
    assert_equal(step(), expected)


def test_an_interrupt_while_threads_are_started_leaves_none_behind(restore_threads, no_coverage):
    tasks = [lambda: None] * 3

    def start():
        fastrnn.set_num_threads(1)
        fastrnn.set_num_threads(3)
        parallel.run(tasks)

    start()
    for _ in interrupts_at_each_place(start):
        start()
        assert parallel.run([lambda: 1, lambda: 2]) == [1, 2]


@pytest.mark.parametrize("options", [{}, {"checkpoint": 10**6}], ids=str)
def test_a_task_that_fails_has_the_others_leave(options, restore_threads):
    """Also one that consists of many short passes."""
    fastrnn.set_num_threads(2)
    layer = fastrnn.GRU(1, 2, dtype="float64", rng=0)
    x = np.ones((300_000, 16, 1))
    both, left = threading.Barrier(2), []

    def fail():
        both.wait(timeout=10)
        time.sleep(0.05)
        raise MemoryError("none left")

    def go_on():
        both.wait(timeout=10)
        try:
            layer.forward(x, **options)
        except _core.Cancelled:
            left.append(True)
            raise

    with pytest.raises(MemoryError, match="none left"):
        parallel.run([go_on, fail])
    assert left == [True]
    assert _core.num_threads() == 2


def test_what_a_handler_calls_is_no_part_of_the_call_that_it_interrupts(restore_threads):
    fastrnn.set_num_threads(2)
    layer, other = fastrnn.LSTM(1, 256, rng=0), fastrnn.GRU(3, 100, bidirectional=True, rng=0)
    x, y = np.ones((100_000, 1, 1), np.float32), np.ones((40, 64, 3), np.float32)
    expected, found, begun = other(y)[0], [], threading.Event()

    def handle(*_):
        begun.set()
        time.sleep(0.1)  # now the task beside has failed
        found.append(other(y)[0])

    def fail():
        begun.wait(timeout=10)
        raise MemoryError("none left")

    with alarm(handle, 0.05), pytest.raises(MemoryError, match="none left"):
        parallel.run([lambda: layer(x), fail])
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_a_child_that_a_handler_forks_does_not_go_on_with_the_call(count, restore_threads):
    fastrnn.set_num_threads(count)
    layer, x, children = fastrnn.LSTM(1, 256, bidirectional=True, rng=0), np.ones((12_000, 4, 1), np.float32), []

    def handle(*_):
        if not children:
            children.append(os.fork())

    code = 1
    with alarm(handle, 0.05):
        try:
            layer(x)
        except RuntimeError as error:
            code = 7 if "forked" in str(error) else 2
        finally:
            if children == [0]:
                os._exit(code)
    if children:
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    assert code == 1


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Python's own: open, but not yet in `with`
def test_a_checkpoint_is_loaded_whole_or_not_at_all(tmp_path, no_coverage):
    shuffling = np.random.default_rng(1)
    modules = [fastrnn.GRU(3, 8, dropout=0.5, rng=0), fastrnn.Linear(8, 5, rng=0)]
    adam = fastrnn.optim.Adam(modules)
    generators = [modules[0]._rng, shuffling]

    def all_of_it():
        states = [each.state_dict() for each in (*modules, adam)]
        bits = [np.array(str(generator.bit_generator.state)) for generator in generators]
        return [*(array for state in states for array in state.values()), *bits]

    def save(name):
        save_checkpoint(tmp_path / name, adam, generators=[shuffling])
        return all_of_it()

    def load(name):
        load_checkpoint(tmp_path / name, adam, generators=[shuffling])

    old = save("old")
    for module in modules:
        for grad in module.grads.values():
            grad[...] = 0.1
    adam.step()
    for generator in generators:
        generator.random(3)
    new = save("new")
    load("old")
    loaded = []
    for _ in interrupts_at_each_place(lambda: load("new"), stride=3):
        loaded.append(adam.steps == 1)
        assert_equal(all_of_it(), new if adam.steps else old)
        load("old")
    assert loaded.count(False) > 50
    assert loaded == sorted(loaded)


# ---------------------------------------------------------------- what else comes in between


def test_the_garbage_collector_may_call_while_work_is_given_to_threads(restore_threads):
    called = []

    def collect(phase, info):
        if phase == "start" and len(called) < 50:
            called.append(True)
            parallel.run([lambda: None] * 2)

    threshold = gc.get_threshold()
    gc.callbacks.append(collect)
    gc.set_threshold(1)
    try:
        for count in (3, 1, 2, 3):
            fastrnn.set_num_threads(count)
            assert parallel.run([lambda: 1, lambda: 2]) == [1, 2]
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collect)
    assert called


def test_calls_go_on_by_themselves_where_no_thread_can_be_started(restore_threads, monkeypatch):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    fastrnn.set_num_threads(1)
    layer, x = fastrnn.LSTM(1, 300, num_layers=2, rng=0), np.ones((300, 40, 1), np.float32)
    expected = [layer(x)[0], layer(x[:, :1])[0]]
    monkeypatch.setattr("_thread.start_new_thread", fail)
    fastrnn.set_num_threads(3)
    assert_equal([layer(x)[0], layer(x[:, :1])[0]], expected)
    assert parallel.run([lambda: 1, lambda: 2]) == [1, 2]
    fastrnn.set_num_threads(1)
