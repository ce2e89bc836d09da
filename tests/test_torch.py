"""The layers against torch.nn: outputs, states and every gradient, from the same parameters."""

from __future__ import annotations

import warnings

import fastrnn
import numpy as np
import pytest

from autograd_oracle import run_autograd
from layer_cases import CLASSES
from problems import CASES, H, I, problem
from states import as_tuple

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
# What is promised: outputs to so much absolute, gradients to so much of their largest entry
OUTPUT_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
GRADIENT_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def counterpart(module):
    """The fastrnn layer of a torch module, with its parameters."""
    options = {
        name: getattr(module, name) for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    }
    if isinstance(module, torch.nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if isinstance(module, torch.nn.LSTM):
        options["proj_size"] = module.proj_size
    cls = getattr(fastrnn, type(module).__name__)
    layer = cls(module.input_size, module.hidden_size, dtype=DTYPES[module.weight_ih_l0.dtype], **options)
    layer.load_state_dict({name: array.detach().numpy() for name, array in module.named_parameters()})
    return layer


def like(states, arrays):
    """arrays as one state, or as a pair if the states are one."""
    return tuple(arrays) if isinstance(states, tuple) else arrays[0]


def leaf(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def assert_near(ours, theirs, tolerance, name, relative=False):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape, name
    assert ours.dtype == theirs.dtype, name
    scale = np.abs(theirs).max(initial=0) if relative else 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name)


def random_state(module, rng, *batch):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size, module.hidden_size][: 2 if module.mode == "LSTM" else 1]
    return [rng.normal(size=(rows, *batch, width)).astype(DTYPES[module.weight_ih_l0.dtype]) for width in widths]


def assert_equal(module, x, initial=None, lengths=None):
    """Both run forward and backward from x and the initial states, with random gradients coming in."""
    layer = counterpart(module)
    rng = np.random.default_rng(13)
    as_state = tuple if module.mode == "LSTM" else lambda states: next(iter(states))
    state = None if initial is None else as_state(initial)
    y, final, tape = layer.forward(x, state, lengths=lengths)
    dy = rng.normal(size=y.shape).astype(y.dtype)
    dfinal = [rng.normal(size=s.shape).astype(y.dtype) for s in as_tuple(final)]
    dx, dinitial = layer.backward(tape, dy, as_state(dfinal))

    x_torch = leaf(x)
    initial_torch = None if initial is None else [leaf(s) for s in initial]
    y_torch, final_torch = run_torch(module, x_torch, initial_torch and as_state(initial_torch), lengths)
    loss = (y_torch * torch.from_numpy(dy)).sum()
    for s, d in zip(as_tuple(final_torch), dfinal, strict=True):
        loss = loss + (s * torch.from_numpy(d)).sum()
    module.zero_grad()
    loss.backward()

    outputs, gradients = OUTPUT_TOLERANCE[y.dtype.name], GRADIENT_TOLERANCE[y.dtype.name]
    assert_near(y, y_torch, outputs, "y")
    for letter, ours, theirs in zip("hc", as_tuple(final), as_tuple(final_torch), strict=False):
        assert_near(ours, theirs, outputs, letter)
    assert_near(dx, x_torch.grad, gradients, "dx", relative=True)
    for letter, ours, theirs in zip("hc", as_tuple(dinitial), initial_torch or [], strict=False):
        assert_near(ours, theirs.grad, gradients, f"d{letter}", relative=True)
    names = [name for name, _ in module.named_parameters()]
    assert list(layer.grads) == names
    for name, parameter in module.named_parameters():
        assert_near(layer.grads[name], parameter.grad, gradients, name, relative=True)


def run_torch(module, x, state, lengths):
    if lengths is None:
        return module(x, state)
    rnn = torch.nn.utils.rnn
    packed = rnn.pack_padded_sequence(
        x, torch.from_numpy(lengths), batch_first=module.batch_first, enforce_sorted=False
    )
    y, final = module(packed, state)
    T = x.shape[1 if module.batch_first else 0]
    return rnn.pad_packed_sequence(y, batch_first=module.batch_first, total_length=T)[0], final


# ---------------------------------------------------------------------------------------------------------------------
# The layers of torch.nn
# ---------------------------------------------------------------------------------------------------------------------

