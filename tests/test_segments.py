"""Back-propagation through segments that run forward again: the same bits, in a part of the memory."""

from __future__ import annotations

import re
import tracemalloc

import fastrnn
import numpy as np
import pytest
from fastrnn import _core

from test_layers import CELLS, STACKS, as_tuple, case

FEW_ROWS, MANY_ROWS = 1, 19  # below and above a tile: with and without input products in advance


def passes(layer, x, state, keywords, **how):
    """Everything that a forward and a backward pass give, in one list of arrays."""
    rng = np.random.default_rng(5)
    layer.zero_grad()
    layer._rng = np.random.default_rng(6)  # of dropout
    y, final, tape = layer.forward(x, state, **keywords, **how)
    dy = rng.normal(size=y.shape).astype(layer.dtype)
    dfinal = tuple(rng.normal(size=s.shape).astype(layer.dtype) for s in as_tuple(final))
    y_before = y.copy()
    dx, dinitial = layer.backward(tape, dy, dfinal if len(dfinal) == 2 else dfinal[0])
    np.testing.assert_array_equal(y, y_before)
    gradients = [g.copy() for g in layer.grads.values()]
    return [y_before, *as_tuple(final), *([] if dx is None else [dx]), *as_tuple(dinitial), *gradients], tape


def assert_same_bits(layer, x, state, keywords, **how):
    (plain, _), (segmented, tape) = passes(layer, x, state, keywords), passes(layer, x, state, keywords, **how)
    for ours, theirs in zip(segmented, plain, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    return tape


def segments(tape):
    return [0 if scan.begin is None else len(scan.begin) - 1 for layer in tape.scans for scan in layer]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_segments_give_the_same_bits(cell, stack, dtype):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(len(cell) + len(stack))
    dropout = 0.4 if STACKS[stack].get("num_layers", 1) > 1 else 0
    layer = kind(4, 7, **options, **STACKS[stack], dropout=dropout, dtype=dtype, rng=rng)
    for B in (FEW_ROWS, MANY_ROWS):
        for variant in ({}, {"ragged": True, "reset": True}, {"ragged": True, "one_hot": True}):
            for count in (1, 3, 1000):
                assert_same_bits(layer, *case(layer, rng, T=30, B=B, **variant), checkpoint=count)


@pytest.mark.parametrize("B", [1, 3, 40])
@pytest.mark.parametrize("cell", CELLS)
def test_segments_that_cut_chunks_of_products_give_the_same_bits(cell, B):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(B)
    layer = kind(9, 40, **options, bidirectional=True, rng=rng)
    for ragged in (False, True):
        for checkpoint in ("auto", 2, 7):
            tape = assert_same_bits(layer, *case(layer, rng, T=8000 // B, B=B, ragged=ragged), checkpoint=checkpoint)
            assert cell in ("rnn tanh", "rnn relu") or checkpoint == "auto" or min(segments(tape)) > 1


@pytest.mark.parametrize("cell", CELLS)
def test_segments_begin_where_chunks_of_products_do(cell):
    """BLAS rounds a product of few rows otherwise than one of many, such as the last chunk here and those before it."""
    kind, options = CELLS[cell]
    layer = kind(64, 40, **options, rng=0)
    rows = (256 << 10) // (4 * len(layer.params["weight_ih_l0"]))  # PRODUCT_CHUNK
    for T in (2 * rows + 2, 2 * rows + 5):
        assert_same_bits(layer, *case(layer, np.random.default_rng(0), T=T, B=1), checkpoint=4)


@pytest.mark.parametrize("name", _core.instruction_sets())
@pytest.mark.parametrize("cell", CELLS)
def test_segments_give_the_same_bits_in_every_instruction_set(cell, name):
    kind, options = CELLS[cell]
    used = _core.instruction_set()
    rng = np.random.default_rng(3)
    try:
        _core.use_instruction_set(name)
        layer = kind(6, 21, **options, bidirectional=True, rng=rng)
        for B in (1, 5, 11):
            assert_same_bits(layer, *case(layer, rng, T=900, B=B, ragged=True, reset=True), checkpoint=5)
    finally:
        _core.use_instruction_set(used)


def held_memory(layer, x, dy, **how):
    """Bytes that a forward and a backward pass take at most, without y and dx."""
    tracemalloc.start()
    y, _, tape = layer.forward(x, **how)
    dx, _ = layer.backward(tape, dy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - y.nbytes - dx.nbytes


@pytest.mark.parametrize("cell", ["gru", "gru reset before", "lstm", "lstm peephole", "rnn softsign, clip"])
def test_memory_of_long_sequences_is_a_twentieth(cell):
    kind, options = CELLS[cell]
    layer = kind(64, 64, **options, rng=0)
    x = np.random.default_rng(0).normal(size=(100_000, 1, 64)).astype(np.float32)
    dy = np.ones_like(x)
    plain, segmented = held_memory(layer, x, dy), held_memory(layer, x, dy, checkpoint="auto")
    assert segmented < 0.05 * plain + 8 * len(x)  # 8: where each step begins


def test_vanilla_rnn_needs_no_tape_in_any_case():
    layer = fastrnn.RNN(8, 16, rng=0)
    *_, tape = layer.forward(np.ones((50, 2, 8), np.float32))
    assert tape.scans[0][0].tape.nbytes == 0


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.15])
def test_memory_limit_is_kept(cell, share):
    kind, options = CELLS[cell]
    layer = kind(8, 16, **options, rng=0)
    x = np.random.default_rng(0).normal(size=(20_000, 1, 8)).astype(np.float32)
    dy = np.ones((20_000, 1, 16), np.float32)
    plain = held_memory(layer, x, dy)
    assert held_memory(layer, x, dy, memory_limit=int(share * plain)) < share * plain + 8 * len(x) + 20_000


def test_memory_limit_is_that_of_all_layers_directions_and_walks_together():
    layer = fastrnn.LSTM(64, 64, 2, bidirectional=True, rng=0)
    tape = layer.forward(np.ones((500, 40, 64), np.float32), memory_limit=10**7)[2]
    scans = [scan for layer in tape.scans for scan in layer]
    assert len(scans) > 4
    assert sum(scan.memory(len(scan.begin) - 1) for scan in scans) <= 10**7


def test_memory_limit_that_fits_keeps_the_whole_tape():
    layer = fastrnn.GRU(8, 16, rng=0)
    x = np.ones((5000, 1, 8), np.float32)
    tape_bytes = 5000 * 4 * 16 * 4
    assert segments(layer.forward(x, memory_limit=tape_bytes)[2]) == [0]
    assert segments(layer.forward(x, memory_limit=tape_bytes - 1)[2]) == [2]


def test_memory_limit_below_what_is_needed_says_what_would_do():
    layer = fastrnn.LSTM(8, 16, rng=0)
    x = np.ones((5000, 1, 8), np.float32)
    with pytest.raises(ValueError, match=r"^expected memory_limit of at least (\d+) bytes, got 1000$") as caught:
        layer.forward(x, memory_limit=1000)
    needed = int(re.search(r"\d+", str(caught.value))[0])
    layer.forward(x, memory_limit=needed)
    with pytest.raises(ValueError, match="expected memory_limit"):
        layer.forward(x, memory_limit=needed - 1)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"checkpoint": 0}, ValueError, "expected checkpoint >= 1, got 0"),
        ({"checkpoint": 2.0}, TypeError, "expected checkpoint to be an integer, got 2.0"),
        ({"checkpoint": "all"}, ValueError, "expected checkpoint to be a number of segments, 'auto' or None"),
        ({"memory_limit": -1}, ValueError, "expected memory_limit >= 1, got -1"),
        ({"checkpoint": 3, "memory_limit": 10**6}, ValueError, "expected checkpoint or memory_limit, got both"),
    ],
)
def test_wrong_arguments_are_told(how, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fastrnn.GRU(2, 3).forward(np.ones((4, 1, 2), np.float32), **how)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_of_every_step_are_the_same(cell):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(4)
    layer = kind(4, 6, 2, **options, bidirectional=True, rng=rng)
    x, state, keywords = case(layer, rng, T=40, B=3, ragged=True, reset=True)
    plain, segmented = (layer.forward(x, state, **keywords, checkpoint=count)[2] for count in (None, 4))
    for k in (0, 1):
        for d in (0, 1):
            theirs = plain.gates(k, d)
            for name, ours in segmented.gates(k, d).items():
                np.testing.assert_array_equal(ours, theirs[name])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)])
