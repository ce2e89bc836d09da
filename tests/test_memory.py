"""Memory of large arrays: used again by the next pass, never while anything refers to it, and not without bounds."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import fastrnn
import numpy as np
import pytest
from fastrnn import _core

MiB = 1 << 20
MOST_POOLED = 256 * MiB


def array(size, value=None, zero=False):
    made = _core.new_array((size,), "uint8", zero)
    if value is not None:
        made[...] = value
    return made


def address(made):
    return made.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def nothing_kept():
    """Before the test: an allocation that fails gives all back."""
    with pytest.raises(MemoryError):
        array(1 << 60)
    assert _core.memory_kept()[0] == 0


def training_step(layer, x):
    y, _, tape = layer.forward(x)
    layer.zero_grad()
    return y, layer.backward(tape, np.ones_like(y))[0]


@pytest.mark.parametrize("size", [80 << 10, MiB, 5 * MiB])
def test_memory_that_was_let_go_is_used_again(size):
    for _ in range(3):
        made = array(size)
        where = address(made)
        assert where % 64 == 0
        del made
        made = array(size - size // 20)  # one of a shorter batch
        assert address(made) == where
        del made


def test_a_block_of_more_than_a_quarter_too_much_is_not_taken():
    made = array(2 * MiB)
    where = address(made)
    del made
    assert address(array(MiB)) != where


@pytest.mark.parametrize("size", [1000, MiB])
def test_zeros_are_zero_in_memory_that_was_written_to(size):
    array(size, 7)
    assert not array(size, zero=True).any()


HOLDERS = {
    "itself": lambda y: y,
    "slice": lambda y: y[10:-10:3],
    "one element": lambda y: y[-1:],
    "reshaped": lambda y: y.reshape(2, -1).T[3:],
    "other dtype": lambda y: y.view("float32"),
    "chain of bases": lambda y: np.asarray(memoryview(y[5:][::2])[1:]),
    "array interface": lambda y: np.array(y, copy=False),
    "from a buffer": lambda y: np.frombuffer(y, "uint8")[7:],
    "ctypes": lambda y: np.ctypeslib.as_array((y.ctypes._ctypes.c_uint8 * 64).from_buffer(y)),
    "base": lambda y: np.frombuffer(y.base, "uint8"),
    "pickle": lambda y: pickle.loads(pickle.dumps(y[3:])),
    "pickle out of band": lambda y: pickle.loads(
        pickle.dumps(y, protocol=5, buffer_callback=(kept := []).append), buffers=kept
    ),
    "deep copy": lambda y: copy.deepcopy(y),
    "flat": lambda y: np.asarray(y.flat)[5:],
    "closure": lambda y: np.lib.stride_tricks.sliding_window_view(y, 5),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_memory_that_is_referred_to_is_not_used_again(hold):
    made = array(MiB, 3)
    held = hold(made)
    expected = np.array(held)
    del made
    gc.collect()
    others = [array(MiB, 200 + i) for i in range(3)]
    del others[0]
    others += [array(MiB + 17, 9), array(MiB, zero=True)]
    np.testing.assert_array_equal(held, expected)


def test_what_a_user_keeps_of_a_pass_stays_through_later_ones():
    layer = fastrnn.GRU(16, 64, rng=0)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(100 - i, 32, 16)).astype(np.float32) for i in range(6)]
    alone = [[part.copy() for part in training_step(layer, x)] for x in batches]
    held = [(y[::7], dx.view()) for y, dx in (training_step(layer, x) for x in batches)]
    for (y, dx), (expected_y, expected_dx) in zip(held, alone, strict=True):
        np.testing.assert_array_equal(y, expected_y[::7])
        np.testing.assert_array_equal(dx, expected_dx)


def test_a_tape_may_be_used_after_other_passes():
    layer = fastrnn.LSTM(16, 64, rng=0)
    x = np.random.default_rng(0).normal(size=(100, 32, 16)).astype(np.float32)
    y, _, tape = layer.forward(x)
    dy = np.ones_like(y)
    expected = layer.backward(tape, dy)[0].copy()
    for _ in range(3):
        training_step(layer, -x)
    np.testing.assert_array_equal(layer.backward(tape, dy)[0], expected)


def test_no_more_than_a_bound_is_kept():
    arrays = [array(40 * MiB) for _ in range(9)]
    oldest = address(arrays[0])
    newest = address(arrays[-1])
    while arrays:
        del arrays[0]
        assert _core.memory_kept()[0] <= MOST_POOLED
    assert _core.memory_kept()[0] > MOST_POOLED - 50 * MiB
    again = [array(40 * MiB) for _ in range(9)]
    assert address(again[0]) == newest  # which may be in cache still
    assert oldest not in [address(made) for made in again[:5]]


def test_one_block_of_more_than_the_bound_is_given_back_and_leaves_the_others():
    array(MiB)
    before = _core.memory_kept()[0]
    array(MOST_POOLED + MiB)
    assert _core.memory_kept()[0] == before > 0


def test_no_more_than_a_number_of_blocks_is_kept():
    arrays = [array(MiB // 4) for _ in range(400)]
    arrays.clear()
    assert _core.memory_kept()[0] <= 256 * MiB // 4 * 9 // 8


def test_what_is_kept_raises_the_peak_of_memory_by_an_eighth_at_most():
    """Of what was in use at once."""
    rng, alive, most = np.random.default_rng(0), [], 0
    _, used_before, most_before = _core.memory_kept()
    for _ in range(2000):
        if len(alive) < 20 and rng.random() < 0.6:
            alive.append(array(int(rng.integers(MiB // 16, 64 * MiB))))
        elif alive:
            del alive[rng.integers(len(alive))]
        kept, used, _ = _core.memory_kept()
        most = max(most, used)
        assert kept + used <= max(most, most_before) * 9 / 8
        assert used - used_before <= 1.25 * sum(made.nbytes + 64 for made in alive)
    alive.clear()
    assert _core.memory_kept()[1] == used_before


def test_checkpointed_passes_keep_no_more_than_they_used():
    """A limit stays one: repeated passes take no more than the first."""
    layer = fastrnn.LSTM(16, 32, rng=0)
    x = np.random.default_rng(0).normal(size=(20_000, 8, 16)).astype(np.float32)
    totals = []
    for i in range(4):
        y, _, tape = layer.forward(x[: 20_000 - 900 * i], memory_limit=2_000_000)
        layer.backward(tape, np.ones_like(y))
        del y, tape
        kept, used, _ = _core.memory_kept()
        totals.append(kept + used)
    assert max(totals) <= totals[0] * 9 / 8


def test_tracemalloc_sees_what_is_in_use_and_not_what_is_kept():
    array(8 * MiB)  # kept
    tracemalloc.start()
    try:
        leak = []
        for i in range(1, 4):
            leak.append(array(8 * MiB))
            assert abs(tracemalloc.get_traced_memory()[0] - i * 8 * MiB) < MiB
        leak.clear()
        now, peak = tracemalloc.get_traced_memory()
        assert now < MiB
        assert peak > 24 * MiB
        assert _core.memory_kept()[0] >= 24 * MiB
    finally:
        tracemalloc.stop()


def test_garbage_cycles_let_their_arrays_go():
    class Node:
        pass

    for _ in range(300):
        node = Node()
        node.itself, node.array = node, array(MiB, 1)
    gc.collect()
    assert _core.memory_kept()[0] <= MOST_POOLED


def test_threads_that_make_and_let_go_at_once_never_share_memory():
    wrong = []

    def work(value):
        rng, held = np.random.default_rng(value), []
        for _ in range(400):
            held.append(array(int(rng.integers(64 << 10, 100 << 10)), value))
            if len(held) > 3 and not (held.pop(rng.integers(4)) == value).all():
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def run_python(code, **environment):
    """What it prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_threads_take_memory_goes_on():
    run_python("""if True:
        import copy, os, threading, warnings
        warnings.simplefilter("ignore")
        import numpy as np, fastrnn
        from fastrnn import _core
        fastrnn.set_num_threads(1)
        layer, x = fastrnn.LSTM(8, 64, rng=0), np.ones((4, 24, 8), np.float32)
        expected, end = layer(x)[0].copy(), []
        def work(own):  # gradients of one layer are for one thread at a time
            while not end:
                own.backward(own.forward(x)[2], None)
        workers = [threading.Thread(target=work, args=(copy.deepcopy(layer),)) for _ in range(2)]
        for worker in workers: worker.start()
        for _ in range(50):
            child = os.fork()
            if not child:
                made = _core.new_array((1 << 20,), "uint8", True)
                del made
                os._exit(0 if np.array_equal(layer(x)[0], expected) else 1)
            assert os.waitpid(child, 0)[1] == 0
        end.append(True)
        for worker in workers: worker.join()
    """)


