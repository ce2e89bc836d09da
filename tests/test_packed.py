"""Packed input of the engine, as torch packs sequences: the same bits as padded input with lengths."""

import fastrnn
import numpy as np
import pytest
from fastrnn import engine

from layer_cases import CELLS, STACKS
from same_bits import assert_all_equal
from states import as_state, as_tuple, assert_equal

LENGTHS = np.array([9, 9, 7, 4, 4, 1])
OPTIONS = STACKS | {
    "dropped between layers": {"num_layers": 3, "dropout": 0.5},
    "recurrent dropout": {"recurrent_dropout": 0.4, "bidirectional": True},
    "zoneout": {"zoneout": 0.3},
    "weight dropout": {"weight_dropout": 0.4},
    "layer_norm": {"layer_norm": True},
}


def packing(lengths):
    """Which rows of a padded array are those of a packed one, and how many belong to each step."""
    runs = np.arange(lengths.max())[:, None] < lengths
    return np.nonzero(runs), runs.sum(1)


def results(layer, x, state, grads, **layout):
    """y, the final states and every gradient of a training pass, and y and the states of inference."""
    spec, dy, dstate = layer.spec, *grads
    gradients = spec.arrays({name: np.zeros_like(array) for name, array in layer.params.items()})
    y, final, tape = engine.forward(spec, layer.weights, x, state, rng=np.random.default_rng(3), **layout)
    dx, dinitial = engine.backward(tape, dy, dstate, gradients)
    inferred, inferred_final = engine.infer(spec, layer.weights, x, state, **layout)
    return (y, dx, inferred), [
        *as_tuple(final), *as_tuple(dinitial), *as_tuple(inferred_final),
        *(array for arrays in gradients for array in arrays if array is not None),
    ]  # fmt: skip


def compared(layer, lengths, seed=0):
    """The packed arrays of a pass; asserts that they are those of a pass with lengths, to the bit."""
    rng, (places, sizes) = np.random.default_rng(seed), packing(lengths)
    spec, T, B = layer.spec, lengths.max(), len(lengths)

    def drawn(*shape):
        return rng.normal(size=shape).astype(layer.dtype)

    x, dy = drawn(T, B, spec.input_size), drawn(T, B, spec.merged_size)
    state, dstate = (as_state([drawn(*shape) for shape in spec.state_shapes(B)]) for _ in range(2))
    padded, expected = results(layer, x, state, (dy, dstate), lengths=lengths)
    packed, found = results(layer, x[places], state, (dy[places], dstate), batch_sizes=sizes)
    assert_equal([array[places] for array in padded], packed)
    assert_equal(expected, found)
    return [*packed, *found]


X = np.ones((34, 3), np.float32)
SIZES = packing(LENGTHS)[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_packed_input_gives_the_bits_of_lengths(cell, options, dtype):
    kind, own = CELLS[cell]
    if options.get("layer_norm") and own:
        pytest.skip("layer_norm is of the plain cells")
    compared(kind(3, 8, rng=0, dtype=dtype, **own, **options), LENGTHS)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [1], [4], [3, 2, 1]], ids=str)
def test_packed_batches_of_any_lengths(lengths):
    compared(fastrnn.GRU(3, 8, 2, bidirectional=True, rng=0), np.array(lengths))


@pytest.mark.parametrize("kind", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_packed_shards_on_any_number_of_threads(kind, restore_threads):
    lengths = -np.sort(-np.random.default_rng(0).integers(1, 30, 67))
    layer, found = kind(24, 96, num_layers=2, bidirectional=True, rng=0), []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        found.append(compared(layer, lengths))
    assert_all_equal(found)


def test_a_packed_stack_runs_as_a_pipeline(restore_threads):
    fastrnn.set_num_threads(3)
    layer, lengths = fastrnn.LSTM(24, 96, num_layers=3, rng=0), np.array([400, 390, 300, 5])
    places, sizes = packing(lengths)
    _, _, tape = engine.forward(layer.spec, layer.weights, np.ones((len(places[0]), 24), np.float32), batch_sizes=sizes)
    assert tape.is_pipelined
    compared(layer, lengths)


def test_packed_arrays_of_any_memory():
    layer, x = fastrnn.LSTM(3, 8, rng=0), np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    expected, _ = engine.infer(layer.spec, layer.weights, x, batch_sizes=SIZES)
    for other in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], np.ascontiguousarray(x[::-1])[::-1]):
        found, _ = engine.infer(layer.spec, layer.weights, other, batch_sizes=SIZES)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("x", "keywords", "error", "says"),
    [
        (X[:33], {}, ValueError, r"expected packed x of shape \(34, 3\), got \(33, 3\)"),
        (X[:, :2], {}, ValueError, r"expected packed x of shape \(34, 3\), got \(34, 2\)"),
        (X.astype(np.float64), {}, TypeError, "expected packed x of dtype float32, got float64"),
        (X, {"batch_sizes": SIZES[::-1]}, ValueError, "never grow"),
        (X, {"batch_sizes": SIZES - 2}, ValueError, "positive"),
        (X, {"batch_sizes": SIZES[:0]}, ValueError, "expected batch_sizes of shape"),
        (X, {"batch_sizes": SIZES.astype(float)}, ValueError, "dtype int64, got"),
        (X, {"lengths": LENGTHS}, ValueError, "expected packed x without lengths"),
        (X, {"reset": np.zeros((9, 6), bool)}, ValueError, "expected packed x without reset"),
    ],
)
def test_wrong_packed_input_is_refused(x, keywords, error, says):
    layer = fastrnn.GRU(3, 8, rng=0)
    with pytest.raises(error, match=says):
        engine.infer(layer.spec, layer.weights, x, **({"batch_sizes": SIZES} | keywords))


@pytest.mark.parametrize("options", [{"checkpoint": 3}, {"memory_limit": 10**6}], ids=list)
def test_packed_input_is_not_divided_into_segments(options):
    layer = fastrnn.GRU(3, 8, rng=0)
    with pytest.raises(ValueError, match="expected packed x without input_dropout, checkpoint and memory_limit"):
        engine.forward(layer.spec, layer.weights, X, batch_sizes=SIZES, **options)
