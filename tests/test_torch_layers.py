"""from_layer: a layer of fastrnn as a module of torch gives what the layer gives, in outputs and gradients."""

from __future__ import annotations

import copy
import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn import engine

torch = pytest.importorskip("torch", reason="torch is the framework here and is not installed")

import fastrnn.torch as ft  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

from layer_cases import CELLS, STACKS  # noqa: E402
from states import as_state, as_tuple, assert_equal  # noqa: E402

OPTIONS = STACKS | {
    "batch first": {"batch_first": True},
    "layer_norm": {"layer_norm": True, "num_layers": 2},
    "zoneout": {"zoneout": 0.3},
    "variational": {"input_dropout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.2},
    "dropped between layers": {"num_layers": 3, "dropout": 0.4},
}


def layer_of(cell, options, dtype="float64"):
    kind, own = CELLS[cell]
    if options.get("layer_norm") and own:
        pytest.skip("layer_norm is of the plain cells")
    return kind(3, 6, **own, **options, dtype=dtype, rng=0)


def problem(layer, T=5, B=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, 3) if layer.batch_first else (T, B, 3)).astype(layer.dtype)
    states = [rng.normal(size=shape).astype(layer.dtype) for shape in layer.spec.state_shapes(B)]
    return x, states, np.array([T, 2, T - 1, 1]), rng.random(x.shape[:2]) < 0.3


def of_layer(layer, x, states, keywords, seed):
    """y, the final states and every gradient of sum(y^2) / 2 + sum(final^2) / 2, of a training pass."""
    rng = None if seed is None else np.random.default_rng(seed)
    y, final, tape = engine.forward(layer.spec, layer.weights, x, as_state(states), rng=rng, **keywords)
    layer.zero_grad()
    dx, dstates = engine.backward(tape, y, final, layer.gradients)
    return [y, *as_tuple(final), *([] if dx is None else [dx]), *as_tuple(dstates), *layer.grads.values()]


