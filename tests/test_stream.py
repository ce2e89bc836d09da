"""Streams: a layer advanced a step at a time, against the layer, the reference and itself in other pieces."""

import copy
import threading
import time
import tracemalloc
from contextlib import contextmanager

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, reference

from layer_cases import CELLS, TOLERANCE, case
from states import as_tuple, assert_equal
from streams import COMPRESSED, STEPS, as_bfloat16, as_int8, in_pieces, with_stored_weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_stream_is_what_layer_and_reference_are_in_any_pieces(cell, num_layers, dtype):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(1)
    for hidden_size, B, one_hot in ((13, 1, False), (13, 1, True), (21, 5, False), (37, 11, True), (70, 2, False)):
        layer = kind(6, hidden_size, num_layers, **options, dtype=dtype, rng=rng)
        x, state, _ = case(layer, rng, T=STEPS, B=B, one_hot=one_hot)
        stream = layer.stream(B)
        stream.state = state
        y = stream.run(x)
        for expected, final in (layer(x, state), reference.forward(layer, x, state)[:2]):
            np.testing.assert_allclose(y, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
            for ours, theirs in zip(as_tuple(stream.state), as_tuple(final), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        again = layer.stream(B)
        again.state = state
        np.testing.assert_array_equal(in_pieces(again, x), y)
        assert_equal(again.state, stream.state)


@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set_streams(cell, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(2)
    for dtype in ("float32", "float64"):
        layer = kind(5, 19, 2, **options, dtype=dtype, rng=rng)
        for B in (1, 7):
            x, state, _ = case(layer, rng, T=STEPS, B=B)
            stream = layer.stream(B)
            stream.state = state
            y = in_pieces(stream, x)
            tolerance = TOLERANCE[dtype]
            np.testing.assert_allclose(y, reference.forward(layer, x, state)[0], atol=tolerance, rtol=tolerance)


def test_stream_keeps_to_the_instruction_set_that_it_was_made_for():
    used = _core.instruction_set()
    layer = fastrnn.LSTM(5, 19, rng=0)
    x = np.random.default_rng(0).standard_normal((4, 1, 5), dtype=np.float32)
    expected = layer.stream().run(x)
    try:
        for name in _core.instruction_sets():
            _core.use_instruction_set(used)
            stream = layer.stream()
            _core.use_instruction_set(name)
            np.testing.assert_array_equal(stream.run(x), expected)
    finally:
        _core.use_instruction_set(used)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_rows_that_sit_out_keep_state_and_output(cell, one_hot):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(3)
    layer = kind(6, 11, 2, **options, rng=rng)
    x, state, _ = case(layer, rng, T=STEPS, B=4, one_hot=one_hot)
    active = rng.random((STEPS, 4)) < 0.6
    active[0] = active[5] = False
    if one_hot:
        x[~active] = -9  # not looked at
    stream = layer.stream(4)
    stream.state = state
    y = stream.run(x, active=active)
    for b in range(4):  # each row as if its steps were all there is
        alone = layer.stream()
        alone.state = copy_row(state, b)
        own = alone.run(x[active[:, b], b])
        np.testing.assert_allclose(y[active[:, b], b], own, atol=2e-6)
        for ours, theirs in zip(as_tuple(copy_row(stream.state, b)), as_tuple(alone.state), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=1e-5)
        last = np.concatenate([as_tuple(state)[0][-1, b][None], y[:-1, b]])
        np.testing.assert_array_equal(y[~active[:, b], b], last[~active[:, b]])

    again = layer.stream(4)
    again.state = state
    np.testing.assert_array_equal(in_pieces(again, x, active), y)
    assert_equal(again.state, stream.state)


def copy_row(state, b):
    rows = tuple(np.ascontiguousarray(array[:, b : b + 1]) for array in as_tuple(state))
    return rows if len(rows) == 2 else rows[0]


def test_layouts_of_blocks():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((20, 3, 5), dtype=np.float32)
    expected = fastrnn.GRU(5, 8, rng=0).stream(3).run(x)
    layer = fastrnn.GRU(5, 8, batch_first=True, rng=0)
    active = np.ones((3, 20), bool)
    for block in (x.swapaxes(0, 1), x.swapaxes(0, 1).copy()):
        np.testing.assert_array_equal(layer.stream(3).run(block), expected.swapaxes(0, 1))
        np.testing.assert_array_equal(layer.stream(3).run(block, active=active), expected.swapaxes(0, 1))

    one = fastrnn.GRU(5, 8, rng=0).stream()
    y = one.run(x[:, :1])
    one.reset()
    np.testing.assert_array_equal(one.run(x[:, 0]), y[:, 0])
    one.reset()
    np.testing.assert_array_equal([one.step(row) for row in x[:, 0]], y[:, 0])
    one.reset()
    np.testing.assert_array_equal([one.step(row[None])[0] for row in x[::1, 0]], y[:, 0])


def test_indices_come_as_any_integers():
    layer = fastrnn.RNN(5, 8, rng=0)
    ids = np.array([0, 4, 2, 2])
    y = layer.stream().run(ids)
    np.testing.assert_array_equal(layer.stream().run(ids.astype(np.uint8)), y)
    np.testing.assert_array_equal(layer.stream().run(ids[:, None])[:, 0], y)
    for kind in (int, np.int32, np.asarray):
        stream = layer.stream()
        np.testing.assert_array_equal([stream.step(kind(i)) for i in ids], y)
    np.testing.assert_allclose(layer(ids)[0], y, atol=1e-6)


def test_out_is_filled_and_returned_and_may_be_the_input():
    layer = fastrnn.LSTM(8, 8, rng=0)
    x = np.random.default_rng(0).standard_normal((20, 2, 8), dtype=np.float32)
    expected = layer.stream(2).run(x)
    out = np.full_like(expected, np.nan)
    assert layer.stream(2).run(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    same = x.copy()
    assert layer.stream(2).run(same, same) is same
    np.testing.assert_array_equal(same, expected)
    row = x[0].copy()
    np.testing.assert_array_equal(layer.stream(2).step(row, row), expected[0])


def test_out_of_a_run_must_not_overlap_what_is_still_to_be_read():
    memory, rng = np.zeros(40, np.float32), np.random.default_rng(0)
    x = memory[:12].reshape(6, 1, 2)
    stream, x[...] = fastrnn.RNN(2, 2, rng=0).stream(), rng.standard_normal((6, 1, 2))
    expected = stream.copy().run(x)
    for first in (1, 2, 11):
        before = memory.copy()
        with pytest.raises(ValueError, match="expected out to be apart from x"):
            stream.run(x, out=memory[first : first + 12].reshape(6, 1, 2))
        np.testing.assert_array_equal(memory, before)
    active = memory[12:].view(bool)[:6].reshape(6, 1)
    active[...] = True
    with pytest.raises(ValueError, match="expected out to be apart from active"):
        stream.run(x, out=memory[12:24].reshape(6, 1, 2), active=active)
    np.testing.assert_array_equal(stream.copy().run(x, out=memory[24:36].reshape(6, 1, 2)), expected)
    np.testing.assert_array_equal(stream.run(x, out=x), expected)
    wider = fastrnn.RNN(2, 1, rng=0).stream()
    with pytest.raises(ValueError, match="expected out to be apart from x"):
        wider.run(x, out=memory[:6].reshape(6, 1, 1))


@pytest.mark.parametrize("rows", [3, -4, 2**63, 2**100, [0, 5]], ids=str)
def test_a_reset_of_rows_that_there_are_not_is_refused(rows):
    stream = fastrnn.LSTM(2, 3, rng=0).stream(3)
    stream.run(np.ones((4, 3, 2), np.float32))
    before = stream.state
    with pytest.raises(IndexError):
        stream.reset(rows)
    np.testing.assert_array_equal(stream.state, before)


@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_nothing_is_allocated_but_the_output(kind):
    """NumPy reports its arrays to tracemalloc; the kernels have no way to allocate."""
    layer = kind(8, 24, 2, rng=0)
    stream = layer.stream(3)
    x, ids = np.ones((500, 3, 8), np.float32), np.ones((500, 3), np.int64)
    out, active = np.empty((500, 3, 24), np.float32), np.random.default_rng(0).random((500, 3)) < 0.5

    def calls(with_out):
        y, row = (out, out[0]) if with_out else (None, None)
        stream.run(x, y)
        stream.run(ids, y, active)
        for _ in range(50):
            stream.step(first, row)
            stream.step(first_ids, row, active_row)

    first, first_ids, active_row = x[0], ids[0], active[0]
    for with_out, limit in ((True, 1000), (False, out.nbytes + 1000)):
        calls(with_out)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            calls(with_out)
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak - before < limit
        assert now - before < 1000


def test_state_is_a_copy_and_can_be_set_and_reset():
    layer = fastrnn.LSTM(3, 5, 2, rng=0)
    stream = layer.stream(4)
    x = np.random.default_rng(0).standard_normal((6, 4, 3), dtype=np.float32)
    assert all(not array.any() for array in stream.state)
    stream.run(x)
    h, c = state = stream.state
    assert h.shape == c.shape == (2, 4, 5)
    y = stream.run(x)
    assert not np.array_equal(stream.state[0], h)
    stream.state = state
    np.testing.assert_array_equal(stream.run(x), y)

    stream.state = state
    stream.reset(1)
    stream.reset([2])
    stream.reset(np.array([False, False, False, True]))
    for array, was in zip(stream.state, state, strict=True):
        np.testing.assert_array_equal(array[:, 0], was[:, 0])
        assert not array[:, 1:].any()
    stream.reset()
    assert all(not array.any() for array in stream.state)
    with pytest.raises(IndexError):
        stream.reset(4)


@pytest.mark.parametrize("batch", [2**48, 2**55, 2**61, 2**62, 2**63 - 1, 2**64, 2**70])
@pytest.mark.parametrize(("kind", "size"), [(fastrnn.RNN, 1), (fastrnn.GRU, 8), (fastrnn.LSTM, 1)])
def test_more_rows_than_can_be_addressed_are_refused(kind, size, batch):
    with pytest.raises(ValueError, match=rf"expected batch <.*, got {batch}"):
        kind(size, size, rng=0).stream(batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1), (8, 8), (1 << 20, 2)])
def test_more_rows_than_fit_in_memory_are_a_memory_error(sizes, dtype):
    layer = fastrnn.GRU(*sizes, dtype=dtype, rng=0)
    with pytest.raises(ValueError, match="expected batch <= ") as refused:
        layer.stream(2**62)
    most = int(str(refused.value).split(",")[0].split()[-1])
    with limited_memory(), pytest.raises(MemoryError, match="no memory"):
        layer.stream(most)


@contextmanager
def limited_memory():
    """Of 16 GiB of address space."""
    resource = pytest.importorskip("resource", reason="memory cannot be limited on this system")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, fastrnn.Stream.copy])