def test_empty_and_single_steps_may_be_segmented(shape):
    layer = fastrnn.LSTM(2, 3, bidirectional=True, rng=0)
    x = np.ones((*shape, 2), np.float32)
    lengths = np.zeros(shape[1], np.int64)
    for how in ({"checkpoint": "auto"}, {"checkpoint": 2}, {"memory_limit": 10**6}):
        for keywords in ({}, {"lengths": lengths}):
            tape = assert_same_bits(layer, x, None, keywords, **how)
            assert tape.gates()["f"].shape == (*shape, 3)


def test_tape_in_segments_may_be_used_again():
    layer = fastrnn.LSTM(4, 6, rng=0)
    x = np.random.default_rng(0).normal(size=(50, 2, 4)).astype(np.float32)
    y, _, tape = layer.forward(x, checkpoint=5)
    first, _ = layer.backward(tape, np.ones_like(y))
    second, _ = layer.backward(tape, np.ones_like(y))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_threads_do_not_change_the_bits_of_segments(cell):
    kind, options = CELLS[cell]
    layer = kind(32, 64, **options, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(200, 64, 32)).astype(np.float32)
    count = fastrnn.get_num_threads()
    try:
        for n in (1, 2):
            fastrnn.set_num_threads(n)
            tape = assert_same_bits(layer, x, None, {}, checkpoint=3)
        assert len(tape.scans[0]) > 2
    finally:
        fastrnn.set_num_threads(count)
