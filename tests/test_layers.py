"""Layers against the NumPy reference: outputs, states and every gradient, over what a layer can be asked to do."""

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, engine, reference
from fastrnn.engine.dropout import NO_MASKS

from layer_cases import CELLS, STACKS, TOLERANCE, assert_same_as_reference, case
from states import agree, as_tuple, assert_equal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_is_what_the_reference_is(cell, stack, dtype):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(len(cell) + len(stack))
    layer = kind(4, 6, **options, **STACKS[stack], dtype=dtype, rng=rng)
    for variant in ({}, {"ragged": True}, {"reset": True}, {"ragged": True, "reset": True, "one_hot": True}):
        assert_same_as_reference(layer, *case(layer, rng, **variant), rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden_size", [1, 3, 8, 17, 33, 64, 70])
@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_every_size_of_panel_and_tile_is_right(cell, hidden_size, dtype):
    kind, options = CELLS[cell]
    if "proj_size" in options and hidden_size <= options["proj_size"]:
        pytest.skip("a projection is smaller than the hidden size")
    rng = np.random.default_rng(hidden_size)
    layer = kind(5, hidden_size, **options, dtype=dtype, rng=rng)
    for B in (1, 2, 3, 4, 7, 9, 20):
        assert_same_as_reference(layer, *case(layer, rng, T=5, B=B, ragged=B % 2 == 0), rng)


@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set_is_right(cell, instructions):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(3)
    for dtype in ("float32", "float64"):
        layer = kind(6, 21, **options, bidirectional=True, dtype=dtype, rng=rng)
        for B in (1, 5, 11):
            assert_same_as_reference(layer, *case(layer, rng, B=B, ragged=True, reset=True), rng)


@pytest.mark.parametrize(("cell", "most"), [("RNN", 3.6e-7), ("GRU", 3.1e-7), ("LSTM", 1.65e-7)])
def test_sums_over_wide_inputs_are_sums_of_shorter_ones(cell, most, instructions):
    """Root mean square of the error; summed one after the other it is 4.1, 3.6 and 1.9e-7."""
    layer, exact = (getattr(fastrnn, cell)(1024, 64, rng=0, dtype=dtype) for dtype in ("float32", "float64"))
    exact.load_state_dict({name: array.astype(float) for name, array in layer.params.items()})
    x = np.random.default_rng(0).standard_normal((50, 16, 1024)).astype(np.float32)
    error = layer(x)[0] - exact(x.astype(float))[0]
    assert np.sqrt((error**2).mean()) < most


@pytest.mark.parametrize("sizes", [(513, 20), (1024, 7), (20, 513), (700, 600), (769, 16)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_part_of_a_long_sum_is_in_it(cell, sizes):
    kind, options = CELLS[cell]
    layer, rng = kind(*sizes, rng=0, dtype="float64", **options), np.random.default_rng(1)
    for x in (rng.standard_normal((6, 9, sizes[0])), rng.standard_normal((40, 1, sizes[0]))):
        y, _ = layer(x)
        expected, *_ = reference.forward(layer, x)
        np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_long_sequences_cross_chunk_borders(cell):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(1)
    layer = kind(3, 40, **options, bidirectional=True, dtype="float64", rng=rng)
    assert_same_as_reference(layer, *case(layer, rng, T=700, B=4, ragged=True), rng)
    assert_same_as_reference(layer, *case(layer, rng, T=2500, B=1), rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_short_calls_are_what_the_reference_is(cell, num_layers, batch_first, dtype):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(2)
    layer = kind(5, 13, num_layers, **options, batch_first=batch_first, dtype=dtype, rng=rng)
    assert layer._small is not None
    for T, B in ((1, 1), (1, 4), (4, 1), (2, 2), (3, 1), (5, 3), (1, 16), (16, 1), (2, 9)):
        x, state, _ = case(layer, rng, T=T, B=B)
        if batch_first:
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        y, final = layer(x, state)
        y_ref, final_ref, _ = reference.forward(layer, x, state)
        agree("y", y, y_ref, TOLERANCE[dtype])
        for ours, theirs in zip(as_tuple(final), as_tuple(final_ref), strict=True):
            agree("state", ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_large_weights_whose_gradients_are_made_for_many_rows_at_once(cell):
    kind, options = CELLS[cell]
    rng = np.random.default_rng(1)
    sizes = (520, 530) if kind is fastrnn.RNN else (260, 300)
    layer = kind(*sizes, **{**options, **({"proj_size": 270} if "proj" in cell else {})}, dtype="float64", rng=rng)
    assert_same_as_reference(layer, *case(layer, rng, T=7, B=70, ragged=True), rng)


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i4", ">u8", list)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("options", [{"reverse": True}, {"bidirectional": True, "batch_first": True}])
def test_reference_takes_what_a_layer_takes(options, kind):
    rng = np.random.default_rng(1)
    layer = fastrnn.GRU(4, 6, 2, **options, rng=rng)
    x, state, keywords = case(layer, rng, ragged=True, reset=True, one_hot=True)
    if layer.batch_first:
        x, keywords["reset"] = x.T, keywords["reset"].T
    given = {name: array.tolist() if kind is list else array for name, array in keywords.items()}
    if kind is not list:
        given["lengths"] = keywords["lengths"].astype(kind)
    for one_hot in (True, False):
        same = given_x = rng.normal(size=(*x.shape, 4)).astype(np.float32)
        if one_hot:
            same, given_x = x, x.tolist() if kind is list else x.astype(kind)
        y, h, tape = layer.forward(given_x, state, **given)
        y_ref, h_ref, tape_ref = reference.forward(layer, given_x, state, **given)
        np.testing.assert_array_equal(y, layer.forward(same, state, **keywords)[0])
        agree("y", y, y_ref, TOLERANCE["float32"])
        agree("h", h, h_ref, TOLERANCE["float32"])
        layer.zero_grad()
        layer.backward(tape, None, h)
        for name, grad in reference.backward(layer, tape_ref, None, h)[2].items():
            agree(name, layer.grads[name], grad, 4 * TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": np.zeros((7, 5), "m8[s]")}, TypeError),
        ({"x": np.zeros((7, 5), bool)}, TypeError),
        ({"x": np.full((7, 5), 9, np.int8), "lengths": [7, 0, 2, 3, 4]}, ValueError),
        ({"x": np.full((7, 5), 2**63 + 5, np.uint64), "lengths": [7, 0, 2, 3, 4]}, ValueError),
        ({"lengths": np.zeros(5, "m8[s]")}, TypeError),
        ({"lengths": [True] * 5}, TypeError),
        ({"lengths": np.array([2**63 + 5, 0, 1, 2, 3], np.uint64)}, ValueError),
        ({"lengths": [2**70, 0, 1, 2, 3]}, TypeError),
    ],
)
def test_reference_refuses_what_a_layer_refuses(change, error):
    layer = fastrnn.GRU(4, 6, rng=0)
    with pytest.raises(error) as refused:
        layer.forward(**{"x": np.zeros((7, 5, 4), np.float32), **change})
    with pytest.raises(error) as also_refused:
        reference.forward(layer, **{"x": np.zeros((7, 5, 4), np.float32), **change})
    assert str(refused.value) == str(also_refused.value)


def test_short_calls_see_weights_that_changed():
    layer = fastrnn.GRU(3, 4, rng=0)
    x, h = np.ones((1, 1, 3), np.float32), np.zeros((1, 1, 4), np.float32)
    before = layer(x, h)[0]
    layer.params["weight_ih_l0"] *= 2
    after = layer(x, h)[0]
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, reference.forward(layer, x, h)[0], atol=1e-6)


def test_initial_state_may_lie_any_distance_from_y():
    """Two rows of h(t-1), one in h0 and one in y, have a constant distance: not one that BLAS could take."""
    try:
        far = np.empty(2**31 + 2**10, np.float32)  # never touched but at its ends
    except MemoryError:
        pytest.skip("no address space of 8 GB")
    layer = fastrnn.RNN(3, 4, rng=0)
    x = np.random.default_rng(1).standard_normal((2, 1, 3), dtype=np.float32)
    h0 = np.full((1, 1, 4), 0.5, np.float32)
    y = max((far[:8], far[-8:]), key=lambda end: abs(h0.ctypes.data - end.ctypes.data)).reshape(2, 1, 4)
    (shard,) = _core.shards(2, 1, None, 1)
    layer_pass = _core.LayerPass(
        layer.spec.cell.number, False, layer.weights[0], layer.spec.kernel_options, shard, 0, False,
        x, y, (h0,), (np.empty_like(h0),), None, NO_MASKS,
    )  # fmt: skip
    assert abs(layer_pass.h0.ctypes.data - y.ctypes.data) > 2**32
    layer_pass.save()
    layer_pass.forward()
    dy, dh = np.ones((2, 1, 4), np.float32), np.zeros((1, 1, 4), np.float32)
    layer_pass.backward(dy, None, (dh,), (dh,), layer.gradients[0])

    same = fastrnn.RNN(3, 4, rng=0)
    _, _, tape = same.forward(x, h0)
    same.backward(tape, dy)
    np.testing.assert_array_equal(layer.grads["weight_hh_l0"], same.grads["weight_hh_l0"])


@pytest.mark.parametrize("make", [lambda: fastrnn.LSTM(2**40, 2**40), lambda: fastrnn.Linear(2**33, 2**33)])
def test_parameters_beyond_any_memory_are_refused(make):
    with pytest.raises(ValueError, match="expected parameters of at most"):
        make()


@pytest.mark.parametrize("options", [{"clip": 10**400}, {"nonlinearity": ("elu", 10**400)}], ids=list)
def test_numbers_that_no_float_can_hold_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        fastrnn.RNN(2, 3, **options)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"input_dropout": 0.5}], ids=str)
@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_a_backward_pass_without_dx_has_the_same_other_gradients(cell, checkpoint, options):
    layer = cell(3, 8, rng=0, **options)
    x = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    y, _, tape = layer.forward(x, checkpoint=checkpoint)
    both = []
    for wants_dx in (True, False):
        layer.zero_grad()
        dx, dh = engine.backward(tape, y, None, layer.gradients, wants_dx)
        assert (dx is not None) == wants_dx
        both.append([*as_tuple(dh), *(array.copy() for array in layer.grads.values())])
    assert_equal(*both)


