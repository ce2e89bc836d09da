"""Back-propagation through segments that run forward again: the same bits, in a part of the memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.engine import parallel

from layer_cases import CELLS, DROPOUTS, STACKS, case
from same_bits import assert_same_bits_in_segments, passes, segments

FEW_ROWS, MANY_ROWS = 1, 19  # below and above a tile: with and without input products in advance


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
                assert_same_bits_in_segments(layer, *case(layer, rng, T=30, B=B, **variant), checkpoint=count)


@pytest.mark.parametrize("B", [1, 3, 40])
@pytest.mark.parametrize("cell", CELLS)
def test_segments_that_cut_chunks_of_products_give_the_same_bits(cell, B):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(B)
    layer = kind(9, 40, **options, bidirectional=True, rng=rng)
    for ragged in (False, True):
        for checkpoint in ("auto", 2, 7):
            tape = assert_same_bits_in_segments(
                layer, *case(layer, rng, T=8000 // B, B=B, ragged=ragged), checkpoint=checkpoint
            )
            assert cell in ("rnn tanh", "rnn relu") or checkpoint == "auto" or min(segments(tape)) > 1


@pytest.mark.parametrize("cell", CELLS)
def test_segments_begin_where_chunks_of_products_do(cell):
    """BLAS rounds a product of few rows otherwise than one of many, such as the last chunk here and those before it."""
    kind, options = CELLS[cell]
    layer = kind(64, 40, **options, rng=0)
    rows = layer.forward(np.ones((5000, 1, 64), np.float32))[2].layer_passes[0][0].chunk_rows
    assert rows < 5000
    for T in (2 * rows + 2, 2 * rows + 5):
        assert_same_bits_in_segments(layer, *case(layer, np.random.default_rng(0), T=T, B=1), checkpoint=4)


# For these, a segment goes through all layers. 3,800 rows of 60 units are 4 to 30 chunks of steps, in a ragged
# batch half as many
STACKED = {
    "plain": ({}, {}),
    "reversed": ({"reverse": True}, {}),
    "ragged, reset": ({}, {"ragged": True, "reset": True}),
    "ragged, reversed": ({"reverse": True, "batch_first": True}, {"ragged": True}),
    "one-hot": ({}, {"ragged": True, "one_hot": True}),
    "dropout": ({"dropout": 0.4}, {}),
    "dropout, ragged, reversed": ({"dropout": 0.4, "reverse": True}, {"ragged": True, "reset": True}),
    "all dropouts": ({"dropout": 0.3, **DROPOUTS}, {"ragged": True}),
    "all dropouts, reversed": ({"dropout": 0.3, "reverse": True, **DROPOUTS}, {"ragged": True, "reset": True}),
    "zoneout": ({"zoneout": 0.2}, {"ragged": True, "reset": True}),
    "zoneout, reversed": ({"zoneout": 0.3, "dropout": 0.2, "reverse": True}, {}),
}


def stack_case(layer, rng, B, **variant):
    """As `case`, of 3,800 rows; with batch_first, x of it."""
    x, state, keywords = case(layer, rng, T=3800 // B, B=B, **variant)
    return x.swapaxes(0, 1) if layer.batch_first else x, state, keywords


@pytest.mark.parametrize(
    ("stack", "dtype"),
    [(stack, "float32") for stack in STACKED]
    + [(stack, "float64") for stack in ("ragged, reset", "all dropouts, reversed")],
)
@pytest.mark.parametrize("cell", CELLS)
def test_stacks_whose_segments_go_through_all_layers_give_the_same_bits(cell, stack, dtype):
    (kind, options), (own, variant) = CELLS[cell], STACKED[stack]
    rng = np.random.default_rng(len(cell) + len(stack))
    for B, num_layers, count in ((FEW_ROWS, 2, 1000), (MANY_ROWS, 3, 3)):
        layer = kind(5, 60, num_layers, **options, **own, dtype=dtype, rng=rng)
        tape = assert_same_bits_in_segments(layer, *stack_case(layer, rng, B, **variant), checkpoint=count)
        assert tape.is_stacked
        assert min(segments(tape)) > 1


@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "lstm"])
def test_padding_of_a_ragged_stack_is_never_what_memory_held_before(cell):
    """Masks are multiplied onto it, too: 1e38 there would overflow, which is a warning, and a warning an error."""
    kind, options = CELLS[cell]
    layer = kind(5, 60, 3, **options, dropout=0.5, input_dropout=0.5, rng=0)
    x = np.random.default_rng(0).normal(size=(1500, 12, 5)).astype(np.float32)
    lengths = np.array([1500, *range(0, 1100, 100)])
    for count in (2, 40):
        arguments = x, None, {"lengths": lengths}
        plain, _ = passes(layer, *arguments)
        held = [_core.new_array((size,), np.float32) for size in range(1 << 14, 1 << 18, 1 << 12) for _ in range(3)]
        for array in held:
            array[...] = 3e38
        del array, held
        segmented, tape = passes(layer, *arguments, checkpoint=count)
        assert min(segments(tape)) > 1
        for ours, theirs in zip(segmented, plain, strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_input_dropout_of_one_layer_is_that_of_the_plain_way():
    layer = fastrnn.LSTM(5, 60, input_dropout=0.3, zoneout=0.1, zoneout_cell=0.2, rng=0)
    for B in (FEW_ROWS, MANY_ROWS):
        tape = assert_same_bits_in_segments(
            layer, *stack_case(layer, np.random.default_rng(0), B, ragged=True), checkpoint=5
        )
        assert min(segments(tape)) > 1


@pytest.mark.parametrize("cell", CELLS)
def test_stacks_in_segments_give_the_same_bits_in_every_instruction_set(cell, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(3)
    layer = kind(6, 61, 2, **options, rng=rng)
    for B in (1, 5, 11):
        assert_same_bits_in_segments(layer, *stack_case(layer, rng, B, ragged=True, reset=True), checkpoint=5)


@pytest.mark.parametrize("cell", CELLS)
def test_segments_give_the_same_bits_in_every_instruction_set(cell, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(3)
    layer = kind(6, 21, **options, bidirectional=True, rng=rng)
    for B in (1, 5, 11):
        assert_same_bits_in_segments(layer, *case(layer, rng, T=900, B=B, ragged=True, reset=True), checkpoint=5)


def held_memory(layer, x, dy, **how):
    """Bytes that a forward and a backward pass take at most, without y and dx."""
    parallel.run([lambda: None] * 2)  # else the first pass on several threads makes them
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
    assert segmented < 0.05 * plain


RESIDENT = """
import argparse, sys
folder, cell, layers, way = sys.argv[1:]
sys.path.insert(0, folder)
from long_sequences import megabytes
print(megabytes(cell, way, argparse.Namespace(steps=100_000, batch=1, hidden=64, layers=int(layers), threads=1)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer takes memory of its own")
@pytest.mark.parametrize(("cell", "layers"), [("RNN, softsign", 1), ("RNN, tanh", 2)])
def test_resident_memory_of_the_smallest_tapes_is_a_twentieth_with_all_scratch(cell, layers):
    def resident(way):
        arguments = [str(Path(__file__).parents[1] / "benchmarks"), cell, str(layers), way]
        return float(subprocess.check_output([sys.executable, "-c", RESIDENT, *arguments]))

    assert resident("auto") < 0.05 * resident("tape")


@pytest.mark.parametrize("T", [2048, 100_000, 102_400, 102_401])
def test_segments_are_a_chunk_each_where_a_chunk_has_more_than_the_root_of_all_steps(T):
    layer = fastrnn.RNN(1, 64, nonlinearity="softsign", rng=0)  # 256 KiB of gradients are 1,024 rows
    tape = layer.forward(np.ones((T, 1, 1), np.float32), checkpoint="auto")[2]
    np.testing.assert_array_equal(tape.stacks[0][0].begin, [*range(0, T, 1024), T])


def test_segments_differ_by_a_chunk_at_most():
    layer = fastrnn.RNN(1, 64, nonlinearity="softsign", rng=0)
    tape = layer.forward(np.ones((30 * 1024, 1, 1), np.float32), checkpoint=7)[2]
    assert set(np.diff(tape.stacks[0][0].begin)) == {4 * 1024, 5 * 1024}


@pytest.mark.parametrize("dropouts", [{}, {"dropout": 0.3, "zoneout": 0.1, **DROPOUTS}], ids=["plain", "dropouts"])
@pytest.mark.parametrize("cell", ["rnn tanh", "rnn softsign, clip", "gru", "lstm"])
def test_memory_of_long_sequences_through_a_stack_is_a_twentieth(cell, dropouts):
    kind, options = CELLS[cell]
    layer = kind(64, 64, 2, **options, **dropouts, rng=0)
    x = np.random.default_rng(0).normal(size=(100_000, 1, 64)).astype(np.float32)
    dy = np.ones_like(x)
    plain, segmented = held_memory(layer, x, dy), held_memory(layer, x, dy, checkpoint="auto")
    assert segmented < 0.05 * plain


def test_vanilla_rnn_needs_no_tape_in_any_case():
    layer = fastrnn.RNN(8, 16, rng=0)
    *_, tape = layer.forward(np.ones((50, 2, 8), np.float32))
    assert tape.layer_passes[0][0].saved.nbytes == 0


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.15])
def test_memory_limit_is_kept(cell, share):
    kind, options = CELLS[cell]
    layer = kind(8, 16, **options, rng=0)
    x = np.random.default_rng(0).normal(size=(20_000, 1, 8)).astype(np.float32)
    dy = np.ones((20_000, 1, 16), np.float32)
    plain = held_memory(layer, x, dy)
    assert held_memory(layer, x, dy, memory_limit=int(share * plain)) < share * plain + 8 * len(x) + 25_000