def test_copies_go_their_own_way(how):
    layer = fastrnn.GRU(3, 5, 2, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 1, 3), dtype=np.float32)
    stream = layer.stream()
    stream.run(x)
    other = how(stream)
    layer.params["weight_hh_l0"] *= 2  # seen by neither
    assert_equal(other.state, stream.state)
    y = stream.run(x)
    assert not np.array_equal(other.state, stream.state)
    del stream
    np.testing.assert_array_equal(other.run(x), y)


def test_weights_are_those_of_the_making_until_refresh():
    layer = fastrnn.RNN(3, 5, rng=0)
    x = np.ones((1, 3), np.float32)
    stream, new = layer.stream(), None
    y = layer.stream().step(x)
    layer.params["weight_ih_l0"] *= 2
    np.testing.assert_array_equal(stream.step(x), y)
    stream.reset()
    stream.refresh()
    new = stream.step(x)
    np.testing.assert_array_equal(new, layer.stream().step(x))
    assert not np.array_equal(new, y)


@pytest.mark.parametrize(
    "call", [lambda s: s.run(np.ones((3, 3), np.float32)), fastrnn.Stream.refresh, fastrnn.Stream.copy]
)
def test_a_stream_that_takes_new_weights_serves_nobody_else_meanwhile(call, monkeypatch):
    layer = fastrnn.GRU(3, 5, rng=0)
    layer.compress("int8")
    stream, refused, isfinite = layer.stream(), [], np.isfinite

    def another_call(array):  # as a thread might make, while the weights are looked at
        with pytest.raises(RuntimeError, match="one call of a stream at a time"):
            call(stream)
        refused.append(True)
        return isfinite(array)

    monkeypatch.setattr(np, "isfinite", another_call)
    stream.refresh()
    monkeypatch.undo()
    assert refused
    call(stream)


