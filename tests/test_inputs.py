"""What a layer accepts, whatever way it lies in memory, and what it refuses before anything is changed."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import re
import tracemalloc

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.engine import tuning
from fastrnn.engine.inputs import kernel_ready

from problems import random_state
from states import agree, as_tuple, mapped

T, B, I, H = 6, 4, 3, 5
KINDS = {
    "rnn": (fastrnn.RNN, {}),
    "rnn relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn softsign, clip": (fastrnn.RNN, {"nonlinearity": "softsign", "clip": 2.0}),
    "gru": (fastrnn.GRU, {}),
    "gru reset before": (fastrnn.GRU, {"reset_after": False}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm projected": (fastrnn.LSTM, {"proj_size": 2}),
    "lstm peephole, coupled": (fastrnn.LSTM, {"peephole": True, "coupled": True}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, **options):
    cls, own = KINDS[kind]
    return cls(I, H, **{"dtype": "float64", "rng": 1} | own | options)


def train(layer, x, state=None, dy=None, dstate=None, **call):
    """Forward and backward: everything that comes out, by name."""
    y, final, tape = layer.forward(x, state, **call)
    dy = np.random.default_rng(7).normal(size=y.shape).astype(layer.dtype) if dy is None else dy
    layer.zero_grad()
    dx, dinitial = layer.backward(tape, dy, dstate)
    out = {"y": y, "dx": dx} | {name: grad.copy() for name, grad in layer.grads.items()}
    for name, states in (("state", final), ("dstate", dinitial)):
        out |= {f"{name} {letter}": array for letter, array in zip("hc", as_tuple(states), strict=False)}
    return out


def assert_same(ours, expected, tolerance=1e-13, without=()):
    assert ours.keys() == expected.keys()
    for name in ours.keys() - set(without):
        agree(name, ours[name], expected[name], tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Memory layouts
# ---------------------------------------------------------------------------------------------------------------------


def in_order(*axes):
    """The same values with the axes in this order in memory."""

    def lay_out(a):
        order = [axis for axis in axes if axis < a.ndim]
        return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))

    return lay_out


def reversed_along(*axes):
    """The same values with negative strides along these axes."""

    def lay_out(a):
        flip = tuple(slice(None, None, -1 if axis in axes else 1) for axis in range(a.ndim))
        return a[flip].copy()[flip]

    return lay_out


def spread_along(axis):
    """The same values, every third of a larger array along an axis; what lies between is not a number."""

    def lay_out(a):
        if axis >= a.ndim:
            return a
        shape = list(a.shape)
        shape[axis] *= 3
        larger = np.full(shape, np.nan if a.dtype.kind == "f" else a.dtype.type(1), a.dtype)
        view = larger[(slice(None),) * axis + (slice(1, None, 3),)]
        view[...] = a
        return view

    return lay_out


def unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def in_records(a):
    """A field of packed records: strides that are no multiple of the item size."""
    records = np.zeros(a.shape, [("flag", "i1"), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = (
    {f"axes in order {axes}": in_order(*axes) for axes in itertools.permutations(range(3))}
    | {f"negative strides {axes}": reversed_along(*axes) for axes in [(0,), (1,), (2,), (0, 1), (0, 1, 2)]}
    | {f"every third along axis {axis}": spread_along(axis) for axis in range(3)}
    | {"unaligned": unaligned, "in records": in_records, "read-only": read_only}
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm projected"])
def test_the_layout_in_memory_does_not_matter(kind, batch, layout):
    lay_out = LAYOUTS[layout]
    rng = np.random.default_rng(2)
    layer = make(kind, bidirectional=True)
    x = rng.normal(size=(T, batch, I))
    state, dstate = random_state(layer, rng, batch), random_state(layer, rng, batch)
    dy = rng.normal(size=layer(x)[0].shape)
    reset = rng.random((T, batch)) < 0.3
    lengths = rng.integers(0, T + 1, batch)
    for call in ({}, {"reset": reset, "lengths": lengths}):
        expected = train(layer, x, state, dy, dstate, **call)
        laid_out = {name: lay_out(array) for name, array in call.items()}
        ours = train(layer, lay_out(x), mapped(lay_out, state), lay_out(dy), mapped(lay_out, dstate), **laid_out)
        assert_same(ours, expected)
        y, _ = layer(lay_out(x), mapped(lay_out, state), **laid_out)
        np.testing.assert_array_equal(y, ours["y"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_indices_does_not_matter(layout):
    rng = np.random.default_rng(2)
    layer = make("gru", reverse=True)
    ids = rng.integers(0, I, (T, B))
    expected = train(layer, ids)
    assert_same(train(layer, LAYOUTS[layout](ids)), expected, without=("dx",))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_broadcast_arrays_are_read_like_their_copies(kind, axes):
    rng = np.random.default_rng(3)
    layer = make(kind, num_layers=2)

    def broadcast(*shape):
        small = [1 if axis in axes else n for axis, n in enumerate(shape)]
        return np.broadcast_to(rng.normal(size=small), shape)

    x, dy, state = broadcast(T, B, I), broadcast(T, B, H), broadcast(2, B, H)
    state = (state, broadcast(2, B, H)) if kind == "lstm" else state
    assert 0 in x.strides
    expected = train(layer, x.copy(), mapped(np.copy, state), dy.copy(), mapped(np.copy, state))
    assert_same(train(layer, x, state, dy, state), expected)


def test_what_the_kernels_read_is_aligned():
    # x86 forgives unaligned reads, other machines do not
    for name, lay_out in LAYOUTS.items():
        array = kernel_ready(lay_out(np.zeros((T, B, I))))
        assert array.flags.aligned, name
        assert array.strides[2] == array.itemsize, name
        assert not any(stride % array.itemsize for stride in array.strides), name


def test_an_array_that_the_kernels_can_read_is_not_copied():
    x = np.zeros((B, T, I)).swapaxes(0, 1)[::-1, ::2]
    assert kernel_ready(x) is x


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("T", "B"), [(7, 0), (7, 5), (5, 40)])
def test_shards_deal_out_a_ragged_batch_by_falling_length(T, B, parts):
    lengths = np.random.default_rng(T + B).integers(0, T + 1, B)
    order = np.argsort(-lengths, kind="stable")
    for part, shard in enumerate(_core.shards(T, B, lengths, parts)):
        np.testing.assert_array_equal(shard.sorted_indices, order[part::parts])
        np.testing.assert_array_equal(shard.lengths, lengths[shard.sorted_indices])
        active = (shard.lengths[:, None] > np.arange(T)).sum(axis=0)
        np.testing.assert_array_equal(shard.first_row(np.arange(T + 1)), [0, *np.cumsum(active)])


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("T", "B"), [(0, 4), (1, 1), (7, 0), (7, 5), (5, 40)])
def test_shards_deal_out_a_regular_batch_in_blocks_of_much_the_same_size(T, B, parts):
    for lengths in (None, np.full(B, T)):
        shards = _core.shards(T, B, lengths, parts)
        np.testing.assert_array_equal(np.concatenate([shard.sorted_indices for shard in shards]), np.arange(B))
        assert {shard.n for shard in shards} <= {B // parts, -(-B // parts)}
        assert shards[0].n == -(-B // parts)
        for shard in shards:
            np.testing.assert_array_equal(shard.lengths, T)
            np.testing.assert_array_equal(shard.first_row(np.arange(T + 1)), np.arange(T + 1) * shard.n)


@pytest.mark.parametrize("lengths", [None, [7, 7, 7, 7, 7], [7, 2, 7, 0, 3], [2, 1, 5, 0, 5]])
def test_a_shard_knows_step_and_sequence_of_each_packed_row(lengths):
    T, B = 7, 5
    lengths = None if lengths is None else np.array(lengths)
    (shard,) = _core.shards(T, B, lengths, 1)
    assert shard.is_ragged == (shard.lengths.min() < T)
    steps, places = np.nonzero(shard.lengths > np.arange(T)[:, None])  # in packed order
    np.testing.assert_array_equal(shard.step_of(np.arange(len(steps))), steps)
    for backwards in (False, True):
        times = shard.lengths[places] - 1 - steps if backwards else steps
        for first, end in ((0, len(steps)), (3, 9), (4, 4)):
            ours = shard.where(first, end, backwards)
            np.testing.assert_array_equal(ours, (times[first:end], shard.sorted_indices[places[first:end]]))
    window = np.arange(T * B * 2).reshape(T, B, 2)
    np.testing.assert_array_equal(shard.packed(window[2:], 2, 5), window[steps, places][(steps >= 2) & (steps < 5)])


def test_a_shard_of_full_length_keeps_nothing_for_each_step():
    for lengths in (None, np.array([10**6, 10**6])):
        tracemalloc.start()
        (shard,) = _core.shards(10**6, 2, lengths, 1)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert kept < 10_000
        assert shard.first_row(10**6) == 2 * 10**6


@every_kind
@pytest.mark.parametrize(
    "options", [{"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "reverse": True, "batch_first": True}]
)
@pytest.mark.parametrize("lengths", [[3, 0, T, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_padding_is_zero_whatever_was_in_the_memory(kind, options, lengths, checkpoint, monkeypatch):
    rng = np.random.default_rng(8)
    layer = make(kind, **options)
    x = rng.standard_normal((B, T, I) if layer.batch_first else (T, B, I))
    state = random_state(layer, rng, B)
    new_array = _core.new_array

    def filled(shape, dtype, zero=False):
        array = new_array(shape, dtype, zero)
        if not zero:
            array[...] = np.nan
        return array

    def step():
        y, final, tape = layer.forward(x, state, lengths=np.array(lengths), checkpoint=checkpoint)
        dx, initial = layer.backward(tape, np.ones_like(y), final)
        return [y, dx, *as_tuple(final), *as_tuple(initial)]

    expected = step()
    monkeypatch.setattr(_core, "new_array", filled)
    for ours, theirs in zip(step(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for array in expected[:2]:
        rows = array if layer.batch_first else array.swapaxes(0, 1)
        assert not any(row[length:].any() for row, length in zip(rows, lengths, strict=True))


@every_kind
def test_arguments_are_never_written_to(kind):
    rng = np.random.default_rng(4)
    layer = make(kind, num_layers=2, bidirectional=True)
    x, state, dstate = rng.normal(size=(T, B, I)), random_state(layer, rng, B), random_state(layer, rng, B)
    dy = rng.normal(size=layer(x)[0].shape)
    lengths, reset = np.array([3, 0, T, 1]), rng.random((T, B)) < 0.3
    arrays = [x, dy, lengths, reset, *as_tuple(state), *as_tuple(dstate)]
    before = [array.copy() for array in arrays]
    layer(x, state, lengths=lengths, reset=reset)
    train(layer, x, state, dy, dstate, lengths=lengths, reset=reset)
    for array, copied in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copied)


# ---------------------------------------------------------------------------------------------------------------------
# Indices in place of one-hot rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("how", ["full", "ragged, reset", "reverse", "batch_first", "stacked", "unbatched"])
@every_kind
def test_indices_are_one_hot_rows(kind, how, dtype, tolerance):
    options = {"reverse": {"reverse": True}, "batch_first": {"batch_first": True},
               "stacked": {"num_layers": 2, "bidirectional": True}}.get(how, {})  # fmt: skip
    layer = make(kind, dtype=dtype, **options)
    rng = np.random.default_rng(5)
    ids = rng.integers(0, I, T if how == "unbatched" else (B, T) if how == "batch_first" else (T, B))
    call = {"lengths": np.array([T, 0, 2, 3]), "reset": rng.random((T, B)) < 0.3} if how == "ragged, reset" else {}
    ours = train(layer, ids, **call)
    assert ours["dx"] is None
    assert_same(ours, train(layer, np.eye(I, dtype=dtype)[ids], **call), tolerance, without=("dx",))
    np.testing.assert_array_equal(layer(ids, **call)[0], ours["y"])


@pytest.mark.parametrize("steps", [1, 5, 40])
@every_kind
def test_indices_are_one_hot_rows_however_many_there_are(kind, steps):
    cls, own = KINDS[kind]
    layer = cls(100, H, dtype="float64", rng=1, **own)  # fewer rows than indices, and more of them
    ids = np.random.default_rng(5).integers(0, 100, (steps, B))
    assert_same(train(layer, ids), train(layer, np.eye(100)[ids]), without=("dx",))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("how", ["full", "ragged, reset", "both ways, stacked"])
@every_kind
def test_indices_of_which_a_call_meets_few_are_one_hot_rows(monkeypatch, kind, how, parts, dtype):
    monkeypatch.setattr(tuning, "WORTH_COMPACTING", 0)
    monkeypatch.setattr(tuning, "WORTH_CUTTING", 0 if parts > 1 else 1 << 23)
    options = {"num_layers": 2, "bidirectional": True} if how == "both ways, stacked" else {}
    cls, own = KINDS[kind]
    layer = cls(203, H, dtype=dtype, rng=1, **own, **options)
    layer._parts = lambda T, B: parts
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 203, (13, 7)) // 3 * 3  # many of them more than once
    assert np.unique(ids).size < ids.size
    call = {"lengths": np.array([13, 0, 5, 9, 1, 13, 2]), "reset": rng.random((13, 7)) < 0.3} if "ragged" in how else {}
    ours = train(layer, ids, **call)
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    assert_same(ours, train(layer, np.eye(203, dtype=dtype)[ids], **call), tolerance, without=("dx",))
    np.testing.assert_array_equal(layer(ids, **call)[0], ours["y"])
    if "ragged" in how:
        padded = np.where(np.arange(13)[:, None] < call["lengths"], ids, 2**40)
        assert_same(train(layer, padded, **call), ours, without=("dx",))


def test_indices_take_no_memory_of_the_size_of_the_weights():
    layer = fastrnn.GRU(50_000, 16, rng=1)
    layer._parts = lambda T, B: 2
    y, _, tape = layer.forward(np.random.default_rng(5).integers(0, 50_000, (8, 32)))
    layer.backward(tape, np.ones_like(y))
    tracemalloc.start()
    try:
        layer.backward(tape, np.ones_like(y))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < layer.params["weight_ih_l0"].nbytes / 8


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">i4", ">i8", ">u8"])
def test_indices_may_be_of_any_integer_type(dtype):
    layer = make("gru")
    ids = np.random.default_rng(5).integers(0, I, (T, B))
    assert_same(train(layer, ids.astype(dtype)), train(layer, ids), without=("dx",))


@pytest.mark.parametrize("rubbish", [-1, I, 2**40, -(2**40)])
def test_indices_in_the_padding_are_not_looked_at(rubbish):
    layer = make("lstm", bidirectional=True)
    lengths = np.array([4, 0, T, 2])
    ids = np.random.default_rng(5).integers(0, I, (T, B))
    padded = np.where(np.arange(T)[:, None] < lengths, ids, rubbish)
    assert_same(train(layer, padded, lengths=lengths), train(layer, ids, lengths=lengths), without=("dx",))


@pytest.mark.parametrize("index", [-1, I, 2**40, -(2**63)])
def test_an_index_out_of_range_is_refused(index):
    ids = np.zeros((T, B), np.int64)
    ids[-1, -1] = index
    with pytest.raises(ValueError, match=f"expected integer x from 0 to {I - 1}, got .*{index}"):
        make("rnn")(ids)


def test_an_index_beyond_int64_is_refused():
    with pytest.raises(ValueError, match=f"expected integer x from 0 to {I - 1}, got 0 to 18446744073709551615"):
        make("rnn")(np.array([[0], [2**64 - 1]], np.uint64))


# ---------------------------------------------------------------------------------------------------------------------
# Nothing to do
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_hot", [False, True], ids=["float x", "indices"])
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"num_layers": 2, "bidirectional": True, "merge": "mul"}])
@every_kind
def test_no_steps_leave_the_state_as_it_was(kind, options, one_hot):
    layer = make(kind, **options)
    rng = np.random.default_rng(6)
    state, dstate = random_state(layer, rng, B), random_state(layer, rng, B)
    x = np.zeros((0, B), int) if one_hot else np.zeros((0, B, I))
    for call in ({}, {"lengths": np.zeros(B, int)}, {"reset": np.ones((0, B), bool)}):
        out = train(layer, x, state, dstate=dstate, **call)
        assert out["y"].shape == (0, *layer(np.zeros((1, B, I)))[0].shape[1:])
        assert out["dx"] is None if one_hot else out["dx"].shape == x.shape
        for letter, array, gradient in zip("hc", as_tuple(state), as_tuple(dstate), strict=False):
            np.testing.assert_array_equal(out[f"state {letter}"], array)
            np.testing.assert_array_equal(out[f"dstate {letter}"], gradient)
            assert not np.shares_memory(out[f"state {letter}"], array)
            assert not np.shares_memory(out[f"dstate {letter}"], gradient)
        assert not any(grad.any() for grad in layer.grads.values())
        for ours, theirs in zip(as_tuple(layer(x, state, **call)[1]), as_tuple(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("steps", [0, 1, T])
@every_kind
def test_no_rows_give_no_rows(kind, steps):
    layer = make(kind, num_layers=2, bidirectional=True)
    for call in ({}, {"lengths": np.zeros(0, int)}, {"reset": np.zeros((steps, 0), bool)}):
        out = train(layer, np.zeros((steps, 0, I)), **call)
        assert out["dx"].shape == (steps, 0, I)
        assert out["y"].shape[:2] == (steps, 0)
        assert out["state h"].shape[:2] == out["dstate h"].shape[:2] == (4, 0)
        assert not any(grad.any() for grad in layer.grads.values())
        assert layer(np.zeros((steps, 0, I)), **call)[0].shape == out["y"].shape


@every_kind
def test_lengths_of_zero_throughout_leave_the_state_as_it_was(kind):
    layer = make(kind, bidirectional=True)
    rng = np.random.default_rng(6)
    state, dstate = random_state(layer, rng, B), random_state(layer, rng, B)
    out = train(layer, rng.normal(size=(T, B, I)), state, dstate=dstate, lengths=np.zeros(B, int))
    assert not out["y"].any()
    assert not out["dx"].any()
    assert not any(grad.any() for grad in layer.grads.values())
    for letter, array, gradient in zip("hc", as_tuple(state), as_tuple(dstate), strict=False):
        np.testing.assert_array_equal(out[f"state {letter}"], array)
        np.testing.assert_array_equal(out[f"dstate {letter}"], gradient)


# ---------------------------------------------------------------------------------------------------------------------
# Other layouts of the axes
# ---------------------------------------------------------------------------------------------------------------------


@every_kind
def test_batch_first_is_time_major_with_two_axes_exchanged(kind):
    options = {"num_layers": 2, "bidirectional": True}
    layer, swapped = make(kind, **options), make(kind, batch_first=True, **options)
    rng = np.random.default_rng(8)
    x, state, dstate = rng.normal(size=(T, B, I)), random_state(layer, rng, B), random_state(layer, rng, B)
    dy = rng.normal(size=layer(x)[0].shape)
    lengths, reset = np.array([3, T, 0, 1]), rng.random((T, B)) < 0.3
    expected = train(layer, x, state, dy, dstate, lengths=lengths, reset=reset)
    ours = train(
        swapped, x.swapaxes(0, 1).copy(), state, dy.swapaxes(0, 1).copy(), dstate, lengths=lengths, reset=reset.T.copy()
    )
    for name in ("y", "dx"):
        assert ours[name].shape[:2] == (B, T)
        ours[name] = ours[name].swapaxes(0, 1)
    assert_same(ours, expected)


@pytest.mark.parametrize("batch_first", [False, True])
@every_kind
def test_unbatched_is_a_batch_of_one(kind, batch_first):
    layer = make(kind, num_layers=2, bidirectional=True)
    alone = make(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    rng = np.random.default_rng(8)
    x, state, dstate = rng.normal(size=(T, 1, I)), random_state(layer, rng, 1), random_state(layer, rng, 1)
    dy = rng.normal(size=layer(x)[0].shape)
    reset = rng.random((T, 1)) < 0.3

    def first(a):
        return a[:, 0]

    call = {"lengths": np.array([T - 1])}
    expected = train(layer, x, state, dy, dstate, reset=reset, **call)
    ours = train(alone, x[:, 0], mapped(first, state), dy[:, 0], mapped(first, dstate), reset=reset[:, 0], **call)
    for name in expected.keys() - layer.params.keys():
        expected[name] = expected[name][:, 0]
    assert_same(ours, expected)
    assert all(ours[name].shape == array.shape for name, array in expected.items())


# ---------------------------------------------------------------------------------------------------------------------
# NaN stays where it came in
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 11])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_kind
def test_nan_in_x_stays_in_its_own_row(kind, dtype, batch):
    layer = make(kind, dtype=dtype)
    x = np.random.default_rng(9).normal(size=(T, batch, I)).astype(dtype)
    expected = train(layer, x)
    x[2, 1, 0] = np.nan
    ours = train(layer, x)
    assert np.isnan(ours["y"][2:, 1]).all()
    assert np.isnan(ours["weight_ih_l0"]).any()  # which sums over all rows
    np.testing.assert_array_equal(ours["y"][:2], expected["y"][:2])
    for name in ("y", "dx", "state h", "dstate h"):
        np.testing.assert_array_equal(np.delete(ours[name], 1, 1), np.delete(expected[name], 1, 1), err_msg=name)


@pytest.mark.parametrize("options", [{"reverse": True}, {"num_layers": 2, "bidirectional": True}], ids=str)
@every_kind
def test_nan_in_a_state_or_gradient_stays_in_its_own_row(kind, options):
    layer = make(kind, **options)
    rng = np.random.default_rng(9)
    x, state, dstate = rng.normal(size=(T, B, I)), random_state(layer, rng, B), random_state(layer, rng, B)
    dy = rng.normal(size=layer(x)[0].shape)
    expected = train(layer, x, state, dy, dstate)
    for array, reaches_y in [(as_tuple(state)[-1], True), (as_tuple(dstate)[-1], False), (dy, False)]:
        array[-1, 2, 0], kept = np.nan, array[-1, 2, 0]
        ours = train(layer, x, state, dy, dstate)
        array[-1, 2, 0] = kept
        assert np.isnan(ours["y"]).any() == reaches_y
        assert any(np.isnan(ours[name]).any() for name in layer.grads)
        for name in ("y", "dx", "state h", "dstate h"):
            np.testing.assert_array_equal(np.delete(ours[name], 2, 1), np.delete(expected[name], 2, 1), err_msg=name)


@pytest.mark.parametrize("merge", ["concat", "mul", "ave"])
@every_kind
def test_nan_in_the_padding_reaches_nothing(kind, merge):
    layer = make(kind, num_layers=2, bidirectional=True, merge=merge)
    lengths = np.array([4, 0, T, 2])
    rng = np.random.default_rng(10)
    x = rng.normal(size=(T, B, I))
    dy = rng.normal(size=layer(x)[0].shape)
    expected = train(layer, x, dy=dy, lengths=lengths)
    padding = np.arange(T)[:, None] >= lengths
    x[padding] = dy[padding] = np.nan
    ours = train(layer, x, dy=dy, lengths=lengths)
    assert_same(ours, expected, tolerance=0)
    assert not ours["y"][padding].any()
    assert not ours["dx"][padding].any()


@every_kind
def test_a_reset_forgets_nan(kind):
    layer = make(kind)
    x = np.random.default_rng(11).normal(size=(T, B, I))
    nan = mapped(lambda a: np.full_like(a, np.nan), random_state(layer, np.random.default_rng(0), B))
    reset = np.zeros((T, B), bool)
    reset[0] = True
    ours = train(layer, x, nan, reset=reset)
    expected = train(layer, x)
    assert_same(ours, expected, without=("dstate h", "dstate c") if layer.cell == "lstm" else ("dstate h",))
    assert not ours["dstate h"].any()
    assert layer.cell != "lstm" or not ours["dstate c"].any()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------

X = np.zeros((T, B, I))
HIDDEN, PROJECTED = np.zeros((1, B, H)), np.zeros((1, B, 2))
SWAPPED = np.dtype(np.float64).newbyteorder()

# Each bad case: what is given; the error, what it says was expected, and what it says came.
BAD_CALLS = {
    "float32 x": ((X.astype("f4"),), {}, TypeError, "x of dtype float64", "float32"),
    "byte-swapped x": ((X.astype(SWAPPED),), {}, TypeError, "x of dtype float64", ">f8"),
    "complex x": ((X.astype(complex),), {}, TypeError, "x of dtype float64", "complex128"),
    "bool x": ((X[:, :, 0] > 0,), {}, TypeError, "x of dtype float64, or of an integer dtype", "bool"),
    "x of objects": ((X.astype(object),), {}, TypeError, "x of dtype float64", "object"),
    "no x": ((None,), {}, TypeError, "x of dtype float64", "object"),
    "x of rank 0": ((np.float64(1),), {}, ValueError, "x of shape (T, B, 3), or (T, 3)", "()"),
    "x of rank 1": ((X[0, 0],), {}, ValueError, "x of shape (T, B, 3), or (T, 3)", "(3,)"),
    "x of rank 4": ((X[None],), {}, ValueError, "x of shape (T, B, 3)", "(1, 6, 4, 3)"),
    "wider x": ((np.zeros((T, B, 4)),), {}, ValueError, "x of shape (T, B, 3)", "(6, 4, 4)"),
    "x without width": ((X[:, :, :0],), {}, ValueError, "x of shape (T, B, 3)", "(6, 4, 0)"),
    "one index": ((np.int64(1),), {}, ValueError, "integer x of shape (T, B), or (T)", "()"),
    "indices of rank 3": ((X.astype(int),), {}, ValueError, "integer x of shape (T, B)", "(6, 4, 3)"),
    "float32 state": ((X, HIDDEN.astype("f4")), {}, TypeError, "state of dtype float64", "float32"),
    "byte-swapped state": ((X, HIDDEN.astype(SWAPPED)), {}, TypeError, "state of dtype float64", ">f8"),
    "state of another batch": ((X, HIDDEN[:, :2]), {}, ValueError, "state of shape (1, 4, 5)", "(1, 2, 5)"),
    "state of rank 2": ((X, HIDDEN[0]), {}, ValueError, "state of shape (1, 4, 5)", "(4, 5)"),
    "state as a pair": ((X, (HIDDEN, HIDDEN)), {}, ValueError, "state of shape (1, 4, 5)", "(2, 1, 4, 5)"),
    "batched state, unbatched x": ((X[:, 0], HIDDEN), {}, ValueError, "state of shape (1, 5)", "(1, 4, 5)"),
    "float lengths": ((X,), {"lengths": np.ones(B)}, TypeError, "lengths of an integer dtype", "float64"),
    "bool lengths": ((X,), {"lengths": [True] * B}, TypeError, "lengths of an integer dtype", "bool"),
    "one length for all": ((X,), {"lengths": 3}, ValueError, "lengths of shape (4,)", "()"),
    "too few lengths": ((X,), {"lengths": [3, 3]}, ValueError, "lengths of shape (4,)", "(2,)"),
    "a negative length": ((X,), {"lengths": [3, -1, 2, 0]}, ValueError, "lengths from 0 to T = 6", "-1 to 3"),
    "a length beyond T": ((X,), {"lengths": [3, 7, 2, 0]}, ValueError, "lengths from 0 to T = 6", "0 to 7"),
    "a huge length": ((X,), {"lengths": np.array([2**64 - 1] * B, "u8")}, ValueError, "lengths from 0 to T = 6", ""),
    "reset of integers": ((X,), {"reset": np.zeros((T, B), int)}, TypeError, "reset of dtype bool", "int64"),
    "reset of another shape": ((X,), {"reset": np.zeros((B, T), bool)}, ValueError, "reset of shape (6, 4)", "(4, 6)"),
    "reset for each unit": ((X,), {"reset": np.zeros((T, B, I), bool)}, ValueError, "reset of shape (6, 4)", ""),
}  # fmt: skip


def refused(error, expected, came):
    return pytest.raises(error, match=f"^expected .*{re.escape(expected)}.* got .*{re.escape(came)}")


def assert_refused(layer, call, error, expected, came):
    """The call raises the error, and the layer is as it was."""
    for grad in layer.grads.values():
        grad[...] = 0.25
    params, generator = layer.state_dict(), layer._rng.bit_generator.state
    with refused(error, expected, came):
        call()
    assert all((grad == 0.25).all() for grad in layer.grads.values())
    assert layer._rng.bit_generator.state == generator
    for name, array in params.items():
        np.testing.assert_array_equal(layer.params[name], array)


@pytest.mark.parametrize("how", ["__call__", "forward"])
@pytest.mark.parametrize(("arguments", "keywords", "error", "expected", "came"), BAD_CALLS.values(), ids=BAD_CALLS)
@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_a_call_that_does_not_fit_is_refused(kind, arguments, keywords, error, expected, came, how):
    layer = make(kind, dropout=0.5)
    assert_refused(layer, lambda: getattr(layer, how)(*arguments, **keywords), error, expected, came)


BAD_PAIRS = {
    "one array": (HIDDEN, TypeError, "state of an LSTM as a pair (h, c)", "ndarray"),
    "one array of two": (np.zeros((2, 1, B, H)), TypeError, "state of an LSTM as a pair", "ndarray"),
    "three arrays": ((PROJECTED, HIDDEN, HIDDEN), TypeError, "state of an LSTM as a pair", "tuple"),
    "h unprojected": ((HIDDEN, HIDDEN), ValueError, "state h of shape (1, 4, 2)", "(1, 4, 5)"),
    "c projected": ((PROJECTED, PROJECTED), ValueError, "state c of shape (1, 4, 5)", "(1, 4, 2)"),
    "float32 c": ((PROJECTED, HIDDEN.astype("f4")), TypeError, "state c of dtype float64", "float32"),
    "text for c": ((PROJECTED, "zeros"), TypeError, "state c of dtype float64", "<U5"),
}


@pytest.mark.parametrize("place", [0, 1])
def test_none_in_the_place_of_one_of_a_pair_is_zeros(place):
    layer = make("lstm projected")
    pair = [PROJECTED + 0.5, HIDDEN + 0.5]
    with_none, with_zeros = list(pair), list(pair)
    with_none[place], with_zeros[place] = None, np.zeros_like(pair[place])
    np.testing.assert_array_equal(layer(X, with_none)[0], layer(X, tuple(with_zeros))[0])
    tape = layer.forward(X)[2]
    dx, zeros_dx = (layer.backward(tape, dstate=tuple(pair))[0] for pair in (with_none, with_zeros))
    np.testing.assert_array_equal(dx, zeros_dx)
    assert np.abs(dx).max() > 0


@pytest.mark.parametrize(("state", "error", "expected", "came"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_state_of_an_lstm_that_does_not_fit_is_refused(state, error, expected, came):
    layer = make("lstm projected")
    assert_refused(layer, lambda: layer(X, state), error, expected, came)
    assert_refused(layer, lambda: layer.forward(X, state), error, expected, came)
    tape = layer.forward(X)[2]
    dy = np.zeros((T, B, 2))
    assert_refused(layer, lambda: layer.backward(tape, dy, state), error, expected, came.replace("state", "dstate"))


DY = np.zeros((T, B, H))
BAD_GRADIENTS = {
    "float32 dy": ((DY.astype("f4"),), TypeError, "dy of dtype float64", "float32"),
    "byte-swapped dy": ((DY.astype(SWAPPED),), TypeError, "dy of dtype float64", ">f8"),
    "dy of the last step": ((DY[-1],), ValueError, "dy of shape (6, 4, 5)", "(4, 5)"),
    "dy of another batch": ((DY[:, :1],), ValueError, "dy of shape (6, 4, 5)", "(6, 1, 5)"),
    "float32 dstate": ((DY, HIDDEN.astype("f4")), TypeError, "dstate of dtype float64", "float32"),
    "dstate of rank 2": ((DY, HIDDEN[0]), ValueError, "dstate of shape (1, 4, 5)", "(4, 5)"),
}


@pytest.mark.parametrize(("arguments", "error", "expected", "came"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS)
@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_a_gradient_that_does_not_fit_is_refused(kind, arguments, error, expected, came):
    layer = make(kind)
    tape = layer.forward(X)[2]
    assert_refused(layer, lambda: layer.backward(tape, *arguments), error, expected, came)


def test_what_is_no_tape_of_this_layer_is_refused():
    layer, other = make("rnn"), make("rnn")
    for tape, came in [(None, "None"), ("tape", "str"), (other.forward(X)[2], "another layer's")]:
        assert_refused(
            layer,
            lambda tape=tape: layer.backward(tape, DY),
            ValueError,
            "the tape that this layer's forward returned",
            came,
        )


BAD_LAYERS = {
    "input_size 0": ((0, H), {}, ValueError, "input_size >= 1", "0"),
    "input_size 3.0": ((3.0, H), {}, TypeError, "input_size to be an integer", "3.0"),
    "input_size True": ((True, H), {}, TypeError, "input_size to be an integer", "True"),
    "hidden_size -1": ((I, -1), {}, ValueError, "hidden_size >= 1", "-1"),
    "hidden_size '5'": ((I, "5"), {}, TypeError, "hidden_size to be an integer", "'5'"),
    "num_layers 0": ((I, H, 0), {}, ValueError, "num_layers >= 1", "0"),
    "dropout 1.1": ((I, H), {"dropout": 1.1}, ValueError, "dropout from 0 to 1", "1.1"),
    "dropout -0.1": ((I, H), {"dropout": -0.1}, ValueError, "dropout from 0 to 1", "-0.1"),
    "dropout NaN": ((I, H), {"dropout": np.nan}, ValueError, "dropout from 0 to 1", "nan"),
    "dropout True": ((I, H), {"dropout": True}, TypeError, "dropout to be a number", "True"),
    "merge": ((I, H), {"merge": "max"}, ValueError, "merge among concat, sum, mul, ave", "'max'"),
    "clip 0": ((I, H), {"clip": 0}, ValueError, "clip > 0", "0"),
    "clip -1": ((I, H), {"clip": -1.0}, ValueError, "a finite clip >= 0", "-1.0"),
    "clip NaN": ((I, H), {"clip": np.nan}, ValueError, "a finite clip >= 0", "nan"),
    "clip 'no'": ((I, H), {"clip": "no"}, TypeError, "clip to be a number", "'no'"),
    "two ways at once": ((I, H), {"bidirectional": True, "reverse": True}, ValueError, "reverse=False", "True"),
    "float16": ((I, H), {"dtype": "float16"}, TypeError, "dtype float32 or float64", "float16"),
    "byte-swapped": ((I, H), {"dtype": SWAPPED}, TypeError, "dtype float32 or float64", ">f8"),
    "integers": ((I, H), {"dtype": int}, TypeError, "dtype float32 or float64", "int64"),
} | {
    f"{name} {value!r}": ((I, H), {name: value}, TypeError, f"{name} to be True or False", repr(value))
    for name in ("bias", "batch_first", "bidirectional", "reverse")
    for value in (0, 1, "True", None)
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "expected", "came"), BAD_LAYERS.values(), ids=BAD_LAYERS)
@pytest.mark.parametrize("cls", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM], ids=["RNN", "GRU", "LSTM"])
def test_a_layer_that_cannot_be_is_refused(cls, arguments, options, error, expected, came):
    with refused(error, expected, came):
        cls(*arguments, **options)


BAD_CELLS = {
    "nonlinearity": (fastrnn.RNN, {"nonlinearity": "gelu"}, ValueError, "an activation among tanh", "'gelu'"),
    "too many parameters": (fastrnn.RNN, {"nonlinearity": ("elu", 1.0, 2.0)}, ValueError, "at most 1 parameters", ""),
    "NaN as parameter": (fastrnn.RNN, {"nonlinearity": ("elu", np.nan)}, ValueError, "finite parameters of elu", ""),
    "a huge parameter": (fastrnn.RNN, {"nonlinearity": ("elu", 10**400)}, ValueError, "finite parameters of elu", ""),
    "reset_after": (fastrnn.GRU, {"reset_after": 1}, TypeError, "reset_after to be True or False", "1"),
    "three activations": (fastrnn.GRU, {"activations": ("tanh",) * 3}, ValueError, "a sequence of 2 activations", ""),
    "two activations": (fastrnn.LSTM, {"activations": ("tanh",) * 2}, ValueError, "a sequence of 3 activations", ""),
    "an activation": (fastrnn.LSTM, {"activations": "tanh"}, ValueError, "a sequence of 3 activations", "'tanh'"),
    "peephole": (fastrnn.LSTM, {"peephole": 1}, TypeError, "peephole to be True or False", "1"),
    "coupled": (fastrnn.LSTM, {"coupled": None}, TypeError, "coupled to be True or False", "None"),
    "proj_size too large": (fastrnn.LSTM, {"proj_size": H}, ValueError, "proj_size smaller than hidden_size = 5", "5"),
    "proj_size negative": (fastrnn.LSTM, {"proj_size": -1}, ValueError, "proj_size >= 0", "-1"),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "options", "error", "expected", "came"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_cell_that_cannot_be_is_refused(cls, options, error, expected, came):
    with refused(error, expected, came):
        cls(I, H, **options)


@pytest.mark.parametrize("mapping", [None, 5, "weight", [1], [("weight", np.zeros((2, 3)))]])
def test_a_state_dict_that_is_no_mapping_is_refused(mapping):
    layer = fastrnn.Linear(3, 2)
    for loads in (layer, fastrnn.optim.Adam([layer])):
        with pytest.raises(TypeError, match="expected arrays by name, as a state dict has them, got"):
            loads.load_state_dict(mapping)


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_no_gradient_of_y_is_a_gradient_of_zero(kind):
    """As for a classifier that sees only the final state."""
    layer = make(kind)
    _, state, tape = layer.forward(X)
    layer.zero_grad()
    dx, dstate = layer.backward(tape, None, np.ones_like(state))
    grads = {name: grad.copy() for name, grad in layer.grads.items()}
    layer.zero_grad()
    expected = layer.backward(tape, np.zeros(tape.y_shape), np.ones_like(state))
    np.testing.assert_array_equal(dx, expected[0])
    np.testing.assert_array_equal(dstate, expected[1])
    assert np.abs(dx).max() > 0
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, layer.grads[name])


@pytest.mark.parametrize("rank", [0, 1, *range(4, 33)])
@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_x_of_any_number_of_axes_is_refused_with_an_error(cell, rank):
    layer, x = cell(1, 5, rng=0), np.zeros((1,) * rank, np.float32)
    for call in (layer, layer.forward, layer.stream().run, *[layer.stream().step] * (rank != 1)):
        with pytest.raises(ValueError, match="expected x of shape"):
            call(x)


@pytest.mark.parametrize("rank", [0, 1, *range(4, 33)])
@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.LSTM])
def test_states_of_any_number_of_axes_are_refused_with_an_error(cell, rank):
    layer, state = cell(1, 5, rng=0), np.zeros((1,) * rank, np.float32)
    with pytest.raises(ValueError, match="expected state"):
        layer(np.zeros((1, 1), np.float32), (state, state) if cell is fastrnn.LSTM else state)


# ---------------------------------------------------------------- options of a layer that is there

MADE = {
    "RNN": lambda: fastrnn.RNN(3, 4, rng=0),
    "GRU": lambda: fastrnn.GRU(3, 4, rng=0),
    "LSTM": lambda: fastrnn.LSTM(3, 4, rng=0),
    "Linear": lambda: fastrnn.Linear(3, 4, rng=0),
    "LanguageModel": lambda: fastrnn.LanguageModel("gru", 4),
}
MAY_CHANGE = {
    "dropout": 0.3, "weight_dropout": 0.3, "input_dropout": 0.3, "recurrent_dropout": 0.3, "zoneout": 0.3,
    "zoneout_cell": 0.3, "grad_clip": 1e-3,
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_options_that_decide_what_a_layer_is_are_read_only(name):
    made = MADE[name]()
    options = set(inspect.signature(type(made)).parameters) - {"rng", *MAY_CHANGE}
    assert len(options) >= 3
    for option in options:
        before = getattr(made, option)
        with pytest.raises(AttributeError, match=f"{option} of a {name} is fixed when it is made"):
            setattr(made, option, 2)
        assert getattr(made, option) == before


@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_options_that_may_change_do_change(cell):
    """A layer whose options were assigned does what one does that was made with them."""
    x = np.random.default_rng(0).standard_normal((12, 4, 3), dtype=np.float32)

    def results(layer):
        layer._rng = np.random.default_rng(5)
        y, _, tape = layer.forward(x)
        layer.zero_grad()
        dx, _ = layer.backward(tape, 1 + y)
        stream = layer.stream(4)
        return [y, dx, *layer.grads.values(), layer(x)[0], layer(x[:1])[0], stream.run(x)]

    for option, value in MAY_CHANGE.items():
        if option not in inspect.signature(cell).parameters:
            continue
        changed, made = cell(3, 8, num_layers=2, rng=0), cell(3, 8, num_layers=2, rng=0, **{option: value})
        plain = results(changed)
        setattr(changed, option, value)
        got, expected = results(changed), results(made)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert any(not np.array_equal(a, b) for a, b in zip(got, plain, strict=True)), option
        with pytest.raises((TypeError, ValueError), match=option):
            setattr(changed, option, -1)
        assert getattr(changed, option) == value


def test_a_stream_sees_changed_options_when_it_is_refreshed():
    layer = fastrnn.GRU(3, 8, rng=0)
    x = np.ones((9, 3), np.float32)
    stream, plain = layer.stream(), layer.stream().run(x)
    layer.zoneout = 0.5
    np.testing.assert_array_equal(stream.run(x), plain)
    stream.refresh()
    stream.reset()
    np.testing.assert_array_equal(stream.run(x), layer.stream().run(x))


def test_a_copied_layer_keeps_options_that_were_changed():
    layer = fastrnn.GRU(3, 8, rng=0)
    layer.zoneout = 0.5
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = np.ones((9, 2, 3), np.float32)
        np.testing.assert_array_equal(copied(x)[0], layer(x)[0])
        with pytest.raises(AttributeError, match="fixed"):
            copied.hidden_size = 3


@pytest.mark.parametrize("num_layers", [2**17, 2**40, 2**62])
def test_stacks_beyond_all_use_are_refused_at_once(num_layers):
    with pytest.raises(ValueError, match="num_layers <= 65536"):
        fastrnn.RNN(1, 1, num_layers=num_layers)
