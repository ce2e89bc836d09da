"""fastrnn.torch in what surrounds a module: replaced weights, copies, transforms, compilers, threads, processes."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import threading
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

import fastrnn.torch as ft  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from torch_modules import as_tuple, assert_close, both, why  # noqa: E402

KINDS = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture(autouse=True)
def cells_of_all_sizes_run_here(monkeypatch):
    monkeypatch.setattr("fastrnn.torch.call._SOONER_CELLS", {})


def x_for(module, dtype=torch.float32):
    torch.manual_seed(3)
    return torch.randn(2, 3, dtype=dtype) if "Cell" in type(module).__name__ else torch.randn(5, 2, 3, dtype=dtype)


def results(module, x=None):
    """Outputs, and the gradients of what can be trained."""
    out = module(x_for(module, next(module.parameters()).dtype) if x is None else x)
    flat = [result for each in as_tuple(out) for result in as_tuple(each)]
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return [*flat, *torch.autograd.grad(sum(result.sin().sum() for result in flat), weights)]


def assert_same(ours, theirs, x=None, runs_here=True):
    for found, expected in zip(results(ours, x), results(theirs, x), strict=True):
        assert_close(found, expected)
    if runs_here:
        assert why(ours) is None


def pair(kind, **options):
    torch.manual_seed(0)
    return both(getattr(torch.nn, kind)(3, 4, **options))


def name_of(module):
    return "weight_hh" if "Cell" in type(module).__name__ else "weight_hh_l0"


# ---------------------------------------------------------------- weights that are replaced


def square(module):
    """Given transposed memory, which has the same address and shape."""
    weight = module.get_parameter("weight_hh_l0" if isinstance(module, torch.nn.RNNBase) else "weight_hh")
    weight.data = weight.data.t()


def other_data(module):
    for weight in module.parameters():
        weight.data = weight.data * 2


def updated(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1)


def assigned(module):
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, assign=True)


def loaded(module):
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def doubled(module):
    module.to(torch.float64)


def shared(module):
    module.share_memory()


def weight_normed(module):
    torch.nn.utils.weight_norm(module, name_of(module))


def parametrized(module):
    parametrizations.weight_norm(module, name_of(module))


def spectral(module):
    parametrize.register_parametrization(module, name_of(module), torch.nn.Tanh())


def pruned(module):
    torch.manual_seed(4)
    prune.random_unstructured(module, name_of(module), amount=0.5)


def deleted(module):
    """As code does that drops recurrent weights: the parameter goes, a tensor made of it takes its place."""
    name = name_of(module)
    weight = module._parameters.pop(name)
    module.register_parameter("raw", weight)
    setattr(module, name, weight * 0.5)


def tied(module):
    module.bias_other = getattr(module, name_of(module))


CHANGES = [
    other_data, updated, assigned, loaded, doubled, shared, weight_normed, parametrized, spectral, pruned, deleted,
    tied,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_seen_as_they_are_now(kind, change):
    theirs, ours = pair(kind)
    assert_same(ours, theirs)
    with torch.no_grad():
        ours(x_for(ours))
    for module in (theirs, ours):
        change(module)
    if change in (deleted, weight_normed, pruned):
        # these modules hold a tensor with a graph, which one backward pass uses up
        x = x_for(ours)
        for found, expected in zip(as_tuple(ours(x)), as_tuple(theirs(x)), strict=True):
            for a, b in zip(as_tuple(found), as_tuple(expected), strict=True):
                assert_close(a, b)
    else:
        assert_same(ours, theirs)
    with torch.no_grad():
        x = x_for(ours, ours.weight_ih.dtype if "Cell" in kind else ours.weight_ih_l0.dtype)
        found, expected = as_tuple(ours(x))[0], as_tuple(theirs(x))[0]
        assert_close(found, expected)
    assert why(ours) is None


def test_a_transposed_weight_at_the_same_address_is_seen():
    theirs, ours = both(torch.nn.RNN(3, 4))
    for module in (theirs, ours):
        module(x_for(module))
        square(module)
    assert torch.equal(ours(x_for(ours))[0].detach(), ours(x_for(ours))[0].detach())
    plain = torch.nn.RNN(3, 4)
    plain.load_state_dict(ours.state_dict())
    assert_close(ours(x_for(ours))[0], plain(x_for(plain))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_and_its_gradients(kind):
    theirs, ours = pair(kind)
    x, found = x_for(ours), []
    for module in (theirs, ours):
        torch.manual_seed(1)
        other = {name: torch.randn_like(weight).requires_grad_() for name, weight in module.named_parameters()}
        out = torch.func.functional_call(module, other, (x,))
        flat = [result for each in as_tuple(out) for result in as_tuple(each)]
        found.append([*flat, *torch.autograd.grad(sum(r.sum() for r in flat), list(other.values()))])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)
    assert_same(ours, theirs)


def test_the_graph_of_a_call_that_has_ended_is_not_kept():
    ours = ft.GRU(3, 4)
    other = {name: weight * 2 for name, weight in ours.named_parameters()}
    graph = weakref.ref(other["weight_hh_l0"])
    outputs = torch.func.functional_call(ours, other, (x_for(ours),))
    del other, outputs
    gc.collect()
    assert graph() is None


def wrong_bias(module):
    module.bias_ih_l0 = torch.nn.Parameter(torch.zeros(3))


def wrong_square(module):
    module.weight_hh_l0 = torch.nn.Parameter(torch.zeros(4, 4))


def wrong_hidden_size(module):
    module.hidden_size = 5


def wrong_layers(module):
    module.num_layers = 3


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", [wrong_bias, wrong_square, wrong_hidden_size, wrong_layers])
def test_weights_of_wrong_shapes_are_torchs_error(change, cached):
    theirs, ours = pair("GRU")
    if cached:
        ours(x_for(ours))
    for module in (theirs, ours):
        change(module)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(x_for(theirs))
    with pytest.raises(type(expected.value)) as found:
        ours(x_for(ours))
    assert str(found.value) == str(expected.value)
    assert "expected a weight of shape" in why(ours)


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_weights_without_memory_are_torchs_error(kind):
    theirs, ours = pair(kind)
    for cached in (False, True):
        for module in (theirs, ours):
            if cached:
                module(x_for(module))
            kept = [weight.data for weight in module.parameters()]
            for weight in module.parameters():
                weight.data = torch.empty(0)
            with pytest.raises(RuntimeError):
                module(x_for(module))
            for weight, data in zip(module.parameters(), kept, strict=True):
                weight.data = data
    assert_same(ours, theirs, runs_here=False)


@pytest.mark.parametrize("first", ["accelerated", "parametrised"])
@pytest.mark.parametrize("kind", KINDS)
def test_parametrisations_come_and_go(kind, first):
    theirs, _ = pair(kind)
    ours = copy.deepcopy(theirs)
    if first == "accelerated":
        ft.accelerate(ours)
    for module in (theirs, ours):
        parametrized(module)
    ft.accelerate(ours)
    assert type(ours).__name__ == f"Parametrized{kind}"
    assert_same(ours, theirs)
    with torch.no_grad():
        ours(x_for(ours))
    copied = copy.deepcopy(ours)
    assert_same(copied, theirs)
    restored = ft.restore(copied)
    assert_same(restored, theirs, runs_here=False)
    assert not isinstance(restored, ft.modules.Accelerated)
    for module in (theirs, ours, restored):
        parametrize.remove_parametrizations(module, name_of(module))
    assert_same(ours, theirs)
    assert type(ours) is getattr(ft, kind)
    assert type(restored) is getattr(torch.nn, kind)


def test_weights_that_moved_away_are_not_kept():
    module = ft.GRU(3, 4)
    module(x_for(module))
    memory = weakref.ref(module.__dict__["_fastrnn_weights"])
    module.to("meta")
    assert memory() is None


# ---------------------------------------------------------------- copies and files


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_run_here_on_weights_of_their_own(kind):
    theirs, ours = pair(kind)
    ours(x_for(ours))
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
        assert type(copied) is type(ours)
        assert not any(name.startswith("_fastrnn") for name in copied.__dict__)
        assert_same(copied, theirs)
        with torch.no_grad():
            for weight in copied.parameters():
                weight.zero_()
        assert_same(ours, theirs)


def test_a_state_dict_is_torchs():
    theirs, ours = both(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LSTM(3, 4, 2, bidirectional=True)))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


class Own(torch.nn.LSTM):
    """As third parties derive from torch's: something before and after its forward."""

    def __init__(self, *args, scale=2.0, **options):
        super().__init__(*args, **options)
        self.scale = scale

    def forward(self, input, hx=None):
        y, state = super().forward(input * self.scale, hx)
        return y + 1, state


