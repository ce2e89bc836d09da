"""Weights packed once: calls, streams and threads; and small calls, which the engine would make to the same bits."""

import copy
import pickle
import threading

import fastrnn
import numpy as np
import pytest
from fastrnn import engine, reference

from layer_cases import CELLS, STACKS, TOLERANCE, case
from problems import random_state
from states import agree, as_tuple, assert_equal
from streams import with_stored_weights

SHAPES = ((1, 1), (1, 7), (2, 1), (5, 3), (9, 1), (17, 2), (40, 1), (3, 70))


def layer_of(cell, stack, dtype="float32", sizes=(7, 21), **more):
    kind, options = CELLS[cell]
    return kind(*sizes, **{**options, **STACKS[stack], **more}, dtype=dtype, rng=3)


def both(result):
    y, state = result
    return (y, *as_tuple(state))


def assert_as_reference(call, layer, x, state, keywords):
    y, final = call(x, state, **keywords)
    y_ref, final_ref, _ = reference.forward(layer, x, state, **keywords)
    for ours, theirs in zip(both((y, final)), both((y_ref, final_ref)), strict=True):
        agree("frozen", ours, theirs, TOLERANCE[layer.dtype.name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_frozen_layer_is_the_layer(instructions, cell, stack, dtype):
    layer, rng = layer_of(cell, stack, dtype), np.random.default_rng(1)
    frozen = layer.frozen()
    for T, B in SHAPES:
        assert_as_reference(frozen, layer, *case(layer, rng, T, B))
    for options in ({"ragged": True}, {"reset": True}, {"ragged": True, "one_hot": True, "reset": True}):
        assert_as_reference(frozen, layer, *case(layer, rng, T=11, B=6, **options))
    x, _, _ = case(layer, rng, T=150, B=20, one_hot=True)
    assert_as_reference(frozen, layer, x, None, {})


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_large_calls_give_the_same_bits(kind, layer_norm):
    layer, rng = kind(40, 96, 2, layer_norm=layer_norm, rng=0), np.random.default_rng(1)
    x = rng.standard_normal((70, 33, 40), np.float32)
    assert_equal(both(layer.frozen()(x)), both(layer(x)))
    lengths = rng.integers(0, 71, 33)
    assert_equal(both(layer.frozen()(x, lengths=lengths)), both(layer(x, lengths=lengths)))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_small_calls_give_the_bits_of_the_engine(cell, stack):
    layer, rng = layer_of(cell, stack), np.random.default_rng(1)
    frozen = layer.frozen()
    spec, weights, packed = layer.spec, layer.weights, frozen._packed.weights
    for T, B in SHAPES:
        for ragged in (False, True):
            x, state, keywords = case(layer, rng, T, B, ragged=ragged)
            expected = engine.infer(spec, weights, x, state, **keywords)
            assert_equal(both(layer(x, state, **keywords)), both(expected))
            expected = engine.infer(spec, weights, x, state, **keywords, packed=packed)
            assert_equal(both(frozen(x, state, **keywords)), both(expected))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.LSTM])
def test_small_calls_take_arrays_of_any_layout(kind, batch_first):
    layer, rng = kind(5, 18, 2, bidirectional=True, batch_first=batch_first, rng=0), np.random.default_rng(1)
    T, B = 6, 4
    x, state = rng.standard_normal((B, T, 5) if batch_first else (T, B, 5), np.float32), random_state(layer, rng, B)
    lengths = np.array([6, 0, 3, 6])
    expected = both(layer(x, state, lengths=lengths))

    def strided(array):
        wide = np.repeat(np.repeat(array, 2, axis=0), 3, axis=1)
        return wide[::2, ::3]

    given = tuple(map(strided, as_tuple(state)))
    for call in (layer, layer.frozen()):
        plain = both(call(x, state, lengths=lengths))
        assert not strided(x).flags.c_contiguous
        for arguments in (
            (strided(x), state, lengths),
            (np.asfortranarray(x), state, lengths),
            (x[..., ::-1].copy()[..., ::-1], state, lengths),
            (x, given if len(given) > 1 else given[0], lengths),
            (x, list(state) if isinstance(state, tuple) else state, lengths.tolist()),
            (x, state, lengths.astype(np.int32)),
            (x, state, lengths.astype(np.uint8)),
            (x, state, np.repeat(lengths, 2)[::2]),
        ):
            assert_equal(both(call(*arguments[:2], lengths=arguments[2])), plain)
        for ours, theirs in zip(plain, expected, strict=True):
            agree("call", ours, theirs, 2e-6)
        same = np.full(B, T)
        assert_equal(both(call(x, state, lengths=same)), both(call(x, state)))


@pytest.mark.usefixtures("restore_threads")
def test_very_many_short_sequences():
    fastrnn.set_num_threads(1)
    layer, rng = fastrnn.LSTM(1, 1, rng=0), np.random.default_rng(1)
    B = 300_000
    x, lengths = rng.standard_normal((2, B, 1), np.float32), rng.integers(0, 3, B)
    y, (h, c) = layer(x, lengths=lengths)
    sample = rng.integers(0, B, 200)
    y_some, (h_some, c_some) = layer(x[:, sample], lengths=lengths[sample])
    for ours, theirs in ((y[:, sample], y_some), (h[:, sample], h_some), (c[:, sample], c_some)):
        agree("some of them", ours, theirs, 1e-6)