def of_module(module, x, states, keywords):
    """The same of a module."""
    inputs = [torch.from_numpy(array.copy()) for array in (x, *states)]
    leaves = [leaf.requires_grad_() for leaf in inputs if leaf.is_floating_point()]
    y, final = module(inputs[0], as_state(inputs[1:]), **{k: torch.from_numpy(v) for k, v in keywords.items()})
    outputs = [y, *as_tuple(final)]
    loss = sum(output.square().sum() / 2 for output in outputs)
    gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    return [tensor.detach().numpy() for tensor in (*outputs, *gradients)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients_are_those_of_the_layer(cell, options, training):
    layer = layer_of(cell, options, "float32")
    module = ft.from_layer(layer).train(training)
    x, states, lengths, reset = problem(layer)
    for keywords in ({}, {"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        torch.manual_seed(8)
        drops = training and (layer.spec.has_dropout or layer.dropout)
        seed = int(torch.randint(1 << 62, ())) if drops else None
        torch.manual_seed(8)
        assert_equal(of_layer(layer, x, states, keywords, seed), of_module(module, x, states, keywords))
        if not training:
            with torch.inference_mode():
                y, _ = module(torch.from_numpy(x), None, **{k: torch.from_numpy(v) for k, v in keywords.items()})
            assert_equal([layer(x, **keywords)[0]], [y.numpy()])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", ["rnn tanh", "gru", "gru reset before", "lstm", "lstm projected"])
def test_gradients_are_the_limit_of_finite_differences(cell, options, training):
    module = ft.from_layer(layer_of(cell, options)).train(training)
    x = torch.randn(*((2, 3) if module.spec.batch_first else (3, 2)), 3, dtype=torch.float64, requires_grad=True)

    def function(x, *weights):
        torch.manual_seed(7)
        y, final = module(x)
        return y, *as_tuple(final)

    assert torch.autograd.gradcheck(function, (x, *module.parameters()), fast_mode=True)


def test_zoneout_in_evaluation_has_the_gradient_of_what_it_computes():
    """The expected state, not the drawn one, also with gradients enabled."""
    layer = layer_of("lstm", {"zoneout": 0.3, "zoneout_cell": 0.2})
    module, x = ft.from_layer(layer).eval(), np.random.default_rng(0).normal(size=(5, 2, 3))
    assert_equal([layer(x)[0]], [module(torch.from_numpy(x))[0].detach().numpy()])


def test_one_hot_input():
    layer = layer_of("gru", {"num_layers": 2}, "float32")
    module, ids = ft.from_layer(layer), np.random.default_rng(0).integers(0, 3, (5, 4))
    _, states, _, _ = problem(layer)
    assert_equal(of_layer(layer, ids, states, {}, None), of_module(module, ids, states, {}))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_packed_sequences_in_any_order(bidirectional):
    layer = layer_of("lstm peephole", {"bidirectional": bidirectional}, "float32")
    module, (x, states, lengths, _) = ft.from_layer(layer), problem(layer)
    packed = pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False)
    y, final = module(packed, tuple(map(torch.from_numpy, states)))
    expected, expected_final = layer(x, as_state(states), lengths=lengths)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert_equal([expected, *expected_final], [tensor.detach().numpy() for tensor in (padded, *final)])


def test_the_layer_and_the_module_train_the_same_memory():
    layer = fastrnn.GRU(3, 6, layer_norm=True, rng=0)
    module, x = ft.from_layer(layer), torch.randn(5, 4, 3)
    optimizer, before = torch.optim.Adam(module.parameters(), 0.1), layer(x.numpy())[0].copy()
    module(x)[0].sum().backward()
    optimizer.step()
    assert np.abs(layer(x.numpy())[0] - before).max() > 0.01
    assert_equal([layer(x.numpy())[0]], [module(x)[0].detach().numpy()])
    assert list(module.state_dict()) == list(layer.state_dict())
    assert repr(module) == f"Layer({layer!r})"


def test_copies_have_memory_of_their_own_and_any_dtype():
    module, x = ft.from_layer(fastrnn.LSTM(3, 6, peephole=True, rng=0)), torch.randn(5, 4, 3)
    expected = module(x)[0]
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x)[0], expected)
        torch.nn.init.zeros_(copied.weight_hh_l0)
        assert torch.equal(module(x)[0], expected)
    doubled = copy.deepcopy(module).double()
    assert torch.allclose(doubled(x.double())[0].float(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m(torch.ones(5, 4, 2)), ValueError, "expected x of shape"),
        (lambda m: m(torch.ones(5, 4, 3).double()), TypeError, "expected x of dtype float32"),
        (lambda m: m(torch.ones(5, 4, 3).bfloat16()), TypeError, "but a tensor is of torch.bfloat16"),
        (lambda m: m(torch.ones(5, 4, 3, device="meta")), TypeError, "but a tensor is on the device meta"),
        (lambda m: m(np.ones((5, 4, 3))), TypeError, "but a tensor is of the type ndarray"),
        (lambda m: m(torch.ones(5, 4, 3), torch.ones(1, 3, 6)), ValueError, "expected state"),
        (
            lambda m: m(torch.ones(5, 4, 3), lengths=torch.tensor([6, 1, 1, 1])),
            ValueError,
            "expected lengths from 0 to",
        ),
        (lambda m: m(torch.ones(5, 4, 3), reset=torch.ones(5, 4)), TypeError, "expected reset of dtype bool"),
    ],
)
def test_wrong_arguments_are_refused(call, error, says):
    module = ft.from_layer(fastrnn.GRU(3, 6, rng=0))
    with pytest.raises(error, match=says):
        call(module)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_torch_cannot_follow_is_refused():
    module, x = ft.from_layer(fastrnn.GRU(3, 6, rng=0)), torch.ones(5, 4, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="but the model is traced or exported"):
        torch.jit.trace(module, x)
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"but a transform of torch\.func is active"):
        torch.func.grad(lambda x: module(x)[0].sum())(x)
    with pytest.raises(TypeError, match="expected an RNN, GRU or LSTM of fastrnn, got Linear"):
        ft.from_layer(fastrnn.Linear(3, 4))


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
def test_a_graph_that_is_compiled_breaks_around_it():
    module = ft.from_layer(fastrnn.GRU(3, 6, layer_norm=True, rng=0))
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), module), torch.randn(5, 4, 3)
    y, _ = torch.compile(model, backend="aot_eager")(x)
    assert torch.allclose(y, model(x)[0], atol=1e-6)
    y.sum().backward()
    assert module.weight_hh_l0.grad.abs().sum() > 0
