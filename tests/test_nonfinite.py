"""The search for the first value that is not finite, and what a training that fails says."""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.training import DivergedError, NonFinite, first_nonfinite

from layer_cases import CELLS, case

T, B, I, H = 30, 5, 3, 6
GATES = {"gru": "rzn", "gru reset before": "rzn", "lstm": "ifgo", "lstm peephole": "ifgo"}
NAN = float("nan")


def make(cell, **options):
    kind, own = CELLS[cell]
    return kind(I, H, **own, rng=0, **options)


def passed(layer, ragged=False, **how):
    x, state, keywords = case(layer, np.random.default_rng(0), T=T, B=B, ragged=ragged)
    y, _, tape = layer.forward(x, state, **keywords, **how)
    return y, tape


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_found_where_all_is_finite(cell):
    layer = make(cell, num_layers=2, bidirectional=True)
    y, tape = passed(layer, ragged=True)
    layer.grads["weight_ih_l0"][...] = 3
    assert first_nonfinite(tape, np.ones_like(y)) is None
    np.testing.assert_array_equal(layer.grads["weight_ih_l0"], 3)


@pytest.mark.parametrize("cell", GATES)
def test_gate_that_is_first_is_named(cell):
    layer = make(cell, num_layers=2)
    _, tape = passed(layer)
    (layer_pass,) = tape.layer_passes[1]
    for gate, name in reversed(list(enumerate(GATES[cell]))):
        for step, row in ((20, 4), (17, 3)):
            layer_pass.saved[step * B + row, gate * H + 2] = NAN
            assert first_nonfinite(tape) == NonFinite(f"gate {name}", 1, "forward", step, row)
        layer_pass.saved[:] = 0


@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("backwards", [False, True])
def test_state_that_grows_without_bound_is_found_where_it_overflows(backwards, checkpoint):
    layer = fastrnn.RNN(1, 1, nonlinearity=("leaky_relu", 0.5), bias=False, reverse=backwards)
    layer.params["weight_ih_l0"][...] = 1
    layer.params["weight_hh_l0"][...] = 10
    x = np.zeros((100, 2, 1), np.float32)
    lengths = np.array([100, 90])
    x[[10, 70], 1] = 1  # h = 10^n, n steps after: infinite after 39
    _, _, tape = layer.forward(x, lengths=lengths, checkpoint=checkpoint)
    step = 70 - 39 if backwards else 10 + 39
    assert first_nonfinite(tape) == NonFinite("h", 0, "reverse" if backwards else "forward", step, 1)


def test_what_comes_in_is_looked_at_first():
    layer = make("lstm", num_layers=2)
    x, (h, c), _ = case(layer, np.random.default_rng(0), T=T, B=B)
    h[1, 3, 0] = np.inf
    assert first_nonfinite(layer.forward(x, (h, c))[2]) == NonFinite("the initial state h", 1, "forward", row=3)
    c[0, 2, 1] = NAN
    assert first_nonfinite(layer.forward(x, (h, c))[2]) == NonFinite("the initial state c", 0, "forward", row=2)
    x[7, 1, 2] = -np.inf
    assert first_nonfinite(layer.forward(x, (h, c))[2]) == NonFinite("x", step=7, row=1)
    layer.params["weight_hh_l1"][0, 0] = NAN
    assert first_nonfinite(layer.forward(x, (h, c))[2]) == NonFinite("parameter weight_hh_l1")


def test_padding_may_be_what_it_is():
    layer = make("gru")
    x = np.ones((T, 2, I), np.float32)
    x[4:, 1] = NAN
    y, _, tape = layer.forward(x, lengths=np.array([T, 4]))
    assert first_nonfinite(tape, np.ones_like(y)) is None


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("cell", "what", "steps"),  # how many steps before dy
    [
        ("rnn tanh", "the pre-activation", 1),
        ("gru", "gate n", 1),
        ("gru reset before", "gate r", 0),  # dr = W_hn dn h, within the step
        ("lstm", "gate o", 1),
        ("lstm projected", "gate o", 1),
    ],
)
def test_gradient_that_overflows_is_found_at_its_step(cell, what, steps, backwards, ragged):
    layer = make(cell, num_layers=2, reverse=backwards)
    y, tape = passed(layer, ragged)
    dy = np.zeros_like(y)
    dy[20, 0] = 1e37
    layer.params["weight_hh_l1"][...] *= 1e6
    step = 20 + steps if backwards else 20 - steps
    direction = "reverse" if backwards else "forward"
    assert first_nonfinite(tape, dy) == NonFinite(f"the gradient of {what}", 1, direction, step, 0)
    dy[22, 0, 0] = np.inf
    assert first_nonfinite(tape, dy) == NonFinite("dy", step=22, row=0)