def test_memory_limit_is_that_of_all_layers_directions_and_shards_together():
    layer = fastrnn.LSTM(64, 64, 2, bidirectional=True, rng=0)
    tape = layer.forward(np.ones((500, 40, 64), np.float32), memory_limit=10**7)[2]
    stacks = [stack for of_layer in tape.stacks for stack in of_layer]
    assert len(stacks) > 4
    assert sum(stack.memory(len(stack.begin) - 1) for stack in stacks) <= 10**7


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("dropouts", [{}, {"dropout": 0.3, "zoneout": 0.1, **DROPOUTS}], ids=["plain", "dropouts"])
@pytest.mark.parametrize("cell", ["rnn tanh", "lstm"])
def test_memory_limit_of_a_stack_covers_what_is_between_layers(cell, dropouts, share):
    kind, options = CELLS[cell]
    layer = kind(64, 64, 3, **options, **dropouts, rng=0)
    x = np.random.default_rng(0).normal(size=(20_000, 1, 64)).astype(np.float32)
    dy = np.ones_like(x)
    plain = held_memory(layer, x, dy)
    assert held_memory(layer, x, dy, memory_limit=int(share * plain)) < share * plain
    tape = layer.forward(x, memory_limit=int(2 * plain))[2]
    assert segments(tape) == [0, 0, 0]


