"""Threads: the same bits for any number of them, from several callers at once, and in a forked child."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, engine
from fastrnn.engine import parallel, tuning

from same_bits import assert_all_equal
from states import as_tuple


def in_four_threads(call):
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def wait_for_all(workers):
    """Returns when so many threads of the pool are there to work; else an error."""
    together = threading.Barrier(workers + 1)
    _core.submit(together.wait, workers)
    together.wait(timeout=10)


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
    assert_all_equal(results)


@pytest.mark.parametrize("options", [{}, {"ragged": True}, {"reverse": True}, {"batch": 1}, {"one_hot": True}], ids=str)
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_pipelined_layers_of_a_stack_do_what_each_does_alone(cell, options, restore_threads):
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

    assert stack.forward(x, lengths=lengths)[2].is_pipelined
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        for _ in range(3):
            y, _, tape = stack.forward(x, lengths=lengths)
            np.testing.assert_array_equal(stack(x, lengths=lengths)[0], y)
            for _ in range(2):  # backward may take a tape again
                stack.zero_grad()
                dx, _ = stack.backward(tape, dy)
            for a, b in zip(expected, [y, *([] if one_hot else [dx]), *stack.grads.values()], strict=True):
                np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- steps that threads share by units

# Of a row or two, and just large enough to be shared by three threads
SHARED = {
    "RNN": lambda dtype: fastrnn.RNN(40, 450, dtype=dtype, rng=0),
    "RNN, relu": lambda dtype: fastrnn.RNN(40, 450, nonlinearity="relu", dtype=dtype, rng=0),
    "GRU": lambda dtype: fastrnn.GRU(40, 260, dtype=dtype, rng=0),
    "GRU, reset before": lambda dtype: fastrnn.GRU(40, 261, reset_after=False, dtype=dtype, rng=0),
    "GRU, clip": lambda dtype: fastrnn.GRU(40, 262, clip=1.0, reverse=True, dtype=dtype, rng=0),
    "LSTM": lambda dtype: fastrnn.LSTM(40, 223, dtype=dtype, rng=0),
    "LSTM, peephole": lambda dtype: fastrnn.LSTM(40, 230, peephole=True, dtype=dtype, rng=0),
    "LSTM, projected": lambda dtype: fastrnn.LSTM(40, 310, proj_size=130, dtype=dtype, rng=0),
}


@pytest.fixture
def gathered():
    """Each job and each team begins when all its workers have come, whatever else the machine does."""
    _core.gather_workers(True)
    yield
    _core.gather_workers(False)


def all_passes(layer, x, **options):
    y, state, tape = layer.forward(x, **options)
    gradients = []
    for each in (tape, layer.forward(x, checkpoint=3, **options)[2]):
        layer.zero_grad()
        dx, dstate = layer.backward(each, np.sin(y))
        gradients += [*([] if dx is None else [dx]), *as_tuple(dstate), *(g.copy() for g in layer.grads.values())]
    return [y, *as_tuple(state), layer(x, **options)[0], *gradients]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHARED)
def test_threads_that_share_the_steps_of_a_row_give_the_same_bits(name, dtype, restore_threads, gathered):
    layer = SHARED[name](dtype)
    x = np.random.default_rng(1).normal(size=(43, 1, 40)).astype(dtype)
    assert layer.forward(x)[2].layer_passes[0][0].threads >= 3
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        results.append(all_passes(layer, x))
    assert_all_equal(results)


@pytest.mark.parametrize("options", ["ragged", "reset", "one_hot", "few_rows", "many_rows"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_threads_that_share_the_steps_of_a_batch_give_the_same_bits(name, options, restore_threads, gathered):
    layer, rng = SHARED[name]("float32"), np.random.default_rng(1)
    B = {"few_rows": 2, "many_rows": 15}.get(options, 3)
    x = rng.integers(0, 40, (30, B)) if options == "one_hot" else rng.normal(size=(30, B, 40)).astype(np.float32)
    given = {"ragged": {"lengths": [7, 30, 0]}, "reset": {"reset": rng.random((30, B)) < 0.2}}.get(options, {})
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        results.append(all_passes(layer, x, **given))
    assert_all_equal(results)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "GRU, reset before", "LSTM", "LSTM, projected"])
def test_a_stream_whose_steps_are_shared_gives_the_same_bits_in_any_pieces(name, weights, restore_threads, gathered):
    layer = SHARED[name]("float32")
    layer.compress(weights)
    x = np.random.default_rng(1).normal(size=(70, 1, 40)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        whole, pieces = layer.stream(), layer.stream()
        y = whole.run(x)
        np.testing.assert_array_equal(np.concatenate([pieces.run(x[:9]), pieces.run(x[9:])]), y)
        results.append([y, *as_tuple(whole.state)])
    assert_all_equal(results)


@pytest.mark.parametrize(
    "options", [{"layer_norm": True}, {"zoneout": 0.1}, {"num_layers": 2, "layer_norm": True}], ids=str
)
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_steps_that_cannot_be_shared_are_not_by_layers_and_streams_alike(cell, options, restore_threads, gathered):
    layer = getattr(fastrnn, cell)(40, 256, rng=0, **options)
    x = np.random.default_rng(1).normal(size=(70, 1, 40)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        stream = layer.stream()
        assert stream.threads == stream.copy().threads == layer.forward(x)[2].layer_passes[0][0].threads == 1
        results.append([layer(x)[0], stream.run(x), *as_tuple(stream.state)])
    assert_all_equal(results)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_what_may_be_shared_is_decided_by_the_weights_that_a_stream_has(weights, restore_threads, gathered):
    """And not by those that it would get if it were made now."""
    layer, results = SHARED["GRU"]("float32"), []
    x = np.random.default_rng(1).normal(size=(70, 1, 40)).astype(np.float32)
    for count in (1, 3):
        fastrnn.set_num_threads(count)
        layer.compress(weights)
        compressed = layer.stream()
        layer.compress("float32")
        refreshed = layer.stream()
        layer.compress(weights)
        refreshed.refresh()
        layer.compress("float32")
        assert compressed.copy().threads == refreshed.threads == (1 if weights == "int8" else 3)
        results.append([compressed.copy().run(x), refreshed.run(x)])
    assert_all_equal(results)


def test_workers_may_come_at_any_time_or_never(restore_threads):
    layer = SHARED["LSTM"]("float32")
    x = np.random.default_rng(1).normal(size=(43, 1, 40)).astype(np.float32)
    fastrnn.set_num_threads(1)
    expected = all_passes(layer, x)
    fastrnn.set_num_threads(3)
    for _ in range(20):
        assert_all_equal([expected, all_passes(layer, x)])
    busy = threading.Event()
    _core.submit(busy.wait, 2)  # nobody is free
    assert_all_equal([expected, all_passes(layer, x)])
    busy.set()
    wait_for_all(2)


def test_several_callers_at_once_share_their_steps(restore_threads):
    layer = SHARED["GRU"]("float32")
    x = np.random.default_rng(1).normal(size=(43, 1, 40)).astype(np.float32)
    fastrnn.set_num_threads(2)
    expected, wrong = layer(x)[0], []

    def call():
        stream = layer.stream()
        for _ in range(5):
            stream.reset()
            if not (np.array_equal(layer(x)[0], expected) and np.allclose(stream.run(x), expected, atol=1e-5)):
                wrong.append(True)

    in_four_threads(call)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_shares_steps_with_threads_of_its_own(restore_threads):
    fastrnn.set_num_threads(2)
    layer = SHARED["LSTM"]("float32")
    x = np.random.default_rng(1).normal(size=(43, 1, 40)).astype(np.float32)
    expected = layer(x)[0]  # helped by a thread that the child does not have
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(layer(x)[0], expected) for _ in range(5)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(layer(x)[0], expected)


def test_an_error_in_a_team_sends_its_workers_away(restore_threads):
    fastrnn.set_num_threads(3)

    def fail(team):
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        _core.share(fail, 3, tuning.WORTH_CUTTING)
    wait_for_all(2)


# ---------------------------------------------------------------- others


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
    assert_all_equal(results)


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
    assert_all_equal(results)


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
    assert_all_equal(results)


def test_several_callers_at_once_share_a_layer(restore_threads):
    fastrnn.set_num_threads(2)
    layer = fastrnn.GRU(16, 128, rng=0)
    x = np.random.default_rng(1).normal(size=(30, 64, 16)).astype(np.float32)
    expected, wrong = layer(x)[0], []

    def call():
        for _ in range(10):
            if not np.array_equal(layer(x)[0], expected):
                wrong.append(True)

    in_four_threads(call)
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
        try:
            wait_for_all(1)  # of its own
            os._exit(0 if np.array_equal(layer(x)[0], expected) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_in_a_task_reaches_the_caller(restore_threads):
    def fail():
        raise MemoryError("none left")

    for count in (1, 3):
        fastrnn.set_num_threads(count)
        with pytest.raises(MemoryError, match="none left"):
            parallel.run([lambda: 1, fail, lambda: 2])


def test_an_error_in_a_worker_reaches_the_caller_and_the_worker_goes_on(restore_threads):
    fastrnn.set_num_threads(2)
    caller, both = threading.get_ident(), threading.Barrier(2)

    def fail_elsewhere():
        both.wait(timeout=10)
        if threading.get_ident() != caller:
            raise MemoryError("none left")

    for _ in range(3):
        with pytest.raises(MemoryError, match="none left"):
            parallel.run([fail_elsewhere, fail_elsewhere])
        wait_for_all(1)


def test_a_call_ends_when_all_its_tasks_have(restore_threads):
    fastrnn.set_num_threads(2)
    both, ended = threading.Barrier(2), []

    def fail():
        both.wait(timeout=10)
        raise KeyboardInterrupt

    def go_on():
        both.wait(timeout=10)
        time.sleep(0.05)  # longer than the caller waits awake
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        parallel.run([fail, go_on])
    assert ended == [True]


def test_the_number_of_threads_may_change_while_calls_are_under_way(restore_threads):
    done = []

    def call():
        for _ in range(100):
            done.append(parallel.run([partial(pow, 2, n) for n in range(5)]) == [1, 2, 4, 8, 16])

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for count in (1, 2, 3, 4) * 5:
        fastrnn.set_num_threads(count)
    for caller in callers:
        caller.join()
    assert done == [True] * 300


def test_threads_of_a_pool_end_when_the_number_of_threads_changes(restore_threads):
    fastrnn.set_num_threads(3)
    wait_for_all(2)
    pool = _core.set_num_threads(2)
    assert pool.size == 2
    pool.join()
    assert pool.alive == 0


def test_threads_that_have_nothing_to_do_take_no_time(restore_threads):
    fastrnn.set_num_threads(4)
    wait_for_all(3)
    time.sleep(0.05)  # they look out for work for a tenth of a millisecond
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt", "threading.Thread(target=work).start()"])
def test_the_interpreter_ends_with_threads_that_wait_for_work(end):
    code = f"""
