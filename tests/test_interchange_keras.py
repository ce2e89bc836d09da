"""fastrnn.interchange with Keras: equal outputs, both ways, and refusals."""

import os

import fastrnn
import numpy as np
import pytest
from fastrnn.interchange import from_keras, to_keras

from layer_cases import CLASSES
from states import as_tuple

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip(os.environ["KERAS_BACKEND"], reason="Keras runs on it")
keras = pytest.importorskip("keras", reason="compares with Keras")
from keras import layers  # noqa: E402

# Keras and torch do not know of the argument copy of __array__ that NumPy 2 passes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

B, T, I, H = 3, 5, 4, 6
KINDS = {"rnn": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}
CASES = [
    *((cell, {}) for cell in KINDS),
    *((cell, {"use_bias": False}) for cell in KINDS),
    ("gru", {"reset_after": False}),
    ("gru", {"reset_after": False, "use_bias": False}),
    ("rnn", {"activation": "relu"}),
    ("rnn", {"activation": "linear"}),
    ("rnn", {"activation": "leaky_relu"}),
    ("rnn", {"activation": "elu"}),
    ("gru", {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}),
    ("lstm", {"activation": "softplus", "recurrent_activation": "hard_sigmoid"}),
]


def randomised(layer, rng, width=I):
    """The layer, built, with every weight and bias drawn: Keras starts biases at zero."""
    if not layer.built:
        layer.build((None, None, width))
    for weight in layer.weights:
        weight.assign((0.5 * rng.standard_normal(weight.shape)).astype(weight.dtype))
    return layer


def run(layer, *arguments, **options):
    outputs = layer(*arguments, **options)
    to_numpy = keras.ops.convert_to_numpy
    return [to_numpy(part) for part in outputs] if isinstance(outputs, list | tuple) else to_numpy(outputs)


def random_input(rng):
    return rng.standard_normal((B, T, I)).astype(np.float32)


def assert_close(ours, theirs):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("cell", "options"), CASES, ids=str)
def test_layer_of_a_keras_layer_gives_its_outputs_and_states(cell, options):
    rng = np.random.default_rng(0)
    theirs = randomised(KINDS[cell](H, return_sequences=True, return_state=True, **options), rng)
    layer, x = from_keras(theirs), random_input(rng)
    assert (type(layer), layer.batch_first) == (CLASSES[cell], True)
    state = tuple(rng.standard_normal((B, H)).astype("f") for _ in range(2 if cell == "lstm" else 1))
    y, final = layer(x, tuple(part[None] for part in state) if cell == "lstm" else state[0][None])
    their_y, *their_final = run(theirs, x, initial_state=list(state))
    assert_close(y, their_y)
    for ours, their in zip(as_tuple(final), their_final, strict=True):
        assert_close(ours[0], their)


@pytest.mark.parametrize(("cell", "options"), CASES, ids=str)
def test_keras_layer_of_a_layer_gives_its_outputs_and_states(cell, options):
    rng = np.random.default_rng(1)
    layer = from_keras(randomised(KINDS[cell](H, **options), rng))
    for array in layer.params.values():
        array[...] = 0.5 * rng.standard_normal(array.shape)  # both biases at once, where there are two
    x = random_input(rng)
    y, final = layer(x)
    their_y, *their_final = run(to_keras(layer, return_state=True), x)
    assert_close(y, their_y)
    for ours, their in zip(as_tuple(final), their_final, strict=True):
        assert_close(ours[0], their)
    assert_close(as_tuple(final)[0][0], run(to_keras(layer, return_sequences=False), x))


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("cell", KINDS)
def test_bidirectional_layers_carry_over_both_ways(cell, merge):
    rng = np.random.default_rng(2)
    theirs = layers.Bidirectional(KINDS[cell](H, return_sequences=True), merge_mode=merge)
    layer, x = from_keras(randomised(theirs, rng)), random_input(rng)
    assert (layer.bidirectional, layer.merge) == (True, merge)
    y = layer(x)[0]
    assert_close(y, run(theirs, x))
    back = to_keras(layer)
    assert (type(back), back.merge_mode) == (layers.Bidirectional, merge)
    assert_close(y, run(back, x))


def test_final_states_are_what_keras_gives_without_sequences():
    rng = np.random.default_rng(3)
    theirs = randomised(layers.Bidirectional(layers.GRU(H), merge_mode="sum"), rng)
    x = random_input(rng)
    assert_close(from_keras(theirs)(x)[1].sum(axis=0), run(theirs, x))


def test_lengths_give_what_keras_gives_with_a_mask():
    rng = np.random.default_rng(4)
    theirs = randomised(layers.Bidirectional(layers.LSTM(H, return_sequences=True)), rng)
    x, lengths = random_input(rng), np.array([5, 2, 3])
    mask = np.arange(T) < lengths[:, None]
    y = from_keras(theirs)(x, lengths=lengths)[0]
    assert_close(y * mask[:, :, None], run(theirs, x, mask=keras.ops.convert_to_tensor(mask)) * mask[:, :, None])