def test_a_class_of_ones_own_keeps_what_it_adds_and_runs_here():
    torch.manual_seed(0)
    theirs, ours = both(Own(3, 4, scale=0.5))
    assert isinstance(ours, Own)
    assert type(ours).__name__ == "Own"
    assert_same(ours, theirs)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert copied.scale == 0.5
        assert_same(copied, theirs)
    assert type(ft.restore(ours)) is Own
    assert_same(ours, theirs, runs_here=False)


def test_restore_undoes_accelerate():
    model = torch.nn.ModuleDict({kind: getattr(torch.nn, kind)(3, 4) for kind in KINDS})
    classes = [type(module) for module in model.modules()]
    before = {name: value.data_ptr() for name, value in model.named_parameters()}
    assert ft.accelerate(model) is model
    assert all(type(module).__module__ == "fastrnn.torch.modules" for module in list(model.modules())[1:])
    assert ft.accelerate(model) is model
    for module in list(model.modules())[1:]:
        module(x_for(module))
    assert ft.restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == before
    assert not any(name.startswith("_fastrnn") for module in model.modules() for name in module.__dict__)


# ---------------------------------------------------------------- what torch has to run


class Marked(torch.Tensor):
    """A subclass, whose operators may do something else."""


@pytest.mark.parametrize(
    ("reason", "run"),
    [
        ("autocast is enabled", lambda module, x: torch.autocast("cpu", torch.bfloat16)(module)(x)),
        ("Marked", lambda module, x: module(x.as_subclass(Marked))),
        ("transform of torch.func", lambda module, x: torch.func.grad(lambda x: module(x)[0].sum())(x)),
        ("transform of torch.func", lambda module, x: torch.func.jvp(lambda x: module(x)[0], (x,), (x,))[1]),
        ("traced or exported", lambda module, x: torch.jit.trace(module, x)(x)),
    ],
)
def test_calls_that_torch_runs_are_reported(reason, run):
    theirs, ours = pair("RNN")
    theirs.requires_grad_(False), ours.requires_grad_(False)
    x = x_for(ours)
    expected = run(theirs, x)
    found = run(ours, x)
    for a, b in zip(as_tuple(found), as_tuple(expected), strict=True):
        assert torch.allclose(a.float().as_subclass(torch.Tensor), b.float().as_subclass(torch.Tensor), atol=1e-6)
    assert reason in why(ours)
    assert f"torch ran a call, since {why(ours)}" in str(ft.report(ours))