MODULES = {
    "rnn tanh": ("RNN", {}),
    "rnn relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm projected": ("LSTM", {"proj_size": 6}),
}
STACKS = {
    "one layer": {},
    "no bias": {"bias": False},
    "three layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "two layers, bidirectional, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
every_module = pytest.mark.parametrize("name", MODULES)
every_stack = pytest.mark.parametrize("stack", STACKS)


def module_and_input(name, stack, T=11, B=5, dtype=torch.float64):
    cls, own = MODULES[name]
    torch.manual_seed(14)
    module = getattr(torch.nn, cls)(7, 18, dtype=dtype, **own, **STACKS[stack])
    rng = np.random.default_rng(14)
    x = rng.normal(size=(B, T, 7) if module.batch_first else (T, B, 7)).astype(DTYPES[dtype])
    return module, x, random_state(module, rng, B)


@every_stack
@every_module
def test_float64_outputs_and_gradients_are_those_of_torch(name, stack):
    module, x, state = module_and_input(name, stack)
    assert_equal(module, x)
    assert_equal(module, x, state)


@every_stack
@every_module
def test_float32_outputs_are_those_of_torch(name, stack):
    module, x, state = module_and_input(name, stack, T=50, B=16, dtype=torch.float32)
    assert_equal(module, x, state)


@pytest.mark.parametrize("name", ["rnn tanh", "gru", "lstm"])
def test_float32_outputs_are_those_of_torch_over_a_thousand_steps(name):
    module, x, state = module_and_input(name, "one layer", T=1000, B=1, dtype=torch.float32)
    assert_equal(module, x, state)


@every_stack
@every_module
def test_lengths_do_what_packed_sequences_do(name, stack):
    module, x, state = module_and_input(name, stack)
    for lengths in ([4, 11, 1, 7, 11], [9, 8, 3, 2, 1], [3, 3, 3, 3, 3]):
        assert_equal(module, x, state, np.array(lengths))
        assert_equal(module, x, lengths=np.array(lengths))


@pytest.mark.parametrize("batch_first", [False, True])
@every_module
def test_unbatched_input_is_that_of_torch(name, batch_first):
    cls, own = MODULES[name]
    module = getattr(torch.nn, cls)(7, 18, 2, batch_first=batch_first, bidirectional=True, dtype=torch.float64, **own)
    rng = np.random.default_rng(15)
    x = rng.normal(size=(9, 7))
    assert_equal(module, x)
    assert_equal(module, x, random_state(module, rng))


@every_module
def test_dropout_is_off_in_inference_and_total_at_one_as_in_torch(name):
    cls, own = MODULES[name]
    module = getattr(torch.nn, cls)(7, 18, 3, dropout=1.0, dtype=torch.float64, **own)
    x = np.random.default_rng(16).normal(size=(6, 3, 7))
    assert_equal(module.train(), x)  # the gradients of the first two layers are just zero
    with torch.no_grad():
        assert_near(counterpart(module)(x)[0], module.eval()(torch.from_numpy(x))[0], 1e-12, "y")


@every_module
def test_parameters_have_the_names_order_and_shapes_of_torch(name):
    cls, own = MODULES[name]
    for options in STACKS.values():
        module = getattr(torch.nn, cls)(7, 18, **own, **options)
        layer = getattr(fastrnn, cls)(7, 18, **own, **options)
        theirs = [(name, tuple(array.shape)) for name, array in module.state_dict().items()]
        assert [(name, array.shape) for name, array in layer.state_dict().items()] == theirs


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if "dropout" not in (*case, ())[2]])
def test_every_option_gives_what_autograd_gives(case):
    """Also what torch.nn has no layer for: other activations, clips, peepholes, coupled gates, reset masks."""
    p = problem(*CASES[case])
    layer = CLASSES[p.layer.cell](I, H, **CASES[case][1], dtype="float64")
    layer.load_state_dict(p.layer.params)
    drops = p.call.pop("noise", None) is not None
    y, state, tape = layer.forward(p.x, p.state, **p.call)
    if drops:  # the layer drew its own
        p.call["noise"] = tape.masks
    theirs = run_autograd(torch, p)
    dx, dstate = layer.backward(tape, p.dy, p.dstate)
    assert_near(y, theirs.y, 1e-12, "y")
    for letter, ours, other in zip("hc", as_tuple(state), theirs.state, strict=False):
        assert_near(ours, other, 1e-12, letter)
    for letter, ours, other in zip("hc", as_tuple(dstate), theirs.dstate, strict=False):
        assert_near(ours, other, 1e-10, f"d{letter}", relative=True)
    for name, gradient in theirs.grads.items():
        assert_near(layer.grads[name], gradient, 1e-10, name, relative=True)
    if theirs.dx is None:
        assert dx is None
    else:
        assert_near(dx, theirs.dx, 1e-10, "dx", relative=True)


# ---------------------------------------------------------------------------------------------------------------------
# torch's own module database
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database():
    """torch's test samples of its modules, by class name."""
    pytest.importorskip("expecttest", reason="torch's module database imports expecttest, which is not installed")
    with warnings.catch_warnings():
        # hypothesis would only seed other tests of theirs
        warnings.filterwarnings("ignore", "Fail to import hypothesis", ImportWarning)
        from torch.testing._internal.common_modules import module_db

    return {
        info.module_cls.__name__: info for info in module_db if info.module_cls.__module__ == "torch.nn.modules.rnn"
    }


@pytest.mark.parametrize(("cls", "count"), [("RNN", 32), ("GRU", 16), ("LSTM", 32)])
def test_every_sample_of_torchs_module_database_agrees(database, cls, count):
    """Float64; none of the samples has dropout."""
    torch.manual_seed(17)
    info = database[cls]
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    assert len(samples) == count
    for sample in samples:
        constructor, call = sample.constructor_input, sample.forward_input
        module = info.module_cls(*constructor.args, **constructor.kwargs, dtype=torch.float64)
        assert module.dropout == 0
        assert not call.kwargs
        x, *states = call.args
        states = [s.numpy() for s in as_tuple(states[0])] if states else None
        assert_equal(module, x.numpy(), states)


@pytest.mark.parametrize("cls", ["RNN", "GRU", "LSTM"])
def test_what_torchs_module_database_calls_an_error_is_one(database, cls):
    info = database[cls]
    samples = info.module_error_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    assert len(samples) >= 14
    for sample in samples:
        constructor, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        options = {name: value for name, value in constructor.kwargs.items() if name != "device"}
        if "dtype" in options:
            options["dtype"] = DTYPES[options["dtype"]]
        if sample.error_on.name == "CONSTRUCTION_ERROR":
            with pytest.raises(sample.error_type):
                getattr(fastrnn, cls)(*constructor.args, **options)
        else:
            layer = getattr(fastrnn, cls)(*constructor.args, **options)
            arguments = [argument.numpy() for argument in call.args]
            with pytest.raises((TypeError, ValueError)):
                layer(*arguments)