def test_two_threads_with_a_stream_each():
    layer = fastrnn.LSTM(64, 64, rng=0)
    blocks = np.random.default_rng(0).standard_normal((2, 5000, 64), dtype=np.float32)
    expected = [layer.stream().run(block) for block in blocks]
    found = [None, None]

    def work(i):
        stream, y = layer.stream(), np.empty((5000, 64), np.float32)
        for t in range(0, 1000):
            stream.step(blocks[i, t], y[t])
        stream.run(blocks[i, 1000:], y[1000:])
        found[i] = y

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_a_second_call_of_the_same_stream_is_refused_while_one_runs():
    stream = fastrnn.LSTM(64, 256, rng=0).stream()
    block = np.zeros((20000, 64), np.float32)
    thread = threading.Thread(target=stream.run, args=(block,))
    thread.start()
    time.sleep(0.02)  # the block takes some 0.3 s
    with pytest.raises(RuntimeError, match="one call of a stream at a time"):
        stream.step(block[0])
    thread.join()
    stream.step(block[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.step(np.zeros((2, 3))), TypeError, "expected x of dtype float32, or of an integer dtype, got"),
        (lambda s: s.step(np.zeros((2, 3), bool)), TypeError, "got bool"),
        (lambda s: s.step(np.zeros((2, 4), "f4")), ValueError, r"expected x of shape \(2, 3\), got \(2, 4\)"),
        (lambda s: s.step(np.zeros((1, 3), "f4")), ValueError, r"expected x of shape \(2, 3\), got \(1, 3\)"),
        (lambda s: s.step(np.zeros(3, "f4")), ValueError, r"got \(3,\)"),
        (lambda s: s.step(np.float32(0)), ValueError, r"got \(\)"),
        (lambda s: s.run(np.zeros((2, 3), "f4")), ValueError, r"expected x of shape \(T, 2, 3\), got \(2, 3\)"),
        (lambda s: s.run(np.zeros((4, 1, 3), "f4")), ValueError, r"got \(4, 1, 3\)"),
        (lambda s: s.run(np.zeros((1, 4, 2, 3), "f4")), ValueError, r"got \(1, 4, 2, 3\)"),
        (lambda s: s.step(1), ValueError, r"expected integer x of shape \(2\), got \(\)"),
        (lambda s: s.step([1, 3]), ValueError, "expected integer x from 0 to 2, got 1 to 3"),
        (lambda s: s.run([[0, 0], [-1, 2]]), ValueError, "got -1 to 2"),
        (lambda s: s.step([0, 1], [0]), TypeError, "expected out to be an array, got list"),
        (lambda s: s.step([0, 1], np.zeros((2, 5))), TypeError, "expected out of dtype float32, got float64"),
        (lambda s: s.step([0, 1], np.zeros((2, 4), "f4")), ValueError, r"expected out of shape \(2, 5\), got \(2, 4\)"),
        (lambda s: s.step([0, 1], np.zeros((5, 2), "f4").T), ValueError, "expected out to be C-contiguous"),
        (lambda s: s.step([0, 1], np.broadcast_to(np.float32(0), (2, 5))), ValueError, "expected out to be C-contig"),
        (lambda s: s.step([0, 1], active=[0, 1]), TypeError, "expected active of dtype bool, got int64"),
        (lambda s: s.step([0, 1], active=[True]), ValueError, r"expected active of shape \(2,\), got \(1,\)"),
        (lambda s: s.run([[0, 1]], active=[True, True]), ValueError, r"expected active of shape \(1, 2\), got \(2,\)"),
        (lambda s: setattr(s, "state", np.zeros((1, 3, 5), "f4")), ValueError, r"expected state of shape \(1, 2, 5\)"),
        (lambda s: setattr(s, "state", np.zeros((1, 2, 5))), TypeError, "expected state of dtype float32"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_change_nothing(call, error, message):
    stream = fastrnn.GRU(3, 5, rng=0).stream(2)
    stream.step([0, 1])
    before = stream.state
    with pytest.raises(error, match=message):
        call(stream)
    np.testing.assert_array_equal(stream.state, before)


def test_layers_that_need_the_end_are_refused():
    for options in ({"bidirectional": True}, {"reverse": True}):
        with pytest.raises(ValueError, match="a stream has no end to start at"):
            fastrnn.GRU(3, 4, **options).stream()
    for batch, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="expected batch"):
            fastrnn.GRU(3, 4).stream(batch)


# ---------------------------------------------------------------- compressed weights


@pytest.mark.parametrize("weights", COMPRESSED)
@pytest.mark.parametrize("cell", CELLS)
def test_compressed_stream_is_the_layer_with_the_weights_that_it_holds(cell, weights, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(6)
    for I, H, B, one_hot in ((5, 19, 1, False), (5, 19, 1, True), (1, 70, 7, False), (7, 33, 11, True)):
        layer = kind(I, H, 2, **options, rng=rng)
        half = layer.params["weight_ih_l0"].view(np.uint32)
        half[:, ::2] = half[:, ::2] & 0xFFFF0000 | 0x8000  # ties
        layer.compress(weights)
        x, state, _ = case(layer, rng, T=STEPS, B=B, one_hot=one_hot)
        stream, whole = layer.stream(B), layer.stream(B)
        stream.state = whole.state = state
        y = in_pieces(stream, x)
        np.testing.assert_array_equal(y, whole.run(x))
        expected = with_stored_weights(layer, kind, options)(x, state)[0]
        np.testing.assert_allclose(y, expected, atol=2e-5, rtol=2e-5)
        assert np.abs(y - expected).max() < 0.1 * np.abs(y - layer(x, state)[0]).max()


def weights_in_use(layer):
    """W_ih (H, I) as a stream multiplies by it: of an RNN with relu, without bias, for each x = +-1 of one input."""
    found = []
    for unit in (np.eye(layer.input_size, dtype=np.float32), -np.eye(layer.input_size, dtype=np.float32)):
        stream = layer.stream(layer.input_size)
        found.append(stream.step(unit))
    return (found[0] - found[1]).T


def test_weights_are_within_the_stated_error(instructions):
    rng = np.random.default_rng(0)
    layer = fastrnn.RNN(45, 40, nonlinearity="relu", bias=False, rng=0)
    w = rng.standard_normal((40, 45)).astype(np.float32)
    w[:10] *= np.exp2(rng.integers(-120, 120, (10, 45))).astype(np.float32)
    w[10:20] = np.nextafter(np.exp2(rng.integers(-20, 20, (10, 45))), -np.inf, dtype=np.float32)  # below powers of two
    w[20], w[21] = 0, np.finfo(np.float32).max / 2
    w[22:24] *= rng.random((2, 45)) < 0.3  # zeros beside others
    w[24] = 1e-42  # subnormal
    layer.params["weight_ih_l0"] = w
    magnitude = np.abs(w.astype(float))
    for weights, bound in (
        ("bfloat16", np.maximum(2.0**-8 * magnitude, 2.0**-125)),
        ("int8", np.maximum(magnitude.max(axis=1, keepdims=True) / 254 * (1 + 1e-5), 2.0**-100)),
    ):
        layer.compress(weights)
        found = weights_in_use(layer)
        assert (np.abs(found - w.astype(float)) <= bound).all()
        expected = as_int8(w) if weights == "int8" else as_bfloat16(w)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)
        ids = np.arange(45)  # the weights as they are where they are not negative
        np.testing.assert_allclose(layer.stream(45).step(ids).T, np.maximum(expected, 0), rtol=1e-6, atol=1e-37)


def test_weights_that_bfloat16_holds_stay_what_they_are():
    layer = fastrnn.RNN(4, 5, nonlinearity="relu", bias=False, rng=0)
    ties = np.array([1, 0, 1.00390625, 1.01171875], np.float32)  # half a step above 1, and above the odd one after it
    layer.params["weight_ih_l0"] = np.tile(ties, (5, 1))
    layer.compress("bfloat16")
    found = weights_in_use(layer)
    np.testing.assert_array_equal(found[:, ::2], [[1, 1]] * 5)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-37)
    assert (np.abs(found[:, 3] - ties[3]) <= 2.0**-8).all()