import sys, threading, fastrnn
from fastrnn.engine import parallel
fastrnn.set_num_threads(3)
def work():
    for _ in range(50):
        assert parallel.run([lambda: 1] * 4) == [1] * 4
work()
{end}
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == {"sys.exit(3)": 3, "raise KeyboardInterrupt": -signal.SIGINT}.get(end, 0), ended.stderr


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_the_number_of_threads_is_a_positive_integer(bad):
    with pytest.raises((TypeError, ValueError), match="expected n"):
        fastrnn.set_num_threads(bad)


def test_tasks_are_let_go_when_they_are_done_though_the_pool_is_busy(restore_threads):
    fastrnn.set_num_threads(2)
    busy, array = threading.Event(), np.ones(3)
    gone = weakref.ref(array)
    _core.submit(busy.wait, 1)
    parallel.run([partial(np.sum, array), partial(np.sum, array)])
    del array
    try:
        assert gone() is None
    finally:
        busy.set()


def test_several_backward_passes_of_one_pipeline_at_once(restore_threads):
    fastrnn.set_num_threads(2)
    layer = fastrnn.LSTM(24, 96, num_layers=3, rng=0)
    x = np.random.default_rng(0).normal(size=(300, 4, 24)).astype(np.float32)
    y, _, tape = layer.forward(x)
    assert tape.is_pipelined
    (expected, _), found = layer.backward(tape, y), []

    def again():
        for _ in range(5):
            own = layer.spec.arrays({name: np.zeros_like(array) for name, array in layer.params.items()})
            found.append(engine.backward(tape, y, None, own)[0])

    in_four_threads(again)
    assert len(found) == 20
    for dx in found:
        np.testing.assert_array_equal(dx, expected)


