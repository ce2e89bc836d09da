"""What training drops at random: DropConnect, variational dropout, zoneout; against the reference and by what it is."""

import fastrnn
import numpy as np
import pytest
from fastrnn import interchange, reference
from fastrnn.engine import forward_pass, tuning
from fastrnn.engine.dropout import StepMask, _mixed

from layer_cases import DROPOUTS, TOLERANCE, assert_same_as_reference, case
from same_bits import assert_same_bits_in_segments, assert_same_for_any_number_of_threads, segments
from states import agree, as_tuple
from streams import STEPS, in_pieces, with_stored_weights

CELLS = {
    "rnn": (fastrnn.RNN, {}),
    "rnn relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn clip": (fastrnn.RNN, {"clip": 0.4}),
    "gru": (fastrnn.GRU, {}),
    "gru reset before": (fastrnn.GRU, {"reset_after": False}),
    "gru reset before, clip": (fastrnn.GRU, {"reset_after": False, "clip": 0.4}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm projected": (fastrnn.LSTM, {"proj_size": 5}),
    "lstm peephole, coupled": (fastrnn.LSTM, {"peephole": True, "coupled": True}),
}
ZONEOUT = {"zoneout": 0.25, "zoneout_cell": 0.4}

every_cell = pytest.mark.parametrize("cell", CELLS)
three_cells = pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])