@pytest.mark.parametrize("size", [1, 4, 50, 1003, 1 << 17])
def test_sums_of_int8_are_as_good_as_those_of_float32(size, instructions):
    rng = np.random.default_rng(size)
    layer = fastrnn.RNN(size, 3, nonlinearity="relu", bias=False, rng=0)
    layer.params["weight_ih_l0"] = w = rng.standard_normal((3, size)).astype(np.float32)
    w[2] = 1  # all q are 127: the largest sums
    layer.params["weight_ih_l0"][...] = w
    layer.compress("int8")
    x = (rng.standard_normal((20, size)) * np.exp(5 * rng.standard_normal((20, 1)))).astype(np.float32)
    x[0], x[1], x[2] = 0, 1, -1
    stored = as_int8(w).astype(float)
    stream, negative = layer.stream(20), layer.stream(20)
    found = stream.step(x).astype(float) - negative.step(-x)
    bound = np.abs(x).max(axis=1, keepdims=True) * np.abs(stored).sum(axis=1) * 2.0**-22
    assert (np.abs(found - x.astype(float) @ stored.T) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden_by_int8(value, instructions):
    layer = fastrnn.RNN(9, 20, rng=0)
    layer.compress("int8")
    x = np.ones((3, 9), np.float32)
    expected = layer.stream(3).step(x)
    x[1, 4] = value
    stream = layer.stream(3)
    y = stream.step(x)
    np.testing.assert_array_equal(y[::2], expected[::2])
    exact = np.sign(value * layer.params["weight_ih_l0"][:, 4])  # as a sum in float32 has it
    assert np.isnan(y[1]).all() or np.array_equal(y[1], exact)
    assert np.isnan(y[1]).all() or not np.isnan(value)
    state = stream.state
    state[0, 2, 3] = np.nan
    stream.state = state
    assert np.isnan(stream.step(np.ones((3, 9), np.float32))[2]).all()


@pytest.mark.parametrize("weights", COMPRESSED)
def test_compressing_leaves_calls_training_and_older_streams_alone(weights):
    layer = fastrnn.GRU(6, 16, rng=0)
    x = np.random.default_rng(0).standard_normal((9, 1, 6), dtype=np.float32)
    stream, y, params = layer.stream(), layer(x)[0], layer.state_dict()
    before = layer.stream().run(x)
    layer.compress(weights)
    np.testing.assert_array_equal(layer(x)[0], y)
    assert all(np.array_equal(array, params[name]) for name, array in layer.state_dict().items())
    np.testing.assert_array_equal(stream.run(x), before)
    stream.reset()
    stream.refresh()
    compressed = stream.run(x)
    assert not np.array_equal(compressed, before)
    np.testing.assert_array_equal(layer.stream().run(x), compressed)
    other = stream.copy()
    layer.params["weight_hh_l0"] *= 2  # seen by neither
    np.testing.assert_array_equal(other.run(x), stream.run(x))
    layer.params["weight_hh_l0"] /= 2
    layer.compress("float32")
    np.testing.assert_array_equal(layer.stream().run(x), before)


@pytest.mark.parametrize("weights", COMPRESSED)
def test_what_compressed_weights_cannot_hold_is_refused(weights):
    layer = fastrnn.GRU(6, 16, 2, rng=0)
    with pytest.raises(ValueError, match="expected weights 'float32', 'bfloat16' or 'int8', got 'int4'"):
        layer.compress("int4")
    with pytest.raises(TypeError, match=f"expected a float32 layer, got float64: {weights} would not keep"):
        fastrnn.GRU(6, 16, dtype="float64").compress(weights)
    layer.compress(weights)
    stream = layer.stream()
    y = stream.step(3)
    for value in (np.nan, np.inf):
        layer.params["weight_hh_l1"][7, 5] = value
        for call in (layer.stream, stream.refresh):
            with pytest.raises(ValueError, match=f"expected finite weights for {weights}, got .* in weight_hh_l1"):
                call()
    stream.reset()
    np.testing.assert_array_equal(stream.step(3), y)
    with pytest.raises(ValueError, match="expected at most 131072 inputs and outputs for int8, got 131073"):
        fastrnn.RNN(131073, 2).compress("int8")


# ---------------------------------------------------------------- a language model's


@pytest.fixture(scope="module")
def model():
    model = fastrnn.LanguageModel("gru", 32, 2, rng=0)
    model.fit("a rolling stone gathers no moss. " * 100, steps=60, lr=1e-2, progress=False)
    return model


def test_probabilities_are_those_of_layer_and_head(model):
    text = "no moss. a stone"
    ids = np.array([model.vocabulary.index(character) for character in text])
    logits = model.head(model.layer(ids[:, None])[0])[:, 0]
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    stream = model.stream()
    p = stream.run(text)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, expected, atol=1e-6)
    stream.reset()
    out = np.empty(len(model.vocabulary), np.float32)
    for character, row in zip(text, p, strict=True):
        assert stream.step(character, out) is out
        np.testing.assert_array_equal(out, row)
    other = model.stream()
    other.feed(text)
    np.testing.assert_array_equal(other.state, stream.state)