# ---------------------------------------------------------------- how many threads


def chosen(ways, times, calls, first=0):
    """The ways that are chosen one after the other, where each takes the time that `times` says."""
    found = []
    for _ in range(calls):
        found.append(ways.choose(len(times), first))
        ways.note(found[-1], times[found[-1]])
    return found


@pytest.mark.parametrize("times", [[2.0, 1.0], [1.0, 2.0], [8.0, 4.0, 3.0, 5.0], [1.0, 1.5, 9.0]])
def test_the_fastest_way_is_found_and_the_others_are_tried_again(times):
    found = chosen(_core.Ways(), times, 3000)
    best = times.index(min(times))
    assert set(found[: 2 * len(times)]) == set(range(len(times)))
    assert found.count(best) >= 2900
    assert set(found[1000:]) == set(range(len(times)))


def test_what_changes_is_learnt_anew():
    ways = _core.Ways()
    assert chosen(ways, [2.0, 1.0], 100)[-1] == 1
    assert chosen(ways, [1.0, 5.0], 400)[-1] == 0


def test_large_work_is_not_tried_on_few_threads():
    assert [_core.first_way(1 << bits, 1 << 27, 7) for bits in (20, 27, 28, 30, 40)] == [0, 0, 1, 3, 6]
    assert set(chosen(_core.Ways(), [1.0, 1.0, 9.0, 3.0], 500, first=2)) == {2, 3}
    assert chosen(_core.Ways(), [1.0, 9.0], 9, first=1) == [1] * 9