@pytest.mark.parametrize("name", ["layer", "frozen"])
def test_wrong_arguments_of_small_calls_are_refused(name):
    layer = fastrnn.LSTM(5, 18, rng=0)
    call = layer if name == "layer" else layer.frozen()
    x, h = np.ones((4, 3, 5), np.float32), np.zeros((1, 3, 18), np.float32)
    for wrong, error in (
        ({"x": x.astype(float)}, TypeError),
        ({"x": x[..., :4]}, ValueError),
        ({"state": h}, TypeError),
        ({"state": (h, h[:, :2])}, ValueError),
        ({"state": (h, h.astype(float))}, TypeError),
        ({"state": (h, h, h)}, TypeError),
        ({"lengths": [1, 2]}, ValueError),
        ({"lengths": [1, 2, 5]}, ValueError),
        ({"lengths": [1, 2, -1]}, ValueError),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError),
        ({"lengths": [True, True, True]}, TypeError),
        ({"reset": np.zeros((4, 2), bool)}, ValueError),
    ):
        with pytest.raises(error, match="expected"):
            call(**{"x": x, **wrong})
    assert_equal(both(call(x, (None, h))), both(call(x)))


def test_what_changes_in_the_layer_is_seen_after_refresh():
    layer, x = fastrnn.GRU(4, 9, rng=0), np.ones((6, 2, 4), np.float32)
    frozen = layer.frozen()
    before, stream = both(frozen(x)), frozen.stream(2)
    layer.flat_params *= 2
    layer.zoneout = 0.5
    assert_equal(both(frozen(x)), before)
    assert_equal((frozen.stream(2).run(x),), (stream.run(x),))
    frozen.refresh()
    agree("refreshed", both(frozen(x))[0], layer(x)[0], 2e-6)
    stream.reset()
    agree("a stream keeps its weights", stream.run(x), before[0], 2e-6)
    stream.refresh()
    stream.reset()
    agree("a stream after refresh", stream.run(x), layer(x)[0], 2e-6)


def test_streams_and_copies_share_the_panels():
    frozen = fastrnn.LSTM(4, 9, rng=0).frozen()
    assert frozen.stream().packed is frozen.stream(3).packed is copy.copy(frozen)._packed.weights
    x = np.ones((6, 3, 4), np.float32)
    agree("stream", frozen.stream(3).run(x), frozen(x)[0], 2e-6)
    for other in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen), copy.copy(frozen)):
        assert_equal(both(other(x)), both(frozen(x)))
    assert repr(frozen) == "LSTM(4, 9).frozen()"
    assert isinstance(frozen.layer, fastrnn.LSTM)


def test_layers_that_have_no_streams_are_frozen_all_the_same():
    frozen = fastrnn.GRU(4, 9, bidirectional=True, rng=0).frozen()
    with pytest.raises(ValueError, match="a stream has no end to start at"):
        frozen.stream()
    with pytest.raises(TypeError, match="expected an RNN, GRU or LSTM to freeze, got Linear"):
        fastrnn.Frozen(fastrnn.Linear(3, 4))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_compressed_weights(kind, weights):
    layer, rng = kind(20, 40, 2, bidirectional=True, rng=0), np.random.default_rng(1)
    layer.compress(weights)
    frozen, held = layer.frozen(), with_stored_weights(layer, kind, {"bidirectional": True})
    for T, B in ((1, 1), (6, 3), (30, 40)):
        x = rng.standard_normal((T, B, 20), np.float32)
        agree("compressed", frozen(x)[0], held(x)[0], 2e-5)
    layer.params["weight_hh_l0"][0, 0] = np.nan
    with pytest.raises(ValueError, match=f"expected finite weights for {weights}"):
        layer.frozen()
    with pytest.raises(ValueError, match=f"expected finite weights for {weights}"):
        frozen.refresh()
    assert np.isfinite(frozen(x)[0]).all()


def test_several_threads_may_call_it_while_it_is_refreshed():
    layer, rng = fastrnn.LSTM(12, 48, bidirectional=True, rng=0), np.random.default_rng(1)
    xs = [rng.standard_normal((T, 3, 12), np.float32) for T in (1, 5, 30, 120)]
    frozen, weights = layer.frozen(), layer.flat_params.copy()
    old = [both(frozen(x)) for x in xs]
    layer.flat_params[...] = 2 * weights
    new = [both(layer.frozen()(x)) for x in xs]
    wrong, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            for x, *expected in zip(xs, old, new, strict=True):
                y = both(frozen(x))
                if not any(all(np.array_equal(a, b) for a, b in zip(y, each, strict=True)) for each in expected):
                    wrong.append(x.shape)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        layer.flat_params[...] = weights if turn % 2 else 2 * weights
        frozen.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
