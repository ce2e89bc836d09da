"""fastrnn.interchange with torch.nn: equal outputs, shared memory, and refusals."""

import copy
import itertools

import fastrnn
import numpy as np
import pytest
from fastrnn.interchange import from_torch, to_torch

from layer_cases import BY_NAME
from states import as_tuple

torch = pytest.importorskip("torch", reason="compares with torch")
torch.set_num_threads(1)

T, B, I, H = 6, 3, 4, 5
OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 3, "dropout": 0.25},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False},
    "batch_first": {"batch_first": True},
}
CASES = [(name, key, OPTIONS[key]) for name, key in itertools.product(BY_NAME, OPTIONS)] + [
    ("RNN", "relu", {"nonlinearity": "relu", "num_layers": 2}),
    ("LSTM", "projected", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
]
IDS = [f"{name}-{key}" for name, key, _ in CASES]


def assert_same_function(layer, module, rng):
    """Outputs and final states from a random initial state, to the rounding of float64."""
    x = rng.standard_normal((T, B, layer.input_size))
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    if layer.batch_first:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    widths = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size]
    state = tuple(rng.standard_normal((count, B, width)) for width in widths)
    state = state if layer.cell == "lstm" else state[0]
    y, final = layer(x, state)
    with torch.no_grad():
        theirs, their_final = module.eval()(torch.from_numpy(x), torch.utils._pytree.tree_map(torch.from_numpy, state))
    np.testing.assert_allclose(y, theirs.numpy(), rtol=0, atol=1e-13)
    for ours, their in zip(as_tuple(final), as_tuple(their_final), strict=True):
        np.testing.assert_allclose(ours, their.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "key", "options"), CASES, ids=IDS)
def test_layer_of_a_module_gives_its_outputs(name, key, options):
    module = getattr(torch.nn, name)(I, H, **options, dtype=torch.float64)
    layer = from_torch(module)
    assert type(layer) is BY_NAME[name]
    assert {key: getattr(layer, key) for key in options} == options
    assert_same_function(layer, module, np.random.default_rng(0))


@pytest.mark.parametrize(("name", "key", "options"), CASES, ids=IDS)
def test_module_of_a_layer_gives_its_outputs_and_gradients(name, key, options):
    rng = np.random.default_rng(1)
    layer = BY_NAME[name](I, H, **{**options, "dropout": 0.0}, dtype="float64", rng=rng)
    module = to_torch(layer)
    assert type(module) is getattr(torch.nn, name)
    assert_same_function(layer, module, rng)
    x = rng.standard_normal((T, B, I))
    y, _, tape = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    layer.backward(tape, dy)
    module.train()(torch.from_numpy(x))[0].backward(torch.from_numpy(dy))
    for parameter, value in module.named_parameters():
        np.testing.assert_allclose(layer.grads[parameter], value.grad.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BY_NAME)
def test_cells_step_as_the_layers_do(name, bias):
    rng = np.random.default_rng(2)
    cell = getattr(torch.nn, f"{name}Cell")(I, H, bias=bias, dtype=torch.float64)
    layer = from_torch(cell)
    back = to_torch(layer, cell=True)
    assert type(back) is type(cell)
    x = rng.standard_normal((T, B, I))
    y, final = layer(x)
    for module in (cell, back):
        state = None
        with torch.no_grad():
            for x_t, y_t in zip(x, y, strict=True):
                state = module(torch.from_numpy(x_t), state)
                np.testing.assert_allclose(y_t, as_tuple(state)[0].numpy(), rtol=0, atol=1e-13)
        for ours, their in zip(as_tuple(final), as_tuple(state), strict=True):
            np.testing.assert_allclose(ours[0], their.numpy(), rtol=0, atol=1e-13)


def test_relu_cell_stays_relu():
    assert from_torch(torch.nn.RNNCell(I, H, nonlinearity="relu")).nonlinearity == "relu"
    assert to_torch(fastrnn.RNN(I, H, nonlinearity=("relu",)), cell=True).nonlinearity == "relu"


@pytest.mark.parametrize("name", BY_NAME)
def test_float32_and_all_options_survive_the_way_there_and_back(name):
    layer = BY_NAME[name](I, H, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, rng=3)
    back = from_torch(to_torch(layer))
    for option in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(back, option) == getattr(layer, option), option
    assert back.dtype == np.float32
    assert all((back.params[key] == value).all() for key, value in layer.params.items())


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("name", BY_NAME)
def test_module_of_a_layer_lives_in_the_memory_of_the_layer(name, cell):
    layer = BY_NAME[name](I, H, rng=4)
    module = to_torch(layer, cell=cell)
    for parameter, value in module.named_parameters():
        assert value.requires_grad
        assert np.shares_memory(value.detach().numpy(), layer.params[parameter if not cell else f"{parameter}_l0"])
    x = torch.ones((B, I) if cell else (T, B, I))
    before = as_tuple(module(x))[0].detach().clone()
    for array in layer.params.values():
        array *= 2  # in place: the module must compute with it
    assert not torch.equal(as_tuple(module(x))[0], before)