def test_layer_that_goes_backwards_gives_keras_final_state():
    rng = np.random.default_rng(5)
    theirs = randomised(layers.GRU(H, go_backwards=True), rng)
    layer, x = from_keras(theirs), random_input(rng)
    assert layer.reverse
    assert_close(layer(x)[1][0], run(theirs, x))
    assert_close(layer(x)[1][0], run(to_keras(layer, return_sequences=False), x))


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_stacks_carry_over_both_ways(bidirectional, rate):
    rng = np.random.default_rng(6)
    parts = [layers.GRU(H, return_sequences=True) for _ in range(3)]
    parts = [layers.Bidirectional(part) for part in parts] if bidirectional else parts
    if rate:
        parts = [parts[0], layers.Dropout(rate), parts[1], layers.Dropout(rate), parts[2]]
    theirs = randomised(keras.Sequential([keras.Input((None, I)), *parts]), rng)
    layer, x = from_keras(theirs), random_input(rng)
    assert (layer.num_layers, layer.dropout, layer.bidirectional) == (3, rate, bidirectional)
    y = layer(x)[0]
    assert_close(y, run(theirs, x))
    back = to_keras(layer)
    assert_close(y, run(back, x))
    assert [type(part) for part in back.layers] == [type(part) for part in theirs.layers]
    assert_close(y[:, -1] if not bidirectional else np.concatenate([*layer(x)[1][-2:]], axis=1),
                 run(to_keras(layer, return_sequences=False), x))  # fmt: skip


def test_float64_carries_over_both_ways():
    layer = fastrnn.GRU(I, H, batch_first=True, dtype="float64", rng=7)
    if os.environ["KERAS_BACKEND"] == "jax":
        with pytest.warns(UserWarning, match="float64"), pytest.raises(ValueError, match=r"backend jax .* float64"):
            to_keras(layer)
        return
    theirs = to_keras(layer)
    x = np.random.default_rng(8).standard_normal((B, T, I))
    np.testing.assert_allclose(layer(x)[0], run(theirs, x), rtol=0, atol=1e-14)
    back = from_keras(theirs)
    assert all((array == layer.params[name]).all() for name, array in back.params.items())


def built(layer):
    layer.build((None, None, I))
    return layer


def differing():
    forward, backward = layers.GRU(H), layers.GRU(H, go_backwards=True, activation="relu")
    return built(layers.Bidirectional(forward, backward_layer=backward))


class DerivedGRU(layers.GRU):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.GRU(H), "gru.* to be built"),
        (lambda: built(layers.GRU(H, dropout=0.5)), r"dropout=0.5 of gru.*\.cell\.dropout = 0.0"),
        (lambda: built(layers.GRU(H, recurrent_dropout=0.5)), "recurrent_dropout=0.5"),
        (lambda: built(layers.GRU(H, go_backwards=True, return_sequences=True)), "last step first"),
        (lambda: built(layers.GRU(H, activation="gelu")), "activations of gru.* among tanh, relu.*, got gelu"),
        (lambda: built(layers.GRU(H, activation=lambda a: a)), "got <lambda>"),
        (lambda: built(layers.Bidirectional(layers.GRU(H), merge_mode=None)), "merge_mode"),
        (differing, "equal directions"),
        (lambda: keras.Sequential(), "got an empty one"),
        (lambda: keras.Sequential([built(layers.GRU(H)), layers.Dropout(0.5)]), "none behind the last"),
        (lambda: keras.Sequential([keras.Input((T, I)), layers.GRU(H, return_sequences=True), layers.GRU(H + 1)]),
         "equal layers in a stack"),
        (lambda: keras.Sequential([keras.Input((T, I)), layers.GRU(H, return_sequences=True),
                                   layers.GRU(H, return_sequences=True), layers.Dropout(0.5), layers.GRU(H)]),
         r"Dropout of one rate.*\[0.0, 0.5\]"),
    ],
)  # fmt: skip
def test_keras_layers_that_cannot_be_expressed_are_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        from_keras(make())


def test_stateful_layers_are_refused():
    theirs = layers.GRU(H, stateful=True)
    theirs.build((B, T, I))
    with pytest.raises(ValueError, match=r"stateful=True of gru.*stateful = False"):
        from_keras(theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Dense(H), "SimpleRNN, GRU, LSTM of Keras.*got Dense"),
        (lambda: DerivedGRU(H), "got DerivedGRU"),
        (lambda: fastrnn.GRU(I, H), "got GRU"),
        (lambda: built(layers.GRU(H, dtype="mixed_bfloat16")), "float32 or float64 throughout, got bfloat16, float32"),
    ],
)
def test_other_layers_and_dtypes_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        from_keras(make())


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (fastrnn.RNN(I, H, clip=1.0), {}, "clip=1.0"),
        (fastrnn.RNN(I, H, grad_clip=1.0), {}, "grad_clip=1.0"),
        (fastrnn.LSTM(I, H, peephole=True), {}, "peephole=True"),
        (fastrnn.LSTM(I, H, coupled=True), {}, "coupled=True"),
        (fastrnn.LSTM(I, H, proj_size=2), {}, "proj_size=2"),
        (fastrnn.GRU(I, H, reverse=True), {}, "Keras with return_sequences cannot express reverse=True"),
        (fastrnn.GRU(I, H, 2, reverse=True), {"return_sequences": False}, "Keras in a stack cannot express reverse"),
        (fastrnn.GRU(I, H, 2), {"return_state": True}, "Keras with return_state cannot express num_layers=2"),
        (fastrnn.RNN(I, H, nonlinearity="hard_sigmoid"), {}, "'hard_sigmoid' of a RNN; it has tanh"),
        (fastrnn.RNN(I, H, nonlinearity=("elu", 0.5)), {}, "'elu', 0.5"),
        (fastrnn.LSTM(I, H, activations=("sigmoid", "tanh", "relu")), {}, "one activation for the cell input and out"),
    ],
)
def test_layers_that_keras_cannot_express_are_refused_with_the_reason(layer, options, message):
    with pytest.raises(ValueError, match=message):
        to_keras(layer, **options)


def test_only_a_layer_becomes_a_keras_layer():
    with pytest.raises(TypeError, match="RNN, GRU or LSTM, got Linear"):
        to_keras(fastrnn.Linear(I, H))
