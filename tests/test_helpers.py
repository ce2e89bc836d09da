"""Around the layers: ragged batches from lists, initial values by name, and what the gates did."""

import fastrnn
import numpy as np
import pytest
from fastrnn import reference


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_and_unpadding_are_inverses(batch_first):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, 3)) for length in (4, 0, 7, 1)]
    x, lengths = fastrnn.pad_sequence(sequences, batch_first=batch_first, padding_value=9)
    assert x.shape == ((4, 7, 3) if batch_first else (7, 4, 3))
    assert x.flags.c_contiguous
    assert (x == 9).sum() == 3 * (4 * 7 - 12)
    for before, after in zip(sequences, fastrnn.unpad_sequence(x, lengths, batch_first=batch_first), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("padding_value", [None, "0", [1, 2], 1j, 10**400])
def test_padding_that_is_no_number_is_refused(padding_value):
    with pytest.raises(TypeError, match="expected padding_value to be a number"):
        fastrnn.pad_sequence([np.zeros((2, 2))], padding_value=padding_value)


def test_indices_are_padded_too():
    x, lengths = fastrnn.pad_sequence([np.array([1, 2]), np.array([3])])
    assert x.tolist() == [[1, 3], [2, 0]]
    assert lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("sequences", "error"),
    [
        ([], ValueError),
        ([np.zeros(())], ValueError),
        ([np.zeros((2, 3)), np.zeros((2, 4))], ValueError),
        ([np.zeros((2, 3)), np.zeros((2, 3), np.float32)], TypeError),
    ],
)
def test_sequences_that_do_not_fit_together_are_refused(sequences, error):
    with pytest.raises(error, match="expected"):
        fastrnn.pad_sequence(sequences)


@pytest.mark.parametrize(
    ("lengths", "error"), [([1.0, 2.0], TypeError), ([1], ValueError), ([1, 6], ValueError), ([-1, 2], ValueError)]
)
def test_lengths_that_do_not_fit_are_refused(lengths, error):
    with pytest.raises(error, match="expected lengths"):
        fastrnn.unpad_sequence(np.zeros((5, 2, 3)), np.array(lengths))


def blocks(layer, name):
    array = layer.params[name].astype(np.float64)
    return np.split(array, len(array) // layer.hidden_size)


@pytest.mark.parametrize("cell", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_orthogonal_recurrent_weights_are_so_gate_by_gate(cell):
    layer = cell(5, 12, num_layers=2, dtype="float64", rng=0)
    fastrnn.initialize(layer, rng=1)
    for gate in blocks(layer, "weight_hh_l1"):
        np.testing.assert_allclose(gate @ gate.T, np.eye(12), atol=1e-12)
    assert not layer.params["bias_ih_l0"].any()


@pytest.mark.parametrize("input_size", [2, 4, 6])  # more rows than columns, as many, fewer
def test_orthogonal_weights_are_uniform_over_all_orthogonal_matrices(input_size):
    """Then every entry is as often positive as negative, and so is the determinant of a square matrix."""
    layer, rng, n = fastrnn.RNN(input_size, 4, dtype="float64", rng=0), np.random.default_rng(0), 2000
    drawn = []
    for _ in range(n):
        fastrnn.initialize(layer, weight_ih="orthogonal", rng=rng)
        drawn.append(layer.params["weight_ih_l0"].copy())
    W, length = np.array(drawn), max(4, input_size)
    assert np.abs(W.mean(axis=0)).max() < 4 / np.sqrt(n * length)  # the variance of an entry is 1 / length
    np.testing.assert_allclose((W**2).mean(axis=0), 1 / length, rtol=0.1)
    np.testing.assert_allclose((W**4).mean(), 3 / (length * (length + 2)), rtol=0.03)
    if input_size == 4:
        assert abs((np.linalg.det(W) > 0).mean() - 0.5) < 2 / np.sqrt(n)


def test_glorot_and_uniform_weights_fill_their_ranges():
    layer = fastrnn.GRU(40, 60, rng=0)
    fastrnn.initialize(layer, weight_ih="glorot", weight_hh="uniform", bias="uniform", rng=1)
    for gate in blocks(layer, "weight_ih_l0"):
        assert 0.98 * np.sqrt(6 / 100) < np.abs(gate).max() <= np.sqrt(6 / 100)
    for name in ("weight_hh_l0", "bias_hh_l0"):
        assert 0.9 / np.sqrt(60) < np.abs(layer.params[name]).max() <= 1 / np.sqrt(60)


def test_the_forget_gate_gets_its_bias():
    layer = fastrnn.LSTM(3, 4, proj_size=2, peephole=True, rng=0)
    fastrnn.initialize(layer, forget_bias=1.0, rng=0)
    assert layer.params["bias_ih_l0"].tolist() == [0] * 4 + [1] * 4 + [0] * 8
    assert not layer.params["bias_hh_l0"].any()
    np.testing.assert_allclose(layer.params["weight_hr_l0"].std() > 0, True)


def test_the_forget_gate_has_its_bias_among_uniform_ones():
    layer = fastrnn.LSTM(3, 4, rng=0)
    fastrnn.initialize(layer, bias="uniform", forget_bias=-2.0, rng=0)
    bias = layer.params["bias_ih_l0"]
    assert bias[4:8].tolist() == [-2] * 4
    assert 0 < np.abs(bias[[0, 3, 8, 15]]).min() < np.abs(bias[[0, 3, 8, 15]]).max() <= 0.5


@pytest.mark.parametrize("weight_ih", ["glorot", "orthogonal", "uniform"])
def test_peepholes_are_uniform_whatever_the_weights_are(weight_ih):
    layer = fastrnn.LSTM(3, 400, peephole=True, rng=0)
    fastrnn.initialize(layer, weight_ih=weight_ih, rng=0)
    assert 0.98 / 20 < np.abs(layer.params["weight_peephole_l0"]).max() <= 1 / 20


def test_the_same_rng_gives_the_same_initial_values():
    layers = [fastrnn.LSTM(3, 4, rng=0) for _ in range(3)]
    for layer, seed in zip(layers, (5, 5, 6), strict=True):
        fastrnn.initialize(layer, rng=seed)
    a, b, c = (layer.params["weight_hh_l0"] for layer in layers)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("layer", "options", "error"),
    [
        (fastrnn.GRU(3, 4), {"forget_bias": 1.0}, ValueError),
        (fastrnn.LSTM(3, 4, bias=False), {"forget_bias": 1.0}, ValueError),
        (fastrnn.LSTM(3, 4), {"weight_hh": "xavier"}, ValueError),
        (fastrnn.LSTM(3, 4), {"bias": "ones"}, ValueError),
        (fastrnn.LSTM(3, 4), {"weight_ih": None}, ValueError),
        (fastrnn.LSTM(3, 4), {"forget_bias": "one"}, TypeError),
        (fastrnn.LSTM(3, 4), {"forget_bias": float("nan")}, ValueError),
        (fastrnn.LSTM(3, 4), {"forget_bias": float("-inf")}, ValueError),
    ],
)
def test_unknown_initial_values_are_refused_and_nothing_is_changed(layer, options, error):
    before = layer.state_dict()
    with pytest.raises(error, match="expected"):
        fastrnn.initialize(layer, **options)
    for name, array in before.items():
        np.testing.assert_array_equal(array, layer.params[name])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"reverse": True}, {"clip": 0.5}])
