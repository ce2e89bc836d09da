"""Embedding, Dropout and modules of one's own: against torch and the formula; modules without parameters; errors."""

import copy
import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn.optim import SGD, Adam, AdamW, RMSprop, clip_grad_norm
from fastrnn.training import load_checkpoint, save_checkpoint

DTYPES = ["float32", "float64"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- Embedding


@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_is_that_of_torch(rng, dtype, shape):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ours = fastrnn.Embedding(6, 3, dtype=dtype, rng=0)
    theirs = torch.nn.Embedding(6, 3, dtype=getattr(torch, dtype))
    assert {name: array.shape for name, array in ours.params.items()} == {"weight": (6, 3)}
    ours.load_state_dict(theirs.state_dict())
    indices = np.asarray(rng.integers(0, 6, shape))
    x, tape = ours.forward(indices)
    expected = theirs(torch.from_numpy(indices))
    assert x.dtype == dtype
    np.testing.assert_array_equal(x, expected.detach().numpy())
    np.testing.assert_array_equal(ours(indices), x)
    dx = rng.normal(size=x.shape).astype(dtype)
    assert ours.backward(tape, dx) is None
    expected.backward(torch.from_numpy(dx))
    np.testing.assert_allclose(ours.grads["weight"], theirs.weight.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_embedding_adds_every_repetition_into_what_is_there(rng):
    embedding = fastrnn.Embedding(5, 2, dtype="float64", rng=0)
    embedding.grads["weight"][...] = before = rng.normal(size=(5, 2))
    indices, dx = rng.integers(0, 5, 1000), rng.normal(size=(1000, 2))
    expected = before.copy()
    np.add.at(expected, indices, dx)
    embedding.backward(embedding.forward(indices)[1], dx)
    np.testing.assert_allclose(embedding.grads["weight"], expected, rtol=1e-12)


def test_the_tape_of_an_embedding_outlives_its_indices():
    embedding = fastrnn.Embedding(5, 2, rng=0)
    indices = np.array([1, 1])
    x, tape = embedding.forward(indices)
    indices[:] = 0
    x[:] = 9  # nor are the vectors views
    embedding.backward(tape, np.ones_like(x))
    assert embedding.grads["weight"][:, 0].tolist() == [0, 2, 0, 0, 0]
    assert embedding.params["weight"].max() < 9


def test_embedding_starts_from_normal_numbers():
    weight = fastrnn.Embedding(1000, 50, rng=0).params["weight"]
    assert abs(weight.mean()) < 0.02
    assert abs(weight.std() - 1) < 0.02
    np.testing.assert_array_equal(weight, fastrnn.Embedding(1000, 50, rng=0).params["weight"])


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i4", "u8"])
def test_indices_may_be_of_any_integer_dtype(dtype):
    embedding = fastrnn.Embedding(5, 2, rng=0)
    np.testing.assert_array_equal(embedding(np.array([0, 4], dtype)), embedding.params["weight"][[0, 4]])


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (np.zeros(3), TypeError, r"expected indices of an integer dtype, got float64; \.astype\(int\)"),
        (np.zeros(3, bool), TypeError, "got bool"),
        ([[0], [1, 2]], TypeError, "expected indices as one array"),
        ([0, 5], ValueError, "expected indices from 0 to 4, got 0 to 5"),
        ([-1], ValueError, "got -1 to -1"),
        (np.array([2**64 - 1], "u8"), ValueError, "expected indices from 0 to 4"),
    ],
)
def test_indices_that_do_not_fit_are_refused(indices, error, message):
    with pytest.raises(error, match=message):
        fastrnn.Embedding(5, 2).forward(indices)