def test_copy_of_the_module_has_memory_of_its_own():
    layer = fastrnn.LSTM(I, H, rng=5)
    module = copy.deepcopy(to_torch(layer))
    assert not np.shares_memory(module.weight_hh_l0.detach().numpy(), layer.params["weight_hh_l0"])


def test_layer_of_a_module_has_memory_of_its_own():
    module = torch.nn.GRU(I, H)
    layer = from_torch(module)
    before = module.weight_hh_l0.detach().clone()
    layer.params["weight_hh_l0"][...] = 0
    assert torch.equal(module.weight_hh_l0, before)


def test_state_dicts_carry_over_unchanged_both_ways():
    module, layer = torch.nn.LSTM(I, H, 2, bidirectional=True, proj_size=2), fastrnn.LSTM(
        I, H, 2, bidirectional=True, proj_size=2, rng=6
    )  # fmt: skip
    layer.load_state_dict(module.state_dict())
    assert all(torch.equal(torch.from_numpy(layer.params[key]), value) for key, value in module.state_dict().items())
    other = fastrnn.LSTM(I, H, 2, bidirectional=True, proj_size=2, rng=7)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in other.state_dict().items()})
    assert all(torch.equal(torch.from_numpy(other.params[key]), value) for key, value in module.state_dict().items())


class DerivedGRU(torch.nn.GRU):
    pass


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (torch.nn.Linear(I, H), TypeError, "RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell, got Linear"),
        (DerivedGRU(I, H), TypeError, "got DerivedGRU"),
        (fastrnn.GRU(I, H), TypeError, "got GRU"),
        (torch.nn.GRU(I, H, dtype=torch.bfloat16), TypeError, "weight_ih_l0 of dtype torch.float32.*bfloat16"),
        (torch.nn.GRU(I, H, device="meta"), ValueError, "weight_ih_l0 with data"),
    ],
    ids=["linear", "derived", "own", "bfloat16", "meta"],
)
def test_modules_that_are_no_layer_here_are_refused(module, error, message):
    with pytest.raises(error, match=message):
        from_torch(module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_is_refused():
    module = torch.nn.utils.weight_norm(torch.nn.GRU(I, H), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"missing \['weight_hh_l0'\]"):
        from_torch(module)


def test_parameters_of_two_dtypes_are_refused():
    module = torch.nn.GRU(I, H)
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().double())
    with pytest.raises(TypeError, match="one dtype, got float32, float64"):
        from_torch(module)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (fastrnn.RNN(I, H, clip=1.0), "clip=1.0"),
        (fastrnn.RNN(I, H, grad_clip=1.0), "grad_clip=1.0"),
        (fastrnn.GRU(I, H, reverse=True), "reverse=True"),
        (fastrnn.GRU(I, H, reset_after=False), "reset_after=False of a GRU"),
        (fastrnn.LSTM(I, H, peephole=True), "peephole=True of a LSTM"),
        (fastrnn.LSTM(I, H, coupled=True), "coupled=True"),
        (fastrnn.RNN(I, H, bidirectional=True, merge="sum"), "merge='sum'"),
        (fastrnn.RNN(I, H, nonlinearity="softsign"), "softsign"),
        (fastrnn.GRU(I, H, activations=("hard_sigmoid", "tanh")), "hard_sigmoid"),
        (fastrnn.LSTM(I, H, activations=("sigmoid", "tanh", "relu")), "relu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_torch_cannot_express_are_refused_with_the_reason(layer, reason):
    with pytest.raises(ValueError, match=f"torch cannot express.*{reason}"):
        to_torch(layer)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (fastrnn.GRU(I, H, 2), "num_layers=2"),
        (fastrnn.GRU(I, H, bidirectional=True), "bidirectional=True"),
        (fastrnn.LSTM(I, H, proj_size=2), "proj_size=2"),
    ],
)
def test_layers_that_are_no_single_cell_are_refused_as_one(layer, reason):
    with pytest.raises(ValueError, match=f"torch.nn.*Cell cannot express {reason}"):
        to_torch(layer, cell=True)


def test_only_a_layer_becomes_a_module():
    with pytest.raises(TypeError, match="RNN, GRU or LSTM, got Linear"):
        to_torch(fastrnn.Linear(I, H))


def test_merge_of_a_single_direction_means_nothing_and_is_accepted():
    assert isinstance(to_torch(fastrnn.GRU(I, H, merge="sum")), torch.nn.GRU)