def test_stream_writes_what_generate_writes_and_goes_on(model):
    stream = model.stream()
    stream.feed("a ro")
    branch = stream.copy()
    whole = model.generate("a ro", 40, rng=0)
    assert stream.write(40, rng=0) == whole
    rng = np.random.default_rng(0)
    assert branch.write(15, rng=rng) + branch.write(25, rng=rng) == whole
    branch.state = model.stream().state
    branch.feed("a ro")
    assert branch.write(5, temperature=0) == model.generate("a ro", 5, temperature=0)


def test_text_is_what_layer_and_head_would_draw_character_by_character(model):
    for temperature in (0, 0.7, 2.0):
        rng, state, written = np.random.default_rng(5), None, ""
        x = np.array([model.vocabulary.index(character) for character in "a st"])[:, None]
        for _ in range(60):
            y, state = model.layer(x, state)
            logits = model.head(y[-1, 0]).astype(np.float64)
            if temperature:
                sums = np.cumsum(np.exp((logits - logits.max()) / temperature))
                index = np.searchsorted(sums, rng.random() * sums[-1], side="right")
            else:
                index = logits.argmax()
            written += model.vocabulary[index]
            x = np.array([[index]])
        assert model.generate("a st", 60, temperature=temperature, rng=5) == written


def test_bad_characters_are_refused(model):
    stream = model.stream()
    stream.step("a")
    before = stream.state
    for call in (stream.step, stream.run, stream.feed):
        with pytest.raises(ValueError, match="has not learned 'Z'"):
            call("Z")
        with pytest.raises(TypeError, match="to be a str"):
            call(3)
    with pytest.raises(ValueError, match="expected one character, got 2"):
        stream.step("a ")
    with pytest.raises(ValueError, match="expected out of shape"):
        stream.run("a ", np.empty((1, 3), np.float32))
    with pytest.raises(ValueError, match="C-contiguous"):
        stream.run("a ", np.empty((len(model.vocabulary), 2), np.float32).T)
    np.testing.assert_array_equal(stream.state, before)
    with pytest.raises(RuntimeError, match="call fit first"):
        fastrnn.LanguageModel("rnn", 4).stream()