def test_arrays_may_outlive_the_interpreter():
    run_python("""if True:
        import fastrnn, numpy as np
        from fastrnn import _core
        y = [_core.new_array((1 << 20,), "uint8") for _ in range(3)]
        y.append(y)
        layer = fastrnn.LSTM(8, 64, rng=0)
        held = layer.forward(np.ones((50, 24, 8), np.float32))
        class Late:
            def __del__(self, new_array=_core.new_array):
                new_array((1 << 20,), "uint8")
        late = Late()
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc's thresholds are those of glibc")
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_training_steps_write_to_no_new_memory(cell):
    """Also where malloc gives all that it can back to the system, and with batches of changing length."""
    faults = run_python(
        f"""if True:
        import resource
        import fastrnn, numpy as np
        fastrnn.set_num_threads(1)
        layer = fastrnn.{cell}(64, 128, rng=0)
        x, dy = np.ones((100, 32, 64), np.float32), np.ones((100, 32, 128), np.float32)
        def steps(count):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for i in range(count):
                T = 100 - i % 5
                layer.backward(layer.forward(x[:T])[2], dy[:T])
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        steps(20)
        print(steps(20) / 20)""",
        MALLOC_TRIM_THRESHOLD_="65536",
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    assert float(faults) < 20  # pages; the y of one step alone has 400


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {}),
        ({"num_layers": 3}, {}),
        ({"num_layers": 3}, {"checkpoint": 4}),
        ({"num_layers": 2, "bidirectional": True}, {}),
        ({"num_layers": 2, "bidirectional": True}, {"checkpoint": 4}),
        ({"num_layers": 2, "dropout": 0.5, "zoneout": 0.1}, {}),
    ],
    ids=str,
)
def test_a_pass_leaves_nothing_for_the_garbage_collector(options, how, restore_threads):
    """Large arrays that waited for it would fill the memory, and every pass would have new ones made."""
    layer, x = fastrnn.LSTM(40, 128, rng=0, **options), np.ones((160, 8, 40), np.float32)
    for threads in (1, 2):
        fastrnn.set_num_threads(threads)
        layer.backward(layer.forward(x, **how)[2])
        gc.collect()
        gc.disable()
        try:
            before = _core.memory_kept()[1]
            layer.backward(layer.forward(x, **how)[2])
            layer(x)
            assert _core.memory_kept()[1] == before
        finally:
            gc.enable()