def test_bfloat16_runs_as_torchs_does():
    theirs, ours = pair("LSTM")
    for module in (theirs, ours):
        module.to(torch.bfloat16)
    x = x_for(ours, torch.bfloat16)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    (row,) = ft.report(ours).rows
    assert not row.runs_here
    assert row.why == "a tensor is of torch.bfloat16; float32 and float64 run here"


def test_a_module_on_another_device():
    module = ft.GRU(3, 4, device="meta")
    assert module(torch.empty(5, 2, 3, device="meta"))[0].shape == (5, 2, 4)
    assert ft.report(module).rows[0].why == "a tensor is on the device meta"


def test_torch_raises_its_own_errors_for_wrong_input():
    for kind in ("GRU", "LSTM"):
        theirs, ours = pair(kind)
        for args in [
            (torch.randn(5, 2, 4),), (torch.randn(5),), (torch.randn(5, 2, 3), torch.randn(1, 3, 4)),
            (torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 5))), (torch.randn(5, 2, 3).double(),),
            (torch.randn(0, 2, 3),), (torch.ones(5, 3, dtype=torch.int64),), ("no tensor",), (None,),
            (torch.randn(5, 2, 3), [torch.randn(1, 2, 4)] * 3),
        ]:  # fmt: skip
            with pytest.raises(Exception) as expected:  # noqa: PT011
                theirs(*args)
            with pytest.raises(type(expected.value)) as found:
                ours(*args)
            assert str(found.value) == str(expected.value)
    assert ours(torch.randn(5, 0, 3))[0].shape == (5, 0, 4)