@pytest.mark.parametrize(
    ("layer", "batch", "error", "message"),
    [
        (fastrnn.Linear(3, 4), 1, TypeError, "expected an RNN, GRU or LSTM to make a stream of, got Linear"),
        (fastrnn.GRU(3, 4, reverse=True), 1, ValueError, "got reverse=True"),
        (fastrnn.GRU(3, 4, bidirectional=True), 1, ValueError, "got bidirectional=True"),
        (fastrnn.GRU(3, 4), 0, ValueError, "expected batch >= 1, got 0"),
        (fastrnn.GRU(3, 4), 1 << 60, ValueError, "expected batch <= "),
        (fastrnn.GRU(3, 4), "2", TypeError, "expected batch to be an integer"),
    ],
)
def test_the_class_checks_what_the_method_does(layer, batch, error, message):
    with pytest.raises(error, match=message):
        fastrnn.Stream(layer, batch)


def test_a_stream_is_set_up_once_and_before_it_is_used():
    stream = fastrnn.LSTM(3, 4, rng=0).stream()
    y = stream.step(np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match="expected a new stream"):
        stream.__init__(fastrnn.LSTM(30, 40, num_layers=3))
    assert not np.array_equal(stream.step(np.ones(3, np.float32)), y)
    empty = fastrnn.Stream.__new__(fastrnn.Stream)
    for use in (
        lambda: empty.step(np.empty(0, np.int64)),
        lambda: empty.run(np.empty((2, 0), np.int64)),
        empty.copy,
        empty.reset,
        lambda: empty._set_state(()),
        lambda: empty._repack(None),
    ):
        with pytest.raises(RuntimeError, match=r"expected a stream that `layer\.stream\(\)` made"):
            use()


@pytest.mark.parametrize("other", [{"num_layers": 2}, {"dtype": "float64"}, {"layer_norm": True}])
def test_weights_of_another_stack_are_refused(other):
    layer = fastrnn.GRU(3, 4, rng=0)
    stream = layer.stream()
    x = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="expected packed weights of the stream's own layer, got others"):
        stream._repack(lambda: fastrnn.GRU(3, 4, **other).stream().packed)
    np.testing.assert_array_equal(stream.run(x), layer.stream().run(x))