def test_gradients_that_do_not_fit_an_embedding_are_refused():
    embedding = fastrnn.Embedding(5, 2)
    tape = embedding.forward([0, 1, 1])[1]
    for wrong_tape, dx, error, message in (
        (tape, np.ones((3, 2)), TypeError, "expected dx of dtype float32, got float64"),
        (tape, np.ones((2, 2), np.float32), ValueError, r"expected dx of shape \(3, 2\), got \(2, 2\)"),
        (tape + 4, np.ones((3, 2), np.float32), ValueError, "expected the tape from 0 to 4, got 4 to 5"),
        (None, np.ones((3, 2), np.float32), TypeError, "expected the tape of an integer dtype, got object"),
    ):
        with pytest.raises(error, match=message):
            embedding.backward(wrong_tape, dx)
    assert not embedding.flat_grads.any()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 2), ValueError), ((2, 0), ValueError), ((2.0, 2), TypeError), ((2, True), TypeError)],
)
def test_sizes_of_an_embedding_that_cannot_be_are_refused(arguments, error):
    with pytest.raises(error, match=r"expected (num_embeddings|embedding_dim)"):
        fastrnn.Embedding(*arguments)
    with pytest.raises(TypeError, match="expected dtype float32 or float64, got float16"):
        fastrnn.Embedding(2, 2, dtype="float16")


def test_what_an_embedding_is_made_with_is_fixed():
    with pytest.raises(AttributeError, match="num_embeddings of a Embedding is fixed"):
        fastrnn.Embedding(2, 3).num_embeddings = 4


# ---------------------------------------------------------------- Dropout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0, 0.2, 0.5, 1])
def test_dropout_drops_so_many_and_scales_the_others(rng, p, dtype):
    dropout = fastrnn.Dropout(p, rng=0)
    x = rng.normal(size=(200, 100)).astype(dtype)
    y, mask = dropout.forward(x)
    assert y.dtype == x.dtype
    assert abs((y == 0).mean() - p) < 0.01
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p), rtol=1e-6)
    dy = rng.normal(size=x.shape).astype(dtype)
    dx = dropout.backward(mask, dy)
    assert dx.dtype == x.dtype
    np.testing.assert_array_equal(dx == 0, ~kept)
    np.testing.assert_allclose(dx[kept], dy[kept] / (1 - p), rtol=1e-6)


def test_dropout_leaves_x_alone_in_inference_and_draws_nothing(rng):
    dropout = fastrnn.Dropout(0.5, rng=0)
    state = dropout.generators[0].bit_generator.state
    x = rng.normal(size=(3, 4))
    assert dropout(x) is x
    dropout.p = 0
    np.testing.assert_array_equal(dropout.forward(x)[0], x)
    assert dropout.generators[0].bit_generator.state == state


def test_dropout_draws_anew_and_the_same_from_the_same_rng():
    x = np.ones(100)
    one, other = fastrnn.Dropout(0.5, rng=3), fastrnn.Dropout(0.5, rng=3)
    first, second = one.forward(x)[0], one.forward(x)[0]
    assert (first != second).any()
    np.testing.assert_array_equal(other.forward(x)[0], first)
    copied = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(copied.forward(x)[0], second)


@pytest.mark.parametrize(
    ("p", "error"), [(-0.1, ValueError), (1.1, ValueError), (np.nan, ValueError), ("0.5", TypeError), (True, TypeError)]
)
def test_p_is_a_probability(p, error):
    dropout = fastrnn.Dropout(0.25)
    with pytest.raises(error, match="expected p "):
        dropout.p = p
    with pytest.raises(error, match="expected p "):
        fastrnn.Dropout(p)
    assert dropout.p == 0.25


@pytest.mark.parametrize("x", [np.ones(3, int), np.ones(3, np.float16), "x", None])
def test_dropout_takes_floats(x):
    dropout = fastrnn.Dropout(rng=0)
    state = dropout.generators[0].bit_generator.state
    for call in (dropout, dropout.forward):
        with pytest.raises(TypeError, match="expected x of dtype float32 or float64, got"):
            call(x)
    assert dropout.generators[0].bit_generator.state == state


def test_gradients_that_do_not_fit_a_dropout_are_refused():
    dropout = fastrnn.Dropout()
    tape = dropout.forward(np.ones((2, 3)))[1]
    with pytest.raises(ValueError, match=r"expected dy of shape \(2, 3\), got \(3,\)"):
        dropout.backward(tape, np.ones(3))
    with pytest.raises(TypeError, match="expected dy of dtype float64, got float32"):
        dropout.backward(tape, np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match="expected the tape of dtype float32 or float64, got object"):
        dropout.backward(None, np.ones((2, 3)))