@pytest.mark.parametrize("left_out", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "all"])
@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ({}, {}),
        ({"num_layers": 2, "bidirectional": True}, {"ragged": True}),
        ({"weight_dropout": 0.4}, {"B": 70}),
        ({}, {"one_hot": True, "B": 70}),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_gradients_that_are_not_wanted_are_left_out_of_a_backward_pass(cell, options, keywords, left_out):
    kind, own = CELLS[cell]
    layer, rng = kind(40, 70, **own, **options, rng=0), np.random.default_rng(0)
    x, state, call = case(layer, rng, **keywords)
    for checkpoint in (None, 3):
        y, final, tape = layer.forward(x, state, **call, checkpoint=checkpoint)
        found = []
        for skip in ((), (left_out,)):
            layer.zero_grad()
            wanted = [
                tuple(
                    None if name in skip or ("all" in skip and place < 5) else array
                    for place, (name, array) in enumerate(zip(engine.ARRAYS, arrays, strict=True))
                )
                for arrays in layer.gradients
            ]
            dx, dstate = engine.backward(tape, y, final, wanted)
            found.append([*([] if dx is None else [dx]), *as_tuple(dstate)])
            for name, array in layer.grads.items():
                left = any(name.startswith(each) or each == "all" for each in skip)
                assert (np.abs(array).max() == 0) == left, name
                if not skip:
                    found.append(array.copy())
                elif not left:
                    np.testing.assert_array_equal(array, found[1 + list(layer.grads).index(name)])
        assert_equal(found[0], found[-1])
