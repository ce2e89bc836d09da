"""Gradients of fastrnn.torch as torch's autograd uses them: checks, second derivatives, changed tensors, hooks."""

from __future__ import annotations

import copy
import gc
import io

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

import fastrnn  # noqa: E402
import fastrnn.torch as ft  # noqa: E402
from fastrnn import _core  # noqa: E402
from fastrnn.engine import Tape  # noqa: E402
from fastrnn.torch import modules  # noqa: E402
from fastrnn.torch.call import SmallTape  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from torch_modules import as_tuple, assert_close, both  # noqa: E402

LONG = 50_000  # steps: more than a small training pass has
KINDS = ["RNN", "GRU", "LSTM"]
OPTIONS = {
    "one layer": {},
    "batch first": {"batch_first": True, "bias": False},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "dropout, two directions, batch first": {
        "num_layers": 3, "dropout": 0.4, "bidirectional": True, "batch_first": True,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def cells_of_all_sizes_run_here(monkeypatch):
    monkeypatch.setattr("fastrnn.torch.call._SOONER_CELLS", {})


def made(kind, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return getattr(ft, kind)(3, 4, dtype=dtype, **options)


def states_of(module, *batch):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return [
        torch.randn(rows, *batch, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(1 + (module.mode == "LSTM"))
    ]


def one_or_pair(states):
    return states[0] if len(states) == 1 else tuple(states)


def function_of(module, given):
    """(x, *states, *weights) -> outputs, with the same dropout at each call."""

    def function(x, *others):
        torch.manual_seed(7)
        n = len(others) - len(given)
        weights = dict(zip(given, others[n:], strict=True))
        packed = pack_sequence(list(x.split([5, 3, 2]))) if x.dim() == 2 and x.shape[0] == 10 else x
        y, final = call_with(module, weights, packed, one_or_pair(others[:n]) if n else None)
        return y.data if x is not packed else y, *as_tuple(final)

    return function


def call_with(module, weights, x, hx):
    """The module with other weights; functional_call is tested elsewhere, and is slow."""
    own = {name: module._parameters[name] for name in weights}
    module._parameters.update(weights)
    try:
        return module(x, hx)
    finally:
        module._parameters.update(own)


def double_problem(kind, options, form):
    module = made(kind, **options)
    shape = {"padded": (4, 2, 3), "unbatched": (4, 3), "packed": (10, 3)}[form]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    states = states_of(module, *{"padded": (4 if module.batch_first else 2,), "unbatched": (), "packed": (3,)}[form])
    names = [name for name, _ in module.named_parameters()]
    return function_of(module, names), (x, *states, *module.parameters())


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_limit_of_finite_differences(kind, options, form):
    function, inputs = double_problem(kind, options, form)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=len(inputs) > 8)  # the directions chosen at random


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_so_are_gradients_of_gradients(kind, options, form):
    function, inputs = double_problem(kind, options, form)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    loss = sum(output.sin().sum() for output in function(*inputs))
    once = torch.autograd.grad(loss, inputs, retain_graph=True)
    for found, expected in zip(torch.autograd.grad(loss, inputs, create_graph=True), once, strict=True):
        assert_close(found, expected)  # the same dropout


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_cells(kind, batch, bias):
    torch.manual_seed(0)
    cell = getattr(ft, kind)(3, 4, bias, dtype=torch.float64)
    x, *states = [torch.randn(*batch, n, dtype=torch.float64, requires_grad=True) for n in (3, 4, 4)]
    states = states[: 1 + (kind == "LSTMCell")]
    names = [name for name, _ in cell.named_parameters()]

    def function(x, *others):
        n = len(others) - len(names)
        weights = dict(zip(names, others[n:], strict=True))
        return call_with(cell, weights, x, one_or_pair(others[:n]) if n else None)

    for given in ((x, *states), (x,)):
        assert torch.autograd.gradcheck(function, (*given, *cell.parameters()))
        assert torch.autograd.gradgradcheck(function, (*given, *cell.parameters()))


def test_a_gradient_penalty_is_part_of_the_loss():
    theirs, ours = both(torch.nn.GRU(3, 4, dtype=torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        y, _ = module(x)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (y.sum() + dx.square().sum()).backward()
        found.append([weight.grad for weight in module.parameters()])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


def test_a_second_derivative_through_reset_is_refused_and_not_detached():
    module, x = made("GRU"), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    y, _ = module(x, reset=torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="was asked for through a call with reset="):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("changed", ["x", "h0", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("T", [5, LONG])
def test_an_input_changed_before_backward_is_torchs_error(changed, T):
    module, x = made("LSTM"), torch.randn(T, 2, 3, dtype=torch.float64)
    h0, c0 = states_of(module, 2)
    h0 = h0.detach()
    y, (_, c) = module(x, (h0, c0))
    loss = y.sum() + c.sum()
    with torch.no_grad():
        {"x": x, "h0": h0}.get(changed, getattr(module, changed, None)).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("changed", ["y", "h", "c"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_may_be_changed_before_backward(kind, options, changed):
    """As by ReLU(inplace=True), and as torch allows for most of its modules: the gradient is of what was computed."""
    module, x, found = made(kind, **options), torch.randn(5, 2, 3, dtype=torch.float64), []
    for changes in (False, True):
        torch.manual_seed(5)
        y, final = module(x)
        outputs = dict(zip("yhc", (y, *as_tuple(final)), strict=False))
        loss = sum((output * torch.arange(4).repeat(output.shape[-1] // 4)).sum() for output in outputs.values())
        if changes and changed in outputs:
            with torch.no_grad():
                outputs[changed].zero_()
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_states_may_be_masked_in_place_between_calls():
    theirs, ours = both(torch.nn.GRU(3, 4, dtype=torch.float64))
    x, mask, found = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([[[1.0], [0.0]]], dtype=torch.float64), []
    for module in (theirs, ours):
        y, h = module(x)
        h *= mask
        y.relu_()
        z, _ = module(x, h)
        found.append(torch.autograd.grad(z.sum() + y.sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


@pytest.mark.parametrize("T", [5, LONG])
def test_other_memory_given_to_a_tensor_does_not_reach_what_is_saved(T):
    """The memory that x had is freed as soon as nothing refers to it, and used for other tensors."""
    module, found = made("GRU"), []
    for changes in (False, True):
        torch.manual_seed(5)
        x = torch.randn(T, 2, 3, dtype=torch.float64)
        y, _ = module(x)
        if changes:
            x.data = torch.zeros(T, 2, 3, dtype=torch.float64)
        filler = [torch.full((T, 2, 3), torch.nan, dtype=torch.float64) for _ in range(20)]
        found.append(torch.autograd.grad(y.sum(), list(module.parameters())))
        assert len(filler) == 20
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("which", ["weights", "x"])
@pytest.mark.parametrize("kind", [*KINDS, "GRUCell"])
def test_memory_that_was_given_back_and_is_there_again_for_backward(kind, which):
    """As under FSDP, which holds weights only while they are needed."""
    torch.manual_seed(0)
    module, found = getattr(ft, kind)(64, 64), []
    x = torch.randn(2, 64) if "Cell" in kind else torch.randn(5, 2, 64)
    for changes in (False, True):
        out = as_tuple(module(x))[0]
        if changes:
            tensors = [weight.data for weight in module.parameters()] if which == "weights" else [x]
            copies = [tensor.clone() for tensor in tensors]
            for tensor in tensors:
                tensor.untyped_storage().resize_(0)
            filler = [torch.full_like(copied, torch.nan) for copied in copies for _ in range(8)]
            for tensor, copied in zip(tensors, copies, strict=True):
                tensor.untyped_storage().resize_(copied.nbytes)
                tensor.copy_(copied) if which == "weights" else tensor.data.copy_(copied)
            assert filler
        found.append(torch.autograd.grad(out.sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("T", [5, LONG])
def test_two_backward_passes_have_gradients_of_their_own(T):
    module, x = made("GRU", num_layers=2), torch.randn(T, 2, 3, dtype=torch.float64)
    y, _ = module(x)
    first = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(y.sum(), list(module.parameters()))
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.data_ptr() != c.data_ptr()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y.sum(), list(module.parameters()))


@pytest.mark.parametrize("T", [5, LONG])
def test_what_a_pass_saved_is_freed_by_backward(T):
    module = made("LSTM", torch.float32)
    y, _ = module(torch.randn(T, 2, 3))
    assert isinstance(y.grad_fn.saved_tensors[0].saved.tape, SmallTape if T == 5 else Tape)
    gc.collect()
    before = passes_alive()
    y.sum().backward()
    gc.collect()
    assert passes_alive() == before - 1
    assert y.grad_fn is not None


def passes_alive():
    return sum(type(thing) is _core.LayerPass for thing in gc.get_objects())


def test_gradients_for_some_only():
    theirs, ours = both(torch.nn.LSTM(3, 4, 2))
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l1.requires_grad_(False)
        _, (_, c) = module(torch.linspace(-1, 1, 30).view(5, 2, 3))
        c.sin().sum().backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(found.grad, expected.grad)
    for module in (theirs, ours):
        module.requires_grad_(False)
    x = torch.randn(5, 2, 3, requires_grad=True)
    dx = [torch.autograd.grad(module(x)[0].sum(), x)[0] for module in (theirs, ours)]
    assert_close(dx[1], dx[0])
    assert not ours(x.detach())[0].requires_grad


def test_gradients_of_outputs_in_any_memory():
    theirs, ours = both(torch.nn.GRU(3, 4, batch_first=True))
    x = torch.randn(3, 10, 2).transpose(0, 2).requires_grad_()
    grads = [torch.randn(()).expand(2, 10, 4), torch.randn(4, 10, 2).transpose(0, 2), torch.randn(2, 10, 8)[..., ::2]]
    for dy in grads:
        found = [torch.autograd.grad(module(x)[0], [x, *module.parameters()], dy) for module in (theirs, ours)]
        for a, b in zip(*found, strict=True):
            assert_close(b, a)


def test_dropout_is_off_in_evaluation_and_follows_torchs_seed():
    module = made("LSTM", num_layers=3, dropout=0.5)
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    plain = ft.restore(copy.deepcopy(module)).eval()
    assert_close(module.eval()(x)[0], plain(x)[0])
    with torch.no_grad():
        assert_close(module(x)[0], plain(x)[0])
    module.train()
    for grad in (True, False):
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with torch.set_grad_enabled(grad):
                results.append(module(x)[0])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
    torch.manual_seed(3)
    assert not torch.equal(module(x)[0], module(x)[0])


def test_dropout_drops_as_often_as_it_says_and_keeps_the_mean():
    module = ft.RNN(1, 400, 2, dropout=0.25, nonlinearity="relu")
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.zero_()
            if name in ("bias_ih_l0", "weight_ih_l1"):
                weight.copy_(torch.eye(400) if weight.dim() == 2 else torch.ones(400))
    y, _ = module(torch.zeros(50, 1, 1))
    assert y.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("T", [5, LONG])
def test_checkpointing_gives_the_same_gradients(use_reentrant, T):
    module, x = made("GRU", num_layers=2, dropout=0.5), torch.randn(T, 2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (lambda x: module(x)[0], lambda x: checkpoint(lambda x: module(x)[0], x, use_reentrant=use_reentrant)):
        torch.manual_seed(4)
        found.append(torch.autograd.grad if not use_reentrant else None)
        module.zero_grad()
        x.grad = None
        run(x).sin().sum().backward()
        found[-1] = [x.grad.clone(), *(weight.grad.clone() for weight in module.parameters())]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("T", [5, LONG])
def test_hooks_that_save_copies_give_the_same_gradients(T):
    module, x = made("LSTM", num_layers=2, dropout=0.5), torch.randn(T, 2, 3, dtype=torch.float64)
    found = []
    for pack in (lambda tensor: tensor, lambda tensor: tensor.clone()):
        torch.manual_seed(4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = module(x)
        found.append(torch.autograd.grad(y.sin().sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_hooks_of_modules_and_tensors_are_called():
    theirs, ours = both(torch.nn.GRU(3, 4))
    seen = {}
    for name, module in (("theirs", theirs), ("ours", ours)):
        calls = seen[name] = []
        module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(("pre", len(args))))
        module.register_forward_hook(lambda _, args, out, calls=calls: calls.append(("forward", len(out))))
        module.register_full_backward_hook(lambda _, dx, dy, calls=calls: calls.append(("backward", len(dx), len(dy))))
        module.weight_hh_l0.register_hook(lambda grad, calls=calls: calls.append(("weight", grad.shape)))
        module(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()
    assert seen["ours"] == seen["theirs"]
    assert len(seen["ours"]) == 4


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode():
    module = made("GRU")
    with torch.autograd.detect_anomaly(check_nan=True):
        module(torch.randn(5, 2, 3, dtype=torch.float64))[0].sum().backward()
    assert module.weight_hh_l0.grad.abs().sum() > 0


def test_a_state_passed_on_is_differentiated_through():
    theirs, ours = both(torch.nn.LSTM(3, 4))
    x = torch.randn(8, 2, 3)
    found = []
    for module in (theirs, ours):
        module.zero_grad()
        y1, state = module(x[:3])
        y2, _ = module(x[3:], list(state))
        (y1.sum() + y2.sin().sum()).backward()
        found.append([weight.grad for weight in module.parameters()])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)
    assert modules.REASON not in ours.__dict__


def test_batched_gradients():
    """is_grads_batched runs backward under vmap, which reads no memory."""
    theirs, ours = both(torch.nn.RNN(3, 4, dtype=torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found = [
        torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0].sum(0), x, vectorize=True) for m in (theirs, ours)
    ]
    assert_close(found[1], found[0])


def test_gradients_of_other_kinds():
    theirs, ours = both(torch.nn.RNN(3, 4, dtype=torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(5, 2, 4, dtype=torch.complex128).conj().imag
    for dy in (negative, torch.randn(5, 2, 4, dtype=torch.float64).to_sparse().to_dense(), negative.resolve_neg()):
        found = [torch.autograd.grad(module(x)[0], [x, *module.parameters()], dy) for module in (theirs, ours)]
        for a, b in zip(*found, strict=True):
            assert_close(b, a)
    y, _ = ft.from_layer(fastrnn.RNN(3, 4, layer_norm=True, dtype="float64"))(x)
    with pytest.raises(RuntimeError, match="has no operator"):
        torch.autograd.grad(y, x, negative)


def test_a_pass_that_is_made_again_reads_weights_in_any_memory():
    theirs, ours = both(torch.nn.RNN(3, 4, dtype=torch.float64))
    found = []
    for module in (theirs, ours):
        weight = torch.arange(16, dtype=torch.float64).view(4, 4).sin()
        module.weight_hh_l0 = torch.nn.Parameter(weight.t())
        y, _ = module(torch.ones(5, 2, 3, dtype=torch.float64))
        found.append(torch.autograd.grad(y.relu_().sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


@pytest.mark.parametrize("kind", ["module", "layer"])
@pytest.mark.parametrize("T", [5, LONG])
def test_a_reset_mask_may_be_used_again_before_backward(kind, T):
    module = made("GRU") if kind == "module" else ft.from_layer(fastrnn.GRU(3, 4, dtype="float64", rng=0))
    x, found = torch.randn(T, 2, 3, dtype=torch.float64), []
    for changes in (False, True):
        reset = torch.arange(2 * T).view(T, 2) % 3 == 0
        y, _ = module(x, reset=reset)
        if changes:
            reset.zero_()
        found.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_hooks_may_pickle_what_is_saved():
    def pack(tensor):
        file = io.BytesIO()
        torch.save(tensor, file)
        return file

    def unpack(file):
        file.seek(0)
        return torch.load(file, weights_only=False)

    module, x = made("LSTM"), torch.randn(5, 2, 3, dtype=torch.float64)
    found = [torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))]
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y, _ = module(x)
    found.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