# ---------------------------------------------------------------- modules without parameters, and of one's own


def test_a_module_without_parameters_has_empty_everything():
    dropout = fastrnn.Dropout()
    assert dropout.params == dropout.grads == dropout.state_dict() == dropout.param_ranges == {}
    assert dropout.flat_params.shape == dropout.flat_grads.shape == (0,)
    dropout.zero_grad()
    dropout.load_state_dict({})
    assert copy.deepcopy(dropout).params == {}
    with pytest.raises(KeyError, match="unknown"):
        dropout.load_state_dict({"weight": np.ones(3)})


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop])
@pytest.mark.parametrize("others", [0, 1])
def test_a_module_without_parameters_goes_with_every_optimiser(kind, others):
    heads = [fastrnn.Linear(3, 2, rng=0) for _ in range(2)]
    for head in heads:
        head.flat_grads[:] = 1
    modules = [fastrnn.Dropout(), heads[0], fastrnn.Dropout()] if others else [fastrnn.Dropout()]
    optimizer, plain = kind(modules), kind(heads[1:])
    norm, expected = optimizer.step(max_norm=1.0), plain.step(max_norm=1.0)
    optimizer.step(), plain.step()
    assert optimizer.steps == 2
    assert norm == (expected if others else 0)
    assert clip_grad_norm(modules, 0.5) == (pytest.approx(clip_grad_norm(heads[1:], 0.5)) if others else 0)
    if others:
        np.testing.assert_array_equal(heads[0].flat_params, heads[1].flat_params)
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("others", [0, 1])
def test_a_checkpoint_keeps_what_a_dropout_will_draw(tmp_path, others):
    def made():
        dropout = fastrnn.Dropout(rng=others)
        return dropout, Adam([dropout, *(fastrnn.Linear(2, 2, rng=0) for _ in range(others))])

    dropout, adam = made()
    dropout.forward(np.ones(9))
    adam.step()
    save_checkpoint(tmp_path / "run", adam)
    expected = dropout.forward(np.ones(99))[0]
    resumed, other = made()
    load_checkpoint(tmp_path / "run", other)
    assert other.steps == 1
    np.testing.assert_array_equal(resumed.forward(np.ones(99))[0], expected)


def test_shapes_of_a_module_come_as_a_dict_or_as_pairs():
    shapes = {"weight": (2, 3), "scale": (), "none": (0, 4)}
    for given in (shapes, shapes.items(), list(shapes.items()), iter(shapes.items())):
        module = fastrnn.Module(given, "float64")
        assert {name: array.shape for name, array in module.params.items()} == shapes
        assert module.params["weight"].dtype == np.float64
        assert not module.flat_params.any()
    assert fastrnn.Module().params == {}


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        (["weight"], TypeError, r"expected shapes by name, as in \{'weight': \(2, 3\)\}, got 'weight'"),
        ({"weight": 3}, TypeError, r"got \('weight', 3\)"),
        ({1: (3,)}, TypeError, r"got \(1, \(3,\)\)"),
        ({"weight": (2.0,)}, TypeError, "expected sizes of weight to be an integer"),
        ({"weight": (-1,)}, ValueError, "expected sizes of weight >= 0"),
        ({"weight": (2**40, 2**40)}, ValueError, "expected parameters of at most"),
    ],
)
def test_shapes_that_cannot_be_are_refused(shapes, error, message):
    with pytest.raises(error, match=message):
        fastrnn.Module(shapes)
    with pytest.raises(TypeError, match="expected dtype float32 or float64, got int64"):
        fastrnn.Module({"weight": (3,)}, int)