def test_masks_are_made_of_the_published_numbers_of_splitmix64():
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of the seed 1234567
    assert _mixed(np.arange(1, 4, dtype=np.uint64), 1234567).tolist() == numbers


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("p", [0.3, 0.49999, 1e-5])
def test_mask_is_where_a_part_of_the_numbers_is_below_p(p, bits):
    mask = StepMask(5, p, 3, 70, bits)
    words = -(-70 * bits // 64)
    numbers = _mixed(np.arange(400 * 3 * words, dtype=np.uint64), 5).reshape(400, 3, words)
    parts = numbers.view(f"u{bits // 8}")[..., :70]
    np.testing.assert_array_equal(mask.whole(400), parts < np.rint(p * 2**bits))


def layer_of(cell, *args, drops=(DROPOUTS, ZONEOUT), **options):
    kind, own = CELLS[cell]
    given = {name: p for each in drops for name, p in each.items() if kind is fastrnn.LSTM or name != "zoneout_cell"}
    return kind(*args, **own, **given, **options)


@every_cell
def test_training_with_all_dropout_is_what_the_reference_is(cell, instructions):
    rng = np.random.default_rng(3)
    for dtype in ("float32", "float64"):
        layer = layer_of(cell, 6, 21, num_layers=2, bidirectional=True, dropout=0.2, dtype=dtype, rng=rng)
        for B in (1, 5, 11):
            assert_same_as_reference(layer, *case(layer, rng, B=B, ragged=True, reset=True), rng)


@every_cell
def test_dropout_is_right_in_batches_that_are_cut_and_over_many_chunks_of_steps(cell):
    rng = np.random.default_rng(4)
    layer = layer_of(cell, 5, 64, dtype="float64", rng=rng)
    assert tuning.shard_count(layer.spec.step_work, 60, 70) > 1
    assert_same_as_reference(layer, *case(layer, rng, T=60, B=70, ragged=True, reset=True), rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_cell
def test_inference_drops_nothing_and_takes_the_mean_of_zoneout(cell, dtype):
    rng = np.random.default_rng(5)
    layer = layer_of(cell, 6, 21, num_layers=2, dtype=dtype, rng=rng)
    for T, B in ((1, 1), (4, 1), (2, 5), (9, 3), (7, 40)):  # the first are short calls
        x, state, ragged = case(layer, rng, T, B, ragged=True, reset=True)
        for keywords in ({}, ragged):
            y, final = layer(x, state, **keywords)
            y_ref, final_ref, _ = reference.forward(layer, x, state, **keywords)
            agree("y", y, y_ref, TOLERANCE[dtype])
            for ours, theirs in zip(as_tuple(final), as_tuple(final_ref), strict=True):
                agree("state", ours, theirs, TOLERANCE[dtype])


@every_cell
def test_inference_with_dropout_is_that_of_a_plain_layer(cell):
    dropping = layer_of(cell, 6, 21, drops=(DROPOUTS,), rng=0)
    plain = layer_of(cell, 6, 21, drops=(), rng=0)
    x = np.random.default_rng(1).standard_normal((9, 5, 6), dtype=np.float32)
    np.testing.assert_array_equal(dropping(x)[0], plain(x)[0])


@three_cells
def test_each_pass_draws_anew_and_the_same_rng_draws_the_same(kind):
    x = np.random.default_rng(1).standard_normal((9, 5, 6), dtype=np.float32)
    for name, p in (*DROPOUTS.items(), ("zoneout", 0.25)):
        a, b = (kind(6, 21, **{name: p}, rng=7) for _ in range(2))
        first, second = (a.forward(x)[0] for _ in range(2))
        assert not np.array_equal(first, second), name
        np.testing.assert_array_equal(first, b.forward(x)[0])


@three_cells
def test_the_same_bits_for_any_number_of_threads(kind, restore_threads):
    own = ZONEOUT if kind is fastrnn.LSTM else {"zoneout": 0.25}
    layer = kind(24, 96, num_layers=2, bidirectional=True, **DROPOUTS, **own, rng=0)
    x = np.random.default_rng(1).standard_normal((20, 67, 24), dtype=np.float32)
    assert_same_for_any_number_of_threads(layer, x)


@pytest.mark.parametrize("name", [*DROPOUTS, *ZONEOUT, "all"])
@every_cell
def test_segments_that_run_forward_again_meet_the_same_masks(cell, name):
    drops = (DROPOUTS, ZONEOUT) if name == "all" else ({name: 0.3},)
    rng = np.random.default_rng(9)
    for stack in ({"num_layers": 2}, {"bidirectional": True, "batch_first": True}):
        layer = layer_of(cell, 6, 21, drops=drops, **stack, rng=rng)
        for B in (1, 3, 19):
            x, state, ragged = case(layer, rng, 30, B, ragged=True)
            x = x.swapaxes(0, 1) if layer.batch_first else x
            for keywords in ({}, ragged):
                for count in (1, 4, 1000):
                    assert_same_bits_in_segments(layer, x, state, keywords, checkpoint=count)


@three_cells
def test_layers_that_drop_are_not_pipelined_but_those_of_inference_are(kind):
    rng = np.random.default_rng(10)
    x = rng.standard_normal((500, 3, 64), dtype=np.float32)
    for name, p in (*DROPOUTS.items(), ("zoneout", 0.25)):
        layer = kind(64, 64, 3, **{name: p}, rng=rng)
        assert not layer.forward(x)[2].is_pipelined
        tape = assert_same_bits_in_segments(layer, x, None, {}, checkpoint=5)
        assert kind is fastrnn.RNN or min(segments(tape)) > 1
        assert forward_pass.is_pipelined(layer.spec, tape.batch, False)
        agree(name, layer(x)[0], reference.forward(layer, x)[0], TOLERANCE["float32"])


@every_cell
def test_streams_take_the_mean_of_zoneout(cell):
    rng = np.random.default_rng(11)
    for dtype, H, B in (("float32", 21, 1), ("float64", 21, 5), ("float32", 37, 11)):
        layer = layer_of(cell, 6, H, num_layers=2, dtype=dtype, rng=rng)
        x, state, _ = case(layer, rng, STEPS, B)
        stream = layer.stream(B)
        stream.state = state
        y, final = layer(x, state)
        agree("y", in_pieces(stream, x), y, TOLERANCE[dtype])
        for ours, theirs in zip(as_tuple(stream.state), as_tuple(final), strict=True):
            agree("state", ours, theirs, TOLERANCE[dtype])


@every_cell
def test_rows_of_a_stream_that_sit_out_do_not_move_in_zoneout(cell):
    rng = np.random.default_rng(12)
    layer = layer_of(cell, 6, 21, num_layers=2, rng=rng)
    x, _, _ = case(layer, rng, STEPS, 4)
    active = rng.random((STEPS, 4)) < 0.6
    y = in_pieces(layer.stream(4), x, active)
    for b in range(4):
        agree("y", y[active[:, b], b], layer(x[active[:, b], b])[0], TOLERANCE["float32"])


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@every_cell
def test_compressed_streams_take_the_mean_of_zoneout(cell, weights):
    rng = np.random.default_rng(13)
    kind, own = CELLS[cell]
    layer = layer_of(cell, 6, 37, rng=rng)
    zoneout = {name: getattr(layer, name) for name in ZONEOUT if hasattr(layer, name)}
    layer.compress(weights)
    x, _, _ = case(layer, rng, STEPS, 3)
    expected = with_stored_weights(layer, kind, own | zoneout)(x)[0]
    agree("y", layer.stream(3).run(x), expected, TOLERANCE["float32"])


@three_cells
def test_the_search_for_values_that_are_not_finite_goes_through_dropout_and_leaves_gradients(kind):
    layer = kind(6, 21, 2, **DROPOUTS, zoneout=0.25, rng=0)
    y, _, tape = layer.forward(np.ones((9, 5, 6), np.float32))
    layer.backward(tape, y)
    before = [g.copy() for g in layer.grads.values()]
    assert fastrnn.training.first_nonfinite(tape, np.ones_like(y)) is None
    for g, was in zip(layer.grads.values(), before, strict=True):
        np.testing.assert_array_equal(g, was)


def test_backward_may_take_a_tape_twice():
    layer = fastrnn.LSTM(6, 21, **DROPOUTS, **ZONEOUT, rng=0)
    y, _, tape = layer.forward(np.ones((9, 5, 6), np.float32))
    first, second = (layer.backward(tape, y)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


# ---------------------------------------------------------------------------------------------------------------------
# By what each is
# ---------------------------------------------------------------------------------------------------------------------


@three_cells
def test_dropped_weights_get_no_gradient_and_what_was_there_stays(kind):
    layer = kind(6, 40, weight_dropout=0.3, rng=0)
    y, _, tape = layer.forward(np.random.default_rng(1).standard_normal((9, 5, 6), dtype=np.float32))
    mask = tape.masks[0][0].weight_hh
    assert 0.25 < (mask == 0).mean() < 0.35
    np.testing.assert_allclose(mask[mask > 0], 1 / 0.7, rtol=1e-6)
    layer.grads["weight_hh_l0"][...] = 2
    layer.backward(tape, np.ones_like(y))
    assert (layer.grads["weight_hh_l0"][mask == 0] == 2).all()
    assert (layer.grads["weight_hh_l0"][mask > 0] != 2).mean() > 0.9


@three_cells
def test_a_dropped_input_gets_no_gradient_at_any_step(kind):
    layer = kind(30, 8, bidirectional=True, input_dropout=0.4, batch_first=True, rng=0)
    x = np.random.default_rng(1).standard_normal((5, 9, 30), dtype=np.float32)
    before = x.copy()
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, np.ones_like(y))
    dropped = tape.masks[0][0].x == 0
    assert 0.3 < dropped.mean() < 0.5
    np.testing.assert_array_equal((dx == 0).all(axis=1), dropped)
    np.testing.assert_array_equal((dx == 0).any(axis=1), dropped)
    np.testing.assert_array_equal(x, before)


@three_cells
def test_without_any_of_the_state_each_step_is_a_first_one_but_for_what_is_no_product(kind):
    layer, plain = (kind(6, 8, recurrent_dropout=p, dtype="float64", rng=0) for p in (1, 0))
    x = np.random.default_rng(1).standard_normal((2, 5, 6))
    y, _, _ = layer.forward(x)
    first = plain(x[1:])[0][0]
    if kind is fastrnn.RNN:
        np.testing.assert_allclose(y[1], first, atol=1e-14)
    elif kind is fastrnn.GRU:  # z h(t-1) is left
        z = layer.forward(x)[2].gates()["z"][1]
        np.testing.assert_allclose(y[1], first + z * y[0], atol=1e-14)
    else:
        gates = layer.forward(x)[2].gates()
        np.testing.assert_allclose(gates["c"][1], gates["f"][1] * gates["c"][0] + gates["i"][1] * gates["g"][1])


@three_cells
def test_units_in_zoneout_keep_their_value_to_the_bit(kind):
    layer = kind(6, 40, zoneout=0.3, rng=0)
    y, _, tape = layer.forward(np.random.default_rng(1).standard_normal((50, 5, 6), dtype=np.float32))
    kept = tape.masks[0][0].zoneout_h.astype(bool)
    assert 0.27 < kept.mean() < 0.33
    before = np.concatenate([np.zeros_like(y[:1]), y[:-1]])
    np.testing.assert_array_equal(y[kept], before[kept])
    assert (y[~kept] != before[~kept]).all()


def test_cells_in_zoneout_keep_their_value_and_h_sees_the_new_one():
    layer = fastrnn.LSTM(6, 40, zoneout_cell=0.3, dtype="float64", rng=0)
    y, _, tape = layer.forward(np.random.default_rng(1).standard_normal((50, 5, 6)))
    gates, kept = tape.gates(), tape.masks[0][0].zoneout_c.astype(bool)
    before = np.concatenate([np.zeros_like(y[:1]), gates["c"][:-1]])
    np.testing.assert_array_equal(gates["c"][kept], before[kept])
    new = gates["f"] * before + gates["i"] * gates["g"]
    np.testing.assert_allclose(gates["c"][~kept], new[~kept], atol=1e-14)
    np.testing.assert_allclose(y, gates["o"] * np.tanh(new), atol=1e-14)


@three_cells
def test_all_units_in_zoneout_keep_the_initial_state_in_training_and_in_inference(kind):
    layer = kind(6, 8, zoneout=1, **({"zoneout_cell": 1} if kind is fastrnn.LSTM else {}), rng=0)
    x = np.random.default_rng(1).standard_normal((9, 5, 6), dtype=np.float32)
    state = tuple(np.full((1, 5, 8), value, np.float32) for value in (0.5, 0.25)[: len(layer.spec.states)])
    given = state if len(state) == 2 else state[0]
    y, final, tape = layer.forward(x, given)
    for each, end in ((y, final), layer(x, given)):
        assert (each == 0.5).all()
        for before, after in zip(state, as_tuple(end), strict=True):
            np.testing.assert_array_equal(before, after)
    dx, dstate = layer.backward(tape, np.ones_like(y))
    assert not dx.any()
    np.testing.assert_array_equal(as_tuple(dstate)[0], np.full((1, 5, 8), 9, np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# What does not go together
# ---------------------------------------------------------------------------------------------------------------------


def test_indices_cannot_be_dropped_in_part():
    layer = fastrnn.RNN(6, 8, input_dropout=0.5, rng=0)
    ids = np.zeros((3, 2), int)
    with pytest.raises(ValueError, match=r"expected x in vectors for input_dropout = 0\.5, got integer x"):
        layer.forward(ids)
    assert layer(ids)[0].shape == (3, 2, 8)


@pytest.mark.parametrize("name", [*DROPOUTS, "zoneout", "zoneout_cell"])
@pytest.mark.parametrize(("bad", "error"), [(1.5, ValueError), (-0.1, ValueError), ("half", TypeError)])
def test_a_probability_lies_between_zero_and_one(name, bad, error):
    with pytest.raises(error, match=f"expected {name}"):
        fastrnn.LSTM(6, 8, **{name: bad})


@pytest.mark.parametrize("name", [*DROPOUTS, "zoneout", "zoneout_cell"])
def test_a_saved_layer_has_its_dropout(name, tmp_path):
    layer = fastrnn.LSTM(6, 8, **{name: 0.25}, rng=0)
    interchange.save_safetensors(tmp_path / "layer", layer)
    assert getattr(interchange.load_safetensors(tmp_path / "layer"), name) == 0.25


@pytest.mark.parametrize("name", [*DROPOUTS, "zoneout", "zoneout_cell"])
def test_what_torch_cannot_train_it_does_not_get(name):
    pytest.importorskip("torch", reason="torch is what the layer is to go to, and is not installed")
    with pytest.raises(ValueError, match=f"torch cannot express {name}=0.25"):
        interchange.to_torch(fastrnn.LSTM(6, 8, **{name: 0.25}, rng=0))


@pytest.mark.parametrize("name", ["zoneout", "zoneout_cell"])
def test_onnx_does_not_get_a_mean_that_it_cannot_express(name):
    pytest.importorskip("onnx", reason="onnx is what the layer is to go to, and is not installed")
    with pytest.raises(ValueError, match=f"ONNX cannot express {name}=0.25"):
        interchange.to_onnx(fastrnn.LSTM(6, 8, **{name: 0.25}, rng=0))
    interchange.to_onnx(fastrnn.LSTM(6, 8, **DROPOUTS, rng=0))


@pytest.mark.parametrize("bits", [16, 32])
def test_mask_of_some_steps_is_that_part_of_the_whole(bits):
    mask = StepMask(seed=5, p=0.3, B=4, n=37, bits=bits)
    whole = mask.whole(5000)  # many blocks
    assert whole.shape == (5000, 4, 37)
    steps, rows = np.arange(1200, 3400), np.array([3, 0])
    np.testing.assert_array_equal(mask.at(steps[:, None], rows), whole[1200:3400][:, rows])
    own_steps = np.array([[7, 4999], [0, 12]])  # a step of its own for each row
    np.testing.assert_array_equal(mask.at(own_steps, rows), whole[own_steps, rows])


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_masks_of_steps_are_as_frequent_as_asked_in_every_unit_step_and_row(p, bits):
    whole = StepMask(seed=1 << 62, p=p, B=50, n=60, bits=bits).whole(400)
    for axes in ((0, 1), (0, 2), (1, 2)):
        counted = 400 * 50 * 60 / np.delete(whole.shape, axes)[0]
        assert np.abs(whole.mean(axes) - p).max() <= 5 * np.sqrt(p * (1 - p) / counted)


def test_neighbours_in_a_mask_of_steps_and_masks_of_other_seeds_are_independent():
    a, b = (StepMask(seed, 0.5, 50, 60, 16).whole(400).astype(float) - 0.5 for seed in (1, 2))
    pairs = [(a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1]), (a[..., 1:], a[..., :-1])]
    for one, other in pairs:
        assert abs((4 * one * other).mean()) < 5 / np.sqrt(one.size)


@three_cells
def test_gradients_of_dropped_weights_are_added_to_those_that_are_there(kind):
    layer = kind(3, 5, weight_dropout=0.5, rng=0)
    y, _, tape = layer.forward(np.ones((4, 2, 3), np.float32))
    layer.backward(tape, np.ones_like(y))
    once = layer.grads["weight_hh_l0"].copy()
    layer.zero_grad()
    layer.grads["weight_hh_l0"][...] = 1
    layer.backward(tape, np.ones_like(y))
    np.testing.assert_allclose(layer.grads["weight_hh_l0"], 1 + once, rtol=1e-6)


@pytest.mark.parametrize("options", [{"memory_limit": 2}, {"state": np.zeros((9, 9), np.float32)}], ids=str)
@pytest.mark.parametrize(
    "drops", [{"dropout": 0.5, "num_layers": 2}, {"zoneout": 0.5}, {"weight_dropout": 0.5}], ids=str
)
def test_a_pass_that_is_refused_leaves_the_generator_as_it_was(options, drops):
    layer, x = fastrnn.GRU(3, 4, rng=0, **drops), np.ones((40, 2, 3), np.float32)
    before = layer._rng.bit_generator.state
    with pytest.raises(ValueError, match="expected"):
        layer.forward(x, **options)
    assert layer._rng.bit_generator.state == before
    layer.forward(x)
    assert layer._rng.bit_generator.state != before