def test_sizes_of_one_magnitude_are_within_a_quarter():
    for work in range(4, 5000):
        assert _core.magnitude(work) <= _core.magnitude(work + 1)
        assert _core.magnitude(2 * work + work // 2) > _core.magnitude(2 * work)
    assert _core.magnitude(1 << 40) == _core.magnitude((1 << 40) * 28 // 25)


@pytest.mark.usefixtures("restore_threads")
def test_what_is_learnt_affects_no_bit():
    layer = fastrnn.LSTM(24, 70, rng=0)
    x = np.random.default_rng(1).standard_normal((90, 26, 24), np.float32)
    fastrnn.set_num_threads(1)
    expected = layer(x)[0]
    fastrnn.set_num_threads(2)
    for _ in range(20):
        np.testing.assert_array_equal(layer(x)[0], expected)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"OMP_NUM_THREADS": "100000"}, "cpus"),
        ({"OMP_NUM_THREADS": "some"}, "cpus"),
        ({"OMP_NUM_THREADS": "0"}, "cpus"),
        ({}, "cpus"),
        ({"OMP_NUM_THREADS": "1", "FASTRNN_NUM_THREADS": "3"}, 3),
    ],
)
def test_the_environment_says_how_many_threads(environment, expected):
    inherited = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    program = "import fastrnn; print(fastrnn.get_num_threads())"
    found = subprocess.run(
        [sys.executable, "-c", program], env={**inherited, **environment}, check=True, text=True, stdout=subprocess.PIPE
    )
    assert int(found.stdout) == (len(os.sched_getaffinity(0)) if expected == "cpus" else expected)


def test_a_batch_is_cut_as_far_as_it_goes():
    counts = [tuning.shard_count(1 << 14, 100, B) for B in (1, 12, 24, 31, 48, 100, 300, 1024, 8192)]
    assert counts == [1, 1, 2, 2, 4, 8, 14, 50, 400]
    assert tuning.shard_count(1 << 20, 100, 64) == 2
    assert tuning.shard_count(1 << 20, 1, 4096) == 8


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.LSTM])
def test_many_threads_on_few_cores_give_the_same_bits(kind):
    layer = kind(6, 17, 2, bidirectional=True, rng=0)
    x = np.random.default_rng(1).standard_normal((160, 400, 6), np.float32)
    results = []
    for threads in (1, 64):
        fastrnn.set_num_threads(threads)
        y, _, tape = layer.forward(x)
        layer.zero_grad()
        dx, _ = layer.backward(tape, y)
        results.append((y, dx, layer.flat_grads.copy(), layer(x)[0]))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)