def test_a_network_with_all_of_it_learns(rng):
    """The task: the class of the first of four indices, through an embedding, a GRU, dropout and a head."""
    embedding, layer = fastrnn.Embedding(5, 8, rng=0), fastrnn.GRU(8, 16, rng=0)
    dropout, head = fastrnn.Dropout(0.1, rng=0), fastrnn.Linear(16, 5, rng=0)
    adam = Adam([embedding, layer, dropout, head], lr=1e-2)
    indices = rng.integers(0, 5, (4, 64))
    losses = []
    for _ in range(60):
        x, x_tape = embedding.forward(indices)
        y, _, tape = layer.forward(x)
        dropped, mask = dropout.forward(y[-1])
        loss, dh = head.cross_entropy(dropped, indices[0])
        dy = np.zeros_like(y)
        dy[-1] = dropout.backward(mask, dh)
        embedding.backward(x_tape, layer.backward(tape, dy)[0])
        adam.step(max_norm=1.0)
        for module in adam.modules:
            module.zero_grad()
        losses.append(loss)
    assert losses[-1] < 0.3 < 1.2 < losses[0]


# ---------------------------------------------------------------- what is made with a module stays


@pytest.mark.parametrize("name", ["flat_params", "flat_grads", "param_ranges", "spec", "weights", "gradients"])
def test_arrays_and_specification_are_not_replaced(name):
    """A layer whose arrays were others than those that it reads would train without learning."""
    layer = fastrnn.LSTM(3, 4, rng=0)
    before = getattr(layer, name)
    with pytest.raises(AttributeError, match=f"^{name} of a LSTM is made with it and stays; write into its arrays$"):
        setattr(layer, name, copy.deepcopy(before))
    assert getattr(layer, name) is before


def test_flat_arrays_change_in_place():
    layer = fastrnn.GRU(3, 4, rng=0)
    gradients = layer.flat_grads
    layer.flat_grads += 1
    layer.flat_grads *= 3
    assert layer.flat_grads is gradients
    assert (layer.grads["weight_hh_l0"] == 3).all()


def test_an_option_that_cannot_be_met_changes_nothing(monkeypatch):
    layer = fastrnn.LSTM(3, 4, rng=0)
    before = dict(layer.__dict__)

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr("fastrnn.nn.recurrent.LayerSpec", fail)
    for name, value in (("dropout", 0.5), ("zoneout", 0.5), ("zoneout_cell", 0.5), ("grad_clip", 1.0)):
        with pytest.raises(MemoryError):
            setattr(layer, name, value)
    assert dict(layer.__dict__) == before


@pytest.mark.parametrize(
    ("name", "value"), [("dropout", 0.5), ("zoneout", 0.25), ("zoneout_cell", 0.5), ("grad_clip", 1)]
)
def test_an_option_that_changes_is_seen_by_the_engine(name, value):
    layer = fastrnn.LSTM(3, 4, rng=0)
    made = fastrnn.LSTM(3, 4, rng=0, **{name: value})
    setattr(layer, name, value)
    assert layer.spec == made.spec
    assert getattr(layer, name) == getattr(made, name)


def test_a_subclass_may_take_arguments_and_fix_options_of_its_own():
    class Marked:
        def __init_subclass__(cls, mark, **given):
            super().__init_subclass__(**given)
            cls.mark = mark

    class Stage(fastrnn.GRU, Marked, mark="stage"):
        _fixed = frozenset({"stage"})

        def __init__(self, stage):
            self.stage = stage
            super().__init__(3, 4)

    layer = Stage(1)
    assert layer.mark == "stage"
    for name in ("stage", "hidden_size", "reset_after"):
        with pytest.raises(AttributeError, match=f"{name} of a Stage is fixed"):
            setattr(layer, name, 2)


def test_names_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="expected each name once in the shapes, got 'gain' again"):
        fastrnn.Module([("gain", (2,)), ("gain", (3,))])


def test_dropout_that_fails_has_drawn_nothing(monkeypatch):
    class NoMemory(np.ndarray):
        def __mul__(self, other):
            raise MemoryError

    dropout = fastrnn.Dropout(rng=0)
    state = dropout.generators[0].bit_generator.state
    monkeypatch.setattr("fastrnn.nn.dropout.floats", lambda name, value: value)
    with pytest.raises(MemoryError):
        dropout.forward(np.ones((4, 5), np.float32).view(NoMemory))
    assert dropout.generators[0].bit_generator.state == state
