"""fastrnn.torch under torch.compile: whole graphs, the operators in them, and what they keep."""

from __future__ import annotations

import copy
import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

import fastrnn.torch as ft  # noqa: E402
from fastrnn.torch import compiled  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

from torch_modules import as_tuple, assert_close, why  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # of Dynamo
]
BACKENDS = ["aot_eager", *["inductor"] * bool(shutil.which("g++"))]
OPTIONS = {
    "one layer": {},
    "no bias": {"bias": False},
    "batch first, two layers, two directions": {"batch_first": True, "num_layers": 2, "bidirectional": True},
}


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(torch.nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.before, self.rnn = torch.nn.Linear(3, 5), getattr(torch.nn, kind)(5, 4, **options)

    def forward(self, x, hx=None):
        return self.rnn(self.before(x).tanh(), hx)


def results(model, *args):
    out = model(*args)
    flat = [result for each in as_tuple(out) for result in as_tuple(each)]
    leaves = [leaf for arg in args for leaf in as_tuple(arg) if leaf.requires_grad]
    return [*flat, *torch.autograd.grad(sum(r.sin().sum() for r in flat), leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_whole_graph_gives_what_torch_gives(kind, options, backend):
    torch.manual_seed(0)
    theirs = Model(kind, **options)
    ours = ft.accelerate(copy.deepcopy(theirs))
    fast = torch.compile(ours, fullgraph=True, backend=backend)
    rows, B = theirs.rnn.num_layers * (2 if theirs.rnn.bidirectional else 1), 2 if not theirs.rnn.batch_first else 6
    hx = tuple(torch.randn(rows, B, 4, requires_grad=True) for _ in range(1 + (kind == "LSTM")))
    x = torch.randn(6, 2, 3, requires_grad=True)
    for args in ((x,), (x, hx if kind == "LSTM" else hx[0])):
        for found, expected in zip(results(fast, *args), results(theirs, *args), strict=True):
            assert_close(found, expected)
    fast(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(found.grad, expected.grad)
    with torch.no_grad():
        assert_close(fast(x)[0], theirs(x)[0])
    assert why(ours) is None


class Walk(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = getattr(torch.nn, kind)(3, 4)

    def forward(self, x):
        state = None
        for step in x:
            state = self.cell(step, state)
        return state


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_in_a_loop(kind):
    theirs = Walk(kind)
    ours = torch.compile(ft.accelerate(copy.deepcopy(theirs)), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, 3, requires_grad=True)
    for found, expected in zip(results(ours, x), results(theirs, x), strict=True):
        assert_close(found, expected)


def test_a_projection_and_float64():
    theirs = torch.nn.LSTM(3, 6, proj_size=4, dtype=torch.float64)
    ours = torch.compile(ft.accelerate(copy.deepcopy(theirs)), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    for found, expected in zip(results(ours, x), results(theirs, x), strict=True):
        assert_close(found, expected)


def test_lengths_that_change_and_reset():
    module = ft.GRU(3, 4, 2, batch_first=True)
    fast = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (3, 5, 8):
        x, reset = torch.randn(T, 2, 3, requires_grad=True), torch.rand(T, 2) < 0.4
        assert_close(fast(x, reset=reset)[0], module(x, reset=reset)[0])
        assert_close(fast(x)[0], module(x)[0])


def test_dropout_follows_torchs_seed():
    module = ft.LSTM(3, 4, 3, dropout=0.5)
    fast, x, found = torch.compile(module, fullgraph=True, backend="aot_eager"), torch.randn(5, 2, 3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y, _ = fast(x)
        found.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    for a, b in zip(found[0], found[1], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(found[0][0], found[2][0])
    module.eval()
    assert_close(fast(x)[0], ft.restore(copy.deepcopy(module))(x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_uses_what_forward_saved(backend, monkeypatch):
    passes, real = [], compiled._passed

    def counted(*args):
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(compiled, "_passed", counted)
    fast = torch.compile(ft.accelerate(Model("GRU")), fullgraph=True, backend=backend)
    x = torch.randn(5, 2, 3)
    fast(x)[0].sum().backward()
    passes.clear()
    for _ in range(3):
        fast(x)[0].sum().backward()
    assert len(passes) == 3


GRU = "GRU, bias, engine"


@pytest.mark.parametrize("given", ["x", "states", "reset", "batch first", "cell"])
def test_the_operator_is_what_torch_says_an_operator_is(given):
    x, h = torch.randn(5, 2, 3, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    weights = list(torch.nn.GRU(3, 4).parameters())
    args = {
        "x": (x, [], weights, None, None, 0.0, GRU),
        "states": (x, [h], weights, None, None, 0.0, GRU),
        "reset": (x, [h], weights, torch.ones(5, 2, dtype=torch.bool), None, 0.0, GRU),
        "batch first": (x, [], weights, None, None, 0.0, "GRU, bias, batch first"),
        "cell": (x[0].detach(), [h[0].detach()], weights, None, None, 0.0, "GRU, bias, cell"),
    }
    torch.library.opcheck(torch.ops.fastrnn.recurrence.default, args[given])


def test_what_cannot_be_one_operator_is_torchs():
    module = ft.GRU(3, 4)
    fast = torch.compile(module, backend="aot_eager")
    assert_close(
        fast.to(torch.bfloat16)(torch.ones(5, 2, 3, dtype=torch.bfloat16))[0].float(),
        module(torch.ones(5, 2, 3, dtype=torch.bfloat16))[0].float(),
    )
    with pytest.raises(Exception, match=r"reset=, but a tensor is of torch\.bfloat16"):
        fast(torch.ones(5, 2, 3, dtype=torch.bfloat16), reset=torch.ones(5, 2, dtype=torch.bool))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "behind", [lambda y: torch.relu(y).square(), lambda y: torch.sigmoid(y * 3 + 1), lambda y: torch.exp(y)]
)
def test_what_comes_behind_y_in_a_graph_may_use_its_memory(behind, backend):
    """y is read in backward, and has to be what it was."""
    theirs = torch.nn.LSTM(3, 4, 2)
    ours = ft.accelerate(copy.deepcopy(theirs))

    def loss(module, x):
        return behind(module(x)[0]).sum()

    fast = torch.compile(loss, fullgraph=True, backend=backend)
    x = torch.randn(40, 8, 3, requires_grad=True)
    for found, expected in zip(
        torch.autograd.grad(fast(ours, x), [x, *ours.parameters()]),
        torch.autograd.grad(loss(theirs, x), [x, *theirs.parameters()]),
        strict=True,
    ):
        assert_close(found, expected)


def test_an_output_of_a_graph_that_is_changed_in_place_is_an_error():
    y, _ = torch.compile(ft.GRU(3, 4), fullgraph=True, backend="aot_eager")(torch.randn(5, 2, 3))
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("change", ["transposed", "short", "double"])
def test_weights_are_checked_in_a_graph_too(change):
    ours, theirs = ft.RNN(3, 4), torch.nn.RNN(3, 4)
    weight = torch.randn(4, 4)
    weight = {"transposed": weight.t(), "short": weight[:3], "double": weight.double()}[change]
    ours.weight_hh_l0 = torch.nn.Parameter(weight)
    fast = torch.compile(ours, fullgraph=True, backend="aot_eager")
    if change == "transposed":
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(5, 2, 3, requires_grad=True)
        for found, expected in zip(results(fast, x), results(theirs, x), strict=True):
            assert_close(found, expected)
    else:
        with pytest.raises(RuntimeError, match="expected a weight of shape"):
            fast(torch.randn(5, 2, 3))


def test_modules_of_torch_are_compiled_as_ever():
    """They break the graph, which would else hold every step."""
    module, x = torch.nn.GRU(3, 4), torch.randn(30, 2, 3)
    with pytest.raises(Exception, match="RNN, GRU, or LSTM"):
        torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert not torch._dynamo.config.allow_rnn
    assert_close(torch.compile(ft.accelerate(module), fullgraph=True, backend="aot_eager")(x)[0], module(x)[0])


def test_packed_sequences_break_the_graph_and_run_here():
    module = ft.GRU(3, 4)

    def encode(x):
        return module(pack_sequence([x[:5, 0], x[:3, 1]]))[1]

    x = torch.randn(5, 2, 3)
    h = torch.compile(encode, backend="aot_eager")(x)
    assert_close(h, encode(x))
    assert why(module) is None


def test_tangents_are_not_lost_in_a_graph():
    module, x, v = ft.RNN(3, 4), torch.randn(5, 2, 3), torch.randn(5, 2, 3)

    def tangent(x, v):
        return torch.func.jvp(lambda z: module(z)[0], (x,), (v,))[1]

    assert_close(torch.compile(tangent, backend="aot_eager")(x, v), tangent(x, v))