def test_memory_limit_that_fits_keeps_the_whole_tape():
    layer = fastrnn.GRU(8, 16, rng=0)
    x = np.ones((5000, 1, 8), np.float32)
    tape_bytes = 5000 * 4 * 16 * 4
    assert segments(layer.forward(x, memory_limit=tape_bytes)[2]) == [0]
    assert segments(layer.forward(x, memory_limit=tape_bytes - 1)[2])[0] > 1


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


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gates_of_every_layer_of_a_stack_are_the_same(cell, reverse):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(4)
    layer = kind(4, 60, 3, **options, reverse=reverse, dropout=0.2, rng=rng)
    x, state, keywords = stack_case(layer, rng, 3, ragged=True, reset=True)
    tapes = []
    for count in (None, 4):
        layer._rng = np.random.default_rng(6)
        tapes.append(layer.forward(x, state, **keywords, checkpoint=count)[2])
    for k in range(3):
        theirs = tapes[0].gates(k)
        for name, ours in tapes[1].gates(k).items():
            np.testing.assert_array_equal(ours, theirs[name])
    with pytest.raises(IndexError, match="expected a direction below 1, got 1"):
        tapes[1].gates(0, 1)


@pytest.mark.parametrize("count", [2**25, 2**40, 2**62])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_more_segments_than_steps_are_as_many_as_there_are_chunks(bidirectional, count):
    layer = fastrnn.GRU(4, 60, 2, bidirectional=bidirectional, rng=0)
    arguments = case(layer, np.random.default_rng(0), T=1900, B=2, ragged=True)
    of_steps = segments(assert_same_bits_in_segments(layer, *arguments, checkpoint=1900))
    tracemalloc.start()
    tape = assert_same_bits_in_segments(layer, *arguments, checkpoint=count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert segments(tape) == of_steps
    assert min(of_steps) > 1
    assert peak < 2**26  # bytes: nothing of the size that was asked for


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)])
def test_empty_and_single_steps_of_a_stack_may_be_segmented(shape, num_layers):
    layer = fastrnn.LSTM(2, 3, num_layers, dropout=0.3, zoneout=0.2, rng=0)
    x = np.ones((*shape, 2), np.float32)
    for how in ({"checkpoint": "auto"}, {"checkpoint": 2}, {"memory_limit": 10**6}):
        for keywords in ({}, {"lengths": np.zeros(shape[1], np.int64)}):
            assert_same_bits_in_segments(layer, x, None, keywords, **how)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)])