def test_vmap_is_refused_as_by_torch():
    for module in pair("RNN"):
        with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::rnn_tanh"):
            torch.func.vmap(lambda x, module=module: module(x)[0])(torch.randn(4, 5, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_trains_sooner_it_trains(kind, monkeypatch):
    monkeypatch.undo()
    theirs, ours = both(getattr(torch.nn, kind)(256, 256))
    cell = "Cell" in kind
    step, steps = torch.randn(2, 256) if cell else torch.randn(1, 2, 256), torch.randn(4, 2, 256)
    assert_same(ours, theirs, step, runs_here=kind == "LSTM")
    assert (why(ours) is None) == (kind == "LSTM")
    ours.__dict__.pop(ft.modules.REASON, None)
    if not cell:
        assert_same(ours, theirs, steps)
        ours(step, reset=torch.ones(1, 2, dtype=torch.bool))
    with torch.no_grad():
        ours(step)
    assert why(ours) is None


def test_tangents_are_not_lost():
    theirs, ours = pair("LSTMCell")
    x, tangent, found = torch.randn(2, 3), torch.randn(2, 3), []
    for module in (theirs, ours):
        with torch.autograd.forward_ad.dual_level(), torch.no_grad():
            h, _ = module(torch.autograd.forward_ad.make_dual(x, tangent))
            found.append(torch.autograd.forward_ad.unpack_dual(h).tangent)
    assert_close(found[1], found[0])
    assert why(ours) == "forward-mode differentiation is active"


def test_a_mode_sees_every_operator():
    theirs, ours = pair("GRU")
    counts = []
    for module in (theirs, ours):
        with FlopCounterMode(display=False) as mode:
            module(x_for(module))
        counts.append(mode.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_default_device_is_not_for_the_seed_of_dropout():
    module, x = ft.GRU(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)
    with torch.device("meta"):
        y, _ = module(x)
    assert y.device.type == "cpu"
    y.sum().backward()


# ---------------------------------------------------------------- reset


@pytest.mark.parametrize("form", ["padded", "batch first", "unbatched"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_reset_is_a_walk_over_steps_with_zeroed_states(kind, form):
    torch.manual_seed(0)
    module = getattr(ft, kind)(3, 4, num_layers=2, batch_first=form == "batch first", dtype=torch.float64)
    plain = ft.restore(copy.deepcopy(module))
    plain.batch_first = False
    T, batch = 9, () if form == "unbatched" else (2,)
    x = torch.randn(T, *batch, 3, dtype=torch.float64)
    reset = torch.rand(T, *batch) < 0.4
    states = [torch.randn(2, *batch, 4, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "LSTM"))]
    flip = (lambda tensor: tensor.transpose(0, 1)) if form == "batch first" else lambda tensor: tensor
    y, final = module(flip(x), states[0] if len(states) == 1 else tuple(states), reset=flip(reset))
    found = [flip(y), *as_tuple(final)]
    found += torch.autograd.grad(sum(r.sin().sum() for r in found), [*states, *module.parameters()])

    steps, state = [], states
    for t in range(T):
        keep = (~reset[t]).to(torch.float64)[..., None]
        state = [s * keep for s in state]
        out, state = plain(x[t : t + 1], state[0] if len(state) == 1 else tuple(state))
        steps.append(out)
        state = list(as_tuple(state))
    expected = [torch.cat(steps), *state]
    expected += torch.autograd.grad(sum(r.sin().sum() for r in expected), [*states, *plain.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    with torch.no_grad():
        y, _ = module(flip(x), states[0] if len(states) == 1 else tuple(states), reset=flip(reset))
    assert_close(flip(y), expected[0].detach())


X, WRONG = torch.zeros(5, 2, 3), "expected reset as a tensor of torch.bool, got "


@pytest.mark.parametrize(
    ("x", "reset", "error", "says"),
    [
        (X, [True] * 5, TypeError, f"{WRONG}a list"),
        (X, torch.ones(5, 2), TypeError, f"{WRONG}torch.float32"),
        (X, torch.ones(2, 5, dtype=torch.bool), ValueError, r"expected reset of shape \(5, 2\), got \(2, 5\)"),
        (X[:, 0], torch.ones(5, 1, dtype=torch.bool), ValueError, r"expected reset of shape \(5,\)"),
        (X[..., :2], torch.ones(5, 2, dtype=torch.bool), ValueError, "expected x of shape"),
        (pack_sequence([X[:, 0]]), torch.ones(5, dtype=torch.bool), NotImplementedError, "a padded input"),
    ],
    ids=str,
)
def test_a_wrong_reset_is_refused(x, reset, error, says):
    with pytest.raises(error, match=says):
        ft.GRU(3, 4)(x, reset=reset)


def test_reset_is_never_dropped_where_torch_runs():
    module, x, reset = ft.GRU(3, 4), torch.randn(5, 2, 3), torch.ones(5, 2, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(NotImplementedError, match="autocast is enabled"):
        module(x, reset=reset)
    with pytest.raises(NotImplementedError, match=r"transform of torch\.func"):
        torch.func.grad(lambda x: module(x, reset=reset)[0].sum())(x)


# ---------------------------------------------------------------- script, trace, export


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)
        self.cell = torch.nn.LSTMCell(8, 5)
        self.out = torch.nn.Linear(5, 2)

    def forward(self, x):
        y, _ = self.rnn(x)
        h, c = self.cell(y[:, 0])
        h, c = self.cell(y[:, 1], (h, c))
        return self.out(h)


def test_script_has_the_plain_modules():
    torch.manual_seed(0)
    model = ft.accelerate(Tagger())
    x = torch.randn(2, 5, 3)
    expected = model(x)
    scripted = torch.jit.script(model)
    assert_close(scripted(x), expected)
    assert type(model.rnn) is torch.nn.GRU  # torch puts what it scripts into the model, too
    assert_close(ft.accelerate(model)(x), expected)
    assert why(model) is None
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_close(torch.jit.load(file)(x), expected)


def test_a_trace_has_torchs_operators():
    model = ft.accelerate(Tagger())
    x = torch.randn(2, 5, 3)
    traced = torch.jit.trace(model, x)
    assert "aten::gru" in str(traced.inlined_graph)
    assert_close(traced(x[:1]), model(x[:1]))


@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")
def test_an_export_has_torchs_operators():
    model = ft.accelerate(Tagger())
    x = torch.randn(2, 5, 3)
    exported = torch.export.export(model, (x,))
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("gru" in name for name in operators)
    assert not any("fastrnn" in name for name in operators)
    assert_close(exported.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_onnx_runs_what_was_exported(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = ft.accelerate(Tagger()).eval()
    x = torch.randn(2, 5, 3)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    assert_close(torch.from_numpy(found), model(x))


# ---------------------------------------------------------------- threads and processes


def test_several_threads_at_once():
    theirs, ours = both(torch.nn.Sequential(torch.nn.GRU(3, 16, 2)))
    expected, errors = [results(theirs, torch.full((4, 2, 3), float(k))) for k in range(4)], []

    def work(k):
        for _ in range(20):
            for found, wanted in zip(results(ours, torch.full((4, 2, 3), float(k))), expected[k], strict=True):
                try:
                    assert_close(found, wanted)
                except AssertionError as error:
                    errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


class Encoded(torch.utils.data.Dataset):
    """Encodes what it returns by a module, in the process of the loader's worker."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 8

    def __getitem__(self, index):
        with torch.no_grad():
            return self.module(torch.full((300, 2, 3), index / 10))[0][-1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_workers_of_a_data_loader_that_are_forked():
    module = ft.GRU(3, 64, 2)
    expected = torch.stack([Encoded(module)[k] for k in range(8)])
    loader = torch.utils.data.DataLoader(Encoded(module), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert_close(torch.cat(list(loader)), expected)