TINY = -69  # its sigmoid is 1e-30

# One step of one unit whose weights are zero: the cell, biases of the gates, h (for the LSTM h, c), dy (dh, dc), and
# the only gate whose gradient overflows. The comments give that gradient, in the order in which it is multiplied.
ALONE = {
    "gru z": (fastrnn.GRU(1, 1), {}, (1e30,), (1e10,), "gate z"),  # dh (h - n)
    "gru r": (fastrnn.GRU(1, 1), {"r": TINY, "hn": 1e30}, (0,), (1e10,), "gate r"),  # dn hn
    "gru hn": (  # dn r
        fastrnn.GRU(1, 1, activations=("relu", "tanh")), {"r": 1e30, "z": -1, "hn": 1e-30}, (0,), (1e10,), "gate n"
    ),
    "gru reset before, z": (fastrnn.GRU(1, 1, reset_after=False), {}, (1e30,), (1e10,), "gate z"),  # the same
    "gru reset before, r": (  # (W_hn dn) h
        fastrnn.GRU(1, 1, reset_after=False), {"r": -80, "W_hn": 1e34}, (1,), (1e6,), "gate r"
    ),
    "lstm i": (  # dc g
        fastrnn.LSTM(1, 1, activations=("sigmoid", "relu", "tanh")), {"g": 1e30}, (0, 0), (0, 1e10), "gate i"
    ),
    "lstm f": (fastrnn.LSTM(1, 1), {"f": TINY}, (0, 1e30), (0, 1e10), "gate f"),  # dc c(t-1)
    "lstm g": (  # dc i
        fastrnn.LSTM(1, 1, activations=("relu", "tanh", "tanh")), {"i": 1e30}, (0, 0), (0, 1e10), "gate g"
    ),
    "lstm o": (  # dh f2(c)
        fastrnn.LSTM(1, 1, activations=("sigmoid", "tanh", "relu")), {"o": TINY}, (0, 1e30), (1e10, 0), "gate o"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_only_gate_whose_gradient_overflows_is_named(case):
    layer, biases, state, gradient, what = ALONE[case]
    layer.flat_params[...] = 0
    rows = {name: row for row, name in enumerate("rzn" if layer.cell == "gru" else "ifgo")}
    for name, value in biases.items():
        if name == "W_hn":
            layer.params["weight_hh_l0"][2] = value
        else:
            layer.params["bias_hh_l0"][rows[name[-1]]] = value
    h, *c = (np.full((1, 1, 1), value, np.float32) for value in state)
    dh, *dc = (np.full((1, 1, 1), value, np.float32) for value in gradient)
    _, _, tape = layer.forward(np.zeros((1, 1, 1), np.float32), (h, *c) if c else h)
    dstate = (np.zeros_like(dh), *dc) if dc else None
    assert first_nonfinite(tape, dh, dstate) == NonFinite(f"the gradient of {what}", 0, "forward", 0, 0)


@pytest.mark.parametrize("reset_after", [False, True])
def test_candidate_comes_first_where_the_gradients_of_all_gates_of_a_gru_overflow(reset_after):
    layer = fastrnn.GRU(1, 1, bias=False, reset_after=reset_after)
    layer.params["weight_ih_l0"][:, 0] = (0, 0, 1)
    layer.params["weight_hh_l0"][:, 0] = (0, 1e20, 0)
    _, _, tape = layer.forward(np.array([0, 1], np.float32).reshape(2, 1, 1))  # h is zero before the second step
    dy = np.array([0, 1e20], np.float32).reshape(2, 1, 1)  # dh of the first step = W_hz dz = 1e40
    assert first_nonfinite(tape, dy) == NonFinite("the gradient of gate n", 0, "forward", 0, 0)


@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_gradient_that_overflows_in_a_norm_is_found_in_whatever_gate_it_is(kind):
    what = "the gradient of the pre-activation" if kind is fastrnn.RNN else "the gradient of the gates"
    found = set()
    for seed in range(200):
        layer, rng = kind(I, 4, layer_norm=True, rng=seed), np.random.default_rng(seed)
        layer.params["gain_hh_l0"] *= 10 ** rng.uniform(-2, 2)
        y, _, tape = layer.forward(rng.normal(size=(3, 1, I)).astype(np.float32))
        dy = (1e38 * 10 ** rng.uniform(-4, 0) * np.sign(rng.normal(size=y.shape))).astype(np.float32)
        place = first_nonfinite(tape, dy)  # it overflows in some places, in all or in none
        found.add(None if place is None else place.what)
    assert found == {None, what}


@pytest.mark.parametrize("checkpoint", [None, 4])
def test_gradient_that_grows_without_bound_is_found_where_it_overflows(checkpoint):
    layer = fastrnn.RNN(1, 1, nonlinearity="identity", bias=False)
    layer.params["weight_hh_l0"][...] = 10
    y, _, tape = layer.forward(np.zeros((5000, 1, 1), np.float32), checkpoint=checkpoint)
    dy = np.zeros_like(y)
    dy[4500] = 1  # da = 10^n, n steps before
    found = first_nonfinite(tape, dy)
    assert found == NonFinite("the gradient of the pre-activation", 0, "forward", 4500 - 39, 0)
    assert str(found) == "the gradient of the pre-activation, layer 0, time step 4461, batch row 0, forward direction"


def identity_stack():
    """Two layers of 60 units that hand their input on; unit j of a layer k grows tenfold a step if told so."""
    layer = fastrnn.RNN(60, 60, 2, nonlinearity="identity", bias=False)
    for k in (0, 1):
        layer.params[f"weight_ih_l{k}"][...] = np.eye(60)
        layer.params[f"weight_hh_l{k}"][...] = 0
    return layer


@pytest.mark.parametrize("checkpoint", [None, 2, 5])  # 2: segments of several chunks
def test_gradient_of_a_stack_is_searched_layer_by_layer(checkpoint):
    layer = identity_stack()
    layer.params["weight_hh_l0"][0, 0] = layer.params["weight_hh_l1"][1, 1] = 10
    y, _, tape = layer.forward(np.zeros((6000, 1, 60), np.float32), checkpoint=checkpoint)
    assert tape.is_stacked == (checkpoint is not None)
    dy = np.zeros_like(y)
    dy[5900, 0, 0] = 1
    found = NonFinite("the gradient of the pre-activation", 0, "forward", 5900 - 39, 0)
    assert first_nonfinite(tape, dy) == found
    for step in (300, 4000):  # later on the way back, but in the layer that comes first
        dy[step, 0, 1] = 1
        assert first_nonfinite(tape, dy) == found._replace(layer=1, step=step - 39)


@pytest.mark.parametrize("checkpoint", [None, 4])
def test_state_of_a_lower_layer_that_overflows_is_found(checkpoint):
    layer = identity_stack()
    layer.params["weight_hh_l0"][3, 3] = 10
    x = np.zeros((2600, 1, 60), np.float32)
    x[1500, 0, 3] = 1
    tape = layer.forward(x, checkpoint=checkpoint)[2]
    assert first_nonfinite(tape) == NonFinite("h", 0, "forward", 1500 + 39, 0)


def test_training_that_diverges_says_where_it_began():
    model = fastrnn.LanguageModel("rnn", hidden_size=8, rng=0)
    text = "to be or not to be, that is the question. " * 100
    model.fit(text, steps=1, progress=False)
    model.layer.params["weight_hh_l0"][2, 3] = NAN
    with pytest.raises(
        DivergedError, match=r"^the loss is not finite at step 0; .* it began with parameter weight_hh_l0$"
    ):
        model.fit(text, steps=1, progress=False)


def test_training_whose_gradient_overflows_says_where_it_began():
    model = fastrnn.LanguageModel("rnn", hidden_size=8, rng=0)
    text = "to be or not to be, that is the question. " * 100
    model.fit(text, steps=1, progress=False)
    model.head.params["weight"][...] *= 1e10
    for name, array in model.layer.params.items():
        array[1] = 0  # h of unit 1 is zero, so that unit 0 is not saturated by
        if name == "weight_hh_l0":
            array[0, 1] = 3e38  # and the gradient goes back from unit 0 to unit 1
    with pytest.raises(DivergedError) as caught:
        model.fit(text, steps=1, progress=False)
    origin = caught.value.origin
    assert caught.value.what == "the norm of the gradient"
    assert origin is not None
    assert origin.what == "the gradient of the pre-activation"
    assert str(origin) in str(caught.value)