def test_empty_and_single_steps_may_be_segmented(shape):
    layer = fastrnn.LSTM(2, 3, bidirectional=True, rng=0)
    x = np.ones((*shape, 2), np.float32)
    lengths = np.zeros(shape[1], np.int64)
    for how in ({"checkpoint": "auto"}, {"checkpoint": 2}, {"memory_limit": 10**6}):
        for keywords in ({}, {"lengths": lengths}):
            tape = assert_same_bits_in_segments(layer, x, None, keywords, **how)
            assert tape.gates()["f"].shape == (*shape, 3)


def test_tape_in_segments_may_be_used_again():
    layer = fastrnn.LSTM(4, 6, rng=0)
    x = np.random.default_rng(0).normal(size=(50, 2, 4)).astype(np.float32)
    y, _, tape = layer.forward(x, checkpoint=5)
    first, _ = layer.backward(tape, np.ones_like(y))
    second, _ = layer.backward(tape, np.ones_like(y))
    np.testing.assert_array_equal(first, second)


def test_tape_of_a_stack_in_segments_may_be_used_again():
    layer = fastrnn.LSTM(4, 60, 3, dropout=0.3, rng=0)
    x = np.random.default_rng(0).normal(size=(800, 2, 4)).astype(np.float32)
    y, _, tape = layer.forward(x, checkpoint=5)
    (first, _), (second, _) = (layer.backward(tape, np.ones_like(y)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("B", [2, 64])
@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "lstm"])
def test_threads_do_not_change_the_bits_of_stacks_in_segments(cell, B, ragged, restore_threads):
    kind, options = CELLS[cell]
    layer = kind(32, 64, 3, **options, dropout=0.2, input_dropout=0.1, rng=0)
    arguments = case(layer, np.random.default_rng(0), T=6400 // B, B=B, ragged=ragged)
    for n in (1, 2):
        fastrnn.set_num_threads(n)
        tape = assert_same_bits_in_segments(layer, *arguments, checkpoint=4)
        assert tape.is_stacked
        assert (len(tape.layer_passes[0]) > 1) == (B == 64)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_zoneout_on_two_threads_gives_the_same_bits_every_time(cell, restore_threads):
    """Forward, when it runs again, writes an h(t) that zoneout then undoes; nothing else may read it meanwhile."""
    kind, options = CELLS[cell]
    layer = kind(8, 256, **options, zoneout=0.5, rng=0)
    x = np.random.default_rng(0).normal(size=(300, 15, 8)).astype(np.float32)
    results = []
    for n in (1, 2, 2, 2, 2):
        fastrnn.set_num_threads(n)
        result, tape = passes(layer, x, None, {}, checkpoint=300)
        results.append([array.tobytes() for array in result])
    assert min(segments(tape)) > 50  # of a few steps each, so that many borders are read while others write
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize("dropped", [{"zoneout": 0.5}, {"zoneout_cell": 0.5}, {"dropout": 0.5}, {}])
def test_segments_work_at_the_same_time_unless_there_is_zoneout(dropped, restore_threads, monkeypatch):
    """What the test before this one finds only when threads meet."""
    fastrnn.set_num_threads(2)
    layer = fastrnn.LSTM(8, 64, 2, **dropped, rng=0)
    run, tasks_of_runs = parallel.run, []
    monkeypatch.setattr(parallel, "run", lambda tasks: tasks_of_runs.append(len(tasks)) or run(tasks))
    assert_same_bits_in_segments(layer, np.ones((1500, 2, 8), np.float32), None, {}, checkpoint=5)
    assert max(tasks_of_runs) == (1 if "zoneout" in dropped else 2)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_threads_do_not_change_the_bits_of_segments(cell, restore_threads):
    kind, options = CELLS[cell]
    layer = kind(32, 64, **options, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(200, 64, 32)).astype(np.float32)
    for n in (1, 2):
        fastrnn.set_num_threads(n)
        tape = assert_same_bits_in_segments(layer, x, None, {}, checkpoint=3)
    assert len(tape.layer_passes[0]) > 2