def test_gates_explain_the_output_of_an_lstm(options, ragged):
    rng = np.random.default_rng(0)
    layer = fastrnn.LSTM(3, 5, dtype="float64", rng=0, **options)
    lengths = np.array([4, 0, 7, 2]) if ragged else np.full(4, 7)
    y, _, tape = layer.forward(rng.normal(size=(7, 4, 3)), lengths=lengths if ragged else None)
    direction = int(layer.bidirectional)
    gates = tape.gates(layer.num_layers - 1, direction)
    np.testing.assert_allclose(gates["o"] * np.tanh(gates["c"]), y[:, :, 5 * direction :][:, :, :5], atol=1e-14)
    c_before = np.zeros_like(gates["c"])
    if direction or layer.reverse:
        c_before[:-1] = gates["c"][1:]
    else:
        c_before[1:] = gates["c"][:-1]
    np.testing.assert_allclose(gates["f"] * c_before + gates["i"] * gates["g"], gates["c"], atol=1e-14)
    assert not gates["f"][np.arange(7)[:, None] >= lengths].any()


def test_gates_explain_the_output_of_a_gru():
    layer = fastrnn.GRU(3, 5, dtype="float64", rng=0)
    x = np.random.default_rng(1).normal(size=(6, 40, 3))
    y, _, tape = layer.forward(x)
    gates = tape.gates()
    before = np.concatenate([np.zeros((1, 40, 5)), y[:-1]])
    np.testing.assert_allclose((1 - gates["z"]) * gates["n"] + gates["z"] * before, y, atol=1e-14)
    r = reference.activations.sigmoid(
        x @ layer.params["weight_ih_l0"][:5].T
        + before @ layer.params["weight_hh_l0"][:5].T
        + layer.params["bias_ih_l0"][:5]
        + layer.params["bias_hh_l0"][:5]
    )
    np.testing.assert_allclose(gates["r"], r, atol=1e-14)


def test_an_rnn_has_no_gates_and_a_missing_direction_is_an_error():
    _, _, tape = fastrnn.RNN(2, 3).forward(np.zeros((4, 1, 2), np.float32))
    assert tape.gates() == {}
    with pytest.raises(IndexError):
        tape.gates(0, 1)
