"""Optimisers, schedules and gradient clipping: against torch and against the formulas."""

import copy
import inspect
import math
import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn.engine import tuning
from fastrnn.nn.linear import Linear
from fastrnn.optim import SGD, Adam, AdamW, Cosine, RMSprop, StepDecay, WarmUp, clip_grad_norm
from fastrnn.optim import base as optimizer_module


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_modules(dtype="float64"):
    """Two modules, the first longer than a block of the optimiser and no multiple of it."""
    return [Linear(131, 97, dtype=dtype, rng=0), Linear(5, 3, dtype=dtype, rng=1)]


def fill_gradients(modules, rng, scale=1.0):
    for module in modules:
        for array in module.grads.values():
            array[...] = scale * rng.normal(size=array.shape)


def as_torch(torch, modules):
    """Torch parameters with the values and gradients of ours."""
    parameters = []
    for module in modules:
        for name, array in module.params.items():
            parameters.append(torch.tensor(array, requires_grad=True))
            parameters[-1].grad = torch.tensor(module.grads[name])
    return parameters


def assert_equal_parameters(modules, parameters, rtol):
    ours = [array for module in modules for array in module.params.values()]
    for mine, theirs in zip(ours, parameters, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=rtol, atol=1e-15)


KINDS = [
    (SGD, {}),
    (SGD, {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (Adam, {}),
    (Adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}),
    (Adam, {"lr": 0.1, "betas": (0.0, 0.0), "weight_decay": 0.3}),
    (AdamW, {}),
    (AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    (RMSprop, {}),
    (RMSprop, {"lr": 0.1, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.3}),
    (RMSprop, {"lr": 0.1, "momentum": 0.9}),
    (RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.9}),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)


@every_kind
def test_steps_are_those_of_torch(rng, kind, options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    modules = make_modules()
    parameters = as_torch(torch, modules)
    ours, theirs = kind(modules, **options), getattr(torch.optim, kind.__name__)(parameters, **options)
    for step in range(7):
        fill_gradients(modules, rng, scale=10.0 ** -(2 * step))
        for parameter, fresh in zip(parameters, as_torch(torch, modules), strict=True):
            parameter.grad = fresh.grad
        ours.step()
        theirs.step()
        assert_equal_parameters(modules, parameters, rtol=1e-12)


@every_kind
def test_defaults_are_those_of_torch(kind, options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ours = inspect.signature(kind).parameters
    theirs = inspect.signature(getattr(torch.optim, kind.__name__)).parameters
    for name in set(ours) - {"modules", "groups"}:
        assert ours[name].default == theirs[name].default, name


def formula_step(kind, options, step, p, g, state):
    """One step, the first being 1, by the formula in the docstring of its kind, on float64 arrays."""
    o = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()} | options
    if kind is not AdamW:
        g = g + o["weight_decay"] * p
    if kind is SGD:
        b = g if step == 1 else o["momentum"] * state.get("b", 0) + (1 - o["dampening"]) * g
        state["b"] = b
        change = o["lr"] * (g + o["momentum"] * b if o["nesterov"] else b if o["momentum"] else g)
    elif kind is RMSprop:
        v = state["v"] = o["alpha"] * state.get("v", 0) + (1 - o["alpha"]) * g**2
        m = state["m"] = o["alpha"] * state.get("m", 0) + (1 - o["alpha"]) * g
        d = g / (np.sqrt(v - m**2 if o["centered"] else v) + o["eps"])
        state["b"] = o["momentum"] * state.get("b", 0) + d
        change = o["lr"] * state["b"]
    else:
        b1, b2 = o["betas"]
        m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
        change = o["lr"] / (1 - b1**step) * m / (np.sqrt(v) / math.sqrt(1 - b2**step) + o["eps"])
        if kind is AdamW:
            p = p * (1 - o["lr"] * o["weight_decay"])
    return p - change


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_kind
def test_steps_are_those_of_the_formula_in_every_instruction_set(rng, kind, options, dtype, instructions):
    modules = make_modules(dtype)
    optimizer = kind(modules, **options)
    expected = [array.astype(float) for module in modules for array in module.params.values()]
    states = [{} for _ in expected]
    for step in range(1, 5):
        fill_gradients(modules, rng)
        optimizer.step()
        gradients = [array.astype(float) for module in modules for array in module.grads.values()]
        for index, (g, state) in enumerate(zip(gradients, states, strict=True)):
            expected[index] = formula_step(kind, options, step, expected[index], g, state)
    ours = [array for module in modules for array in module.params.values()]
    # centered: the difference v - m^2 has lost digits
    tolerance = {"float32": 2e-2 if options.get("centered") else 1e-4, "float64": 1e-10}[dtype]
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@every_kind
def test_padding_between_parameters_stays_zero(rng, kind, options):
    modules = make_modules("float32")
    optimizer = kind(modules, **options)
    for _ in range(3):
        fill_gradients(modules, rng)
        optimizer.step()
    for module in modules:
        for flat in (module.flat_params, *(flats[modules.index(module)] for flats in optimizer._state.values())):
            named = module.named(np.ones_like(flat))
            padding = np.ones_like(flat)
            for name, where in module.param_ranges.items():
                padding[where][: named[name].size] = 0
            assert padding.sum() > 0
            assert not (flat * padding).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_centered_rmsprop_stands_gradients_without_variance(rng, dtype):
    modules = make_modules(dtype)
    fill_gradients(modules, rng)
    optimizer = RMSprop(modules, lr=1e-6, alpha=0.5, centered=True)
    for _ in range(100):
        optimizer.step()
        assert all(np.isfinite(module.flat_params).all() for module in modules)


@every_kind
def test_any_number_of_threads_gives_the_same_bits(rng, kind, options, monkeypatch):
    monkeypatch.setattr(tuning, "UPDATED", 1 << 10)
    monkeypatch.setattr(tuning, "SUMMED", 1 << 11)
    count, results = fastrnn.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            fastrnn.set_num_threads(threads)
            modules, generator = make_modules("float32"), np.random.default_rng(3)
            optimizer = kind(modules, **options, groups={"bias": {"lr": 0.2}})
            assert len(optimizer._tasks) > 8
            for _ in range(3):
                fill_gradients(modules, generator)
                norm = optimizer.step(max_norm=0.5)
            results.append((norm, *(module.flat_params.tobytes() for module in modules)))
    finally:
        fastrnn.set_num_threads(count)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("size", [1, 16, 100, 131 * 97, 1 << 30])
def test_tasks_hold_every_element_once(size):
    modules = make_modules()
    ranges = [(index, slice(0, module.flat_params.size), 0) for index, module in enumerate(modules)]
    tasks = optimizer_module._cut(ranges, size)
    counts = [np.zeros(module.flat_params.size, int) for module in modules]
    for task in tasks:
        assert sum(where.stop - where.start for _, where, _ in task) <= size
        for index, where, _ in task:
            counts[index][where] += 1
    assert all((count == 1).all() for count in counts)


# Clipping within the step, and gradients of several passes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.1, 50.0, 1e6, math.inf])
@every_kind
def test_step_with_max_norm_is_clipping_then_a_step(rng, kind, options, max_norm, dtype):
    fused, apart = make_modules(dtype), make_modules(dtype)
    one, other = kind(fused, **options), kind(apart, **options)
    for seed in range(3):
        for modules in (fused, apart):
            fill_gradients(modules, np.random.default_rng(seed))
        norm = one.step(max_norm=max_norm)
        assert type(norm) is float
        assert norm == clip_grad_norm(apart, max_norm)
        other.step()
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for mine, theirs in zip(fused, apart, strict=True):
        np.testing.assert_allclose(mine.flat_params, theirs.flat_params, rtol=tolerance, atol=tolerance)


def test_scale_makes_the_sum_of_gradients_their_mean(rng):
    modules, others = make_modules(), make_modules()
    fill_gradients(modules, rng)
    for module, other in zip(modules, others, strict=True):
        other.flat_grads[...] = 4 * module.flat_grads
    norm = SGD(modules, lr=0.1).step(max_norm=1.0)
    assert SGD(others, lr=0.1).step(max_norm=1.0, scale=1 / 4) == pytest.approx(norm, rel=1e-14)
    for module, other in zip(modules, others, strict=True):
        np.testing.assert_allclose(module.flat_params, other.flat_params, rtol=1e-13)


@pytest.mark.parametrize("wild", [math.nan, math.inf])
@every_kind
def test_norm_that_is_not_finite_is_returned_and_nothing_changes(rng, kind, options, wild):
    modules = make_modules()
    fill_gradients(modules, rng)
    optimizer = kind(modules, **options)
    optimizer.step()
    modules[1].grads["bias"][1] = wild
    before = [module.flat_params.copy() for module in modules] + list(optimizer.state_dict().values())
    assert not math.isfinite(optimizer.step(max_norm=1.0))
    after = [module.flat_params for module in modules] + list(optimizer.state_dict().values())
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


# Groups of parameters


def test_groups_give_their_parameters_other_options(rng):
    grouped, plain, other = make_modules(), make_modules(), make_modules()
    for modules in (grouped, plain, other):
        fill_gradients(modules, np.random.default_rng(5))
    groups = {"bias": {"weight_decay": 0}, "1.*": {"lr": 0.5}}
    AdamW(grouped, lr=0.1, weight_decay=0.2, groups=groups).step()
    AdamW(plain, lr=0.1, weight_decay=0.2).step()
    AdamW(other, lr=0.1, weight_decay=0).step()
    np.testing.assert_array_equal(grouped[0].params["weight"], plain[0].params["weight"])
    np.testing.assert_array_equal(grouped[0].params["bias"], other[0].params["bias"])
    far = make_modules()
    fill_gradients(far, np.random.default_rng(5))
    AdamW(far, lr=0.5, weight_decay=0.2, groups={"bias": {"weight_decay": 0}}).step()
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(grouped[1].params[name], far[1].params[name])


def test_the_last_group_to_give_an_option_decides_it(rng):
    modules, plain = make_modules(), make_modules()
    for each in (modules, plain):
        fill_gradients(each, np.random.default_rng(5))
    SGD(modules, groups={"*": {"lr": 0.3, "weight_decay": 0.1}, "?.*": {"lr": 0.2}}).step()
    SGD(plain, lr=0.2, weight_decay=0.1).step()
    for mine, theirs in zip(modules, plain, strict=True):
        np.testing.assert_array_equal(mine.flat_params, theirs.flat_params)


def test_a_buffer_that_only_a_group_needs_is_there(rng):
    modules, parameters = make_modules(), None
    torch = pytest.importorskip("torch", reason="torch is not installed")
    parameters = as_torch(torch, modules)
    ours = SGD(modules, lr=0.1, groups={"bias": {"momentum": 0.9}})
    biases, weights = [parameters[1], parameters[3]], [parameters[0], parameters[2]]
    theirs = torch.optim.SGD([{"params": biases, "momentum": 0.9}, {"params": weights}], lr=0.1)
    for _ in range(3):
        fill_gradients(modules, rng)
        for parameter, fresh in zip(parameters, as_torch(torch, modules), strict=True):
            parameter.grad = fresh.grad
        ours.step()
        theirs.step()
    assert_equal_parameters(modules, parameters, rtol=1e-12)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"biases": {"lr": 0}}, ValueError, r"that match a parameter \(0.weight, 0.bias, .*\), got 'biases'"),
        ({"2.*": {"lr": 0}}, ValueError, r"got '2\.\*'"),
        ({"bias": 0.1}, TypeError, r"expected groups like \{'bias\*': .*\}, got \{'bias': 0.1\}"),
        ({"bias": {"decay": 0}}, TypeError, "expected options among lr, betas, eps, weight_decay, got 'decay'"),
        ({"bias": {"lr": -1}}, ValueError, "expected a finite lr >= 0, got -1"),
    ],
)
def test_wrong_groups_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        Adam(make_modules(), groups=groups)


# Schedules


def torch_schedules(torch, optimizer):
    """Ours by what torch has of the same; 0.1 is the rate it starts from."""
    schedules = torch.optim.lr_scheduler
    ramp = schedules.LinearLR(optimizer, start_factor=1 / 4, total_iters=3)
    return {
        Cosine(0.1, steps=9): lambda: schedules.CosineAnnealingLR(optimizer, T_max=9),
        Cosine(0.1, steps=9, end=0.02): lambda: schedules.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.02),
        StepDecay(0.1, every=2, factor=0.5): lambda: schedules.StepLR(optimizer, step_size=2, gamma=0.5),
        WarmUp(0.1, steps=3): lambda: ramp,
        WarmUp(StepDecay(0.1, every=2), steps=3): lambda: schedules.SequentialLR(
            optimizer, [ramp, schedules.StepLR(optimizer, step_size=2)], milestones=[3]
        ),
    }


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's SequentialLR against itself
@pytest.mark.parametrize("index", range(5))
def test_schedules_are_those_of_torch(index):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    ours, make = list(torch_schedules(torch, optimizer).items())[index]
    if index < 3:  # torch's ramp has lowered the rate as soon as it was made
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        make = list(torch_schedules(torch, optimizer).values())[index]
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["initial_lr"]
    theirs = make()
    for step in range(9):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Cosine(0.4, steps=2), [0.4, 0.2, 0.0, 0.0]),
        (Cosine(0.4, steps=2, end=0.2), [0.4, 0.3, 0.2, 0.2]),
        (StepDecay(0.4, every=2, factor=0.5), [0.4, 0.4, 0.2, 0.2, 0.1]),
        (WarmUp(0.3, steps=2), [0.1, 0.2, 0.3, 0.3]),
        (WarmUp(Cosine(0.3, steps=2), steps=2), [0.1, 0.2, 0.3, 0.15, 0.0]),
    ],
    ids=str,
)
def test_schedules_give_these_rates(schedule, rates):
    assert [schedule(step) for step in range(len(rates))] == pytest.approx(rates)


def test_optimizer_follows_its_schedule_and_a_group_its_own(rng):
    modules = make_modules()
    optimizer = SGD(modules, lr=WarmUp(1.0, steps=1), groups={"bias": {"lr": lambda step: 0.25 * step}})
    for rate, of_bias in ((0.5, 0.0), (1.0, 0.25), (1.0, 0.5)):
        fill_gradients(modules, rng)
        before = modules[0].state_dict()
        optimizer.step()
        for name, lr in (("weight", rate), ("bias", of_bias)):
            expected = before[name] - lr * modules[0].grads[name]
            np.testing.assert_allclose(modules[0].params[name], expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(-1, 5), "expected a finite lr >= 0, got -1"),
        (lambda: Cosine(1, 0), "expected steps >= 1, got 0"),
        (lambda: StepDecay(1, 0), "expected every >= 1, got 0"),
        (lambda: StepDecay(1, 1, -0.5), "expected a finite factor >= 0"),
        (lambda: WarmUp(math.nan, 1), "expected a finite lr >= 0, got nan"),
        (lambda: WarmUp(10**400, 1), "expected a finite lr >= 0, got 10"),
        (lambda: WarmUp(np.float32(-1), 1), "expected a finite lr >= 0, got -1"),
        (lambda: WarmUp(1.0, 0), "expected steps >= 1, got 0"),
    ],
)
def test_wrong_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# State


@every_kind
def test_state_dict_carries_an_optimizer_over_to_the_bit(kind, options):
    straight, stopped = make_modules("float32"), make_modules("float32")
    one, first = kind(straight, **options), kind(stopped, **options)
    for step in range(6):
        if step == 3:
            second = kind(stopped, **options)
            second.load_state_dict(first.state_dict())
            first = second
        for modules, optimizer in ((straight, one), (stopped, first)):
            fill_gradients(modules, np.random.default_rng(step))
            optimizer.step(max_norm=5.0)
    for mine, theirs in zip(straight, stopped, strict=True):
        assert mine.flat_params.tobytes() == theirs.flat_params.tobytes()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_modules_and_optimizer_goes_on_alike(rng, duplicate):
    modules = make_modules()
    optimizer = Adam(modules, lr=Cosine(0.1, 5), groups={"bias": {"lr": 0.2}})
    fill_gradients(modules, rng)
    optimizer.step()
    twins, twin = duplicate((modules, optimizer))
    for mine, theirs in zip(modules, twins, strict=True):
        theirs.flat_grads[...] = mine.flat_grads  # which a copy leaves out
    optimizer.step()
    twin.step()
    for mine, theirs in zip(modules, twins, strict=True):
        np.testing.assert_array_equal(mine.flat_params, theirs.flat_params)


def test_tiny_norms_are_clipped_by_the_documented_factor():
    head = Linear(3, 1, bias=False, dtype="float64")
    head.grads["weight"][...] = [[3e-6, 4e-6, 0]]
    assert clip_grad_norm([head], 1e-6) == pytest.approx(5e-6)
    np.testing.assert_allclose(head.grads["weight"], [[0.5e-6, 4e-6 / 6, 0]])  # times max_norm / (norm + 1e-6)


def test_state_dict_is_not_changed_by_the_steps_after_it(rng):
    modules = make_modules()
    adam = Adam(modules)
    fill_gradients(modules, rng)
    adam.step()
    state = adam.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    adam.step()
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


@pytest.mark.parametrize("option", ["momentum", "centered"])
def test_option_of_one_group_alone_has_its_state_and_leaves_the_others_alone(rng, option):
    kind, value = (SGD, 0.9) if option == "momentum" else (RMSprop, True)
    mixed, plain, all_of_it = make_modules(), make_modules(), make_modules()
    optimizers = (
        kind(mixed, lr=0.1, groups={"bias": {option: value}}),
        kind(plain, lr=0.1),
        kind(all_of_it, lr=0.1, **{option: value}),
    )
    for step in range(3):
        for modules, optimizer in zip((mixed, plain, all_of_it), optimizers, strict=True):
            fill_gradients(modules, np.random.default_rng(step))
            optimizer.step()
    for ours, without, having in zip(mixed, plain, all_of_it, strict=True):
        np.testing.assert_array_equal(ours.params["weight"], without.params["weight"])
        np.testing.assert_array_equal(ours.params["bias"], having.params["bias"])
        assert not np.array_equal(ours.params["bias"], without.params["bias"])


def test_state_of_another_optimizer_is_refused_and_changes_nothing(rng):
    modules = make_modules()
    fill_gradients(modules, rng)
    adam = Adam(modules)
    adam.step()
    before = adam.state_dict()
    wrong = SGD(modules, momentum=0.5).state_dict()
    with pytest.raises(KeyError, match=r"does not fit: missing .*exp_avg.*unknown .*momentum_buffer"):
        adam.load_state_dict(wrong)
    wrong = adam.state_dict()
    wrong["1.bias.exp_avg_sq"] = np.ones(4)
    with pytest.raises(ValueError, match=r"expected 1.bias.exp_avg_sq of shape \(3,\), got \(4,\)"):
        adam.load_state_dict(wrong)
    wrong["1.bias.exp_avg_sq"] = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"expected 1.bias.exp_avg_sq of dtype float64, got float32"):
        adam.load_state_dict(wrong)
    for name, array in adam.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_first_step_of_adam_moves_every_parameter_by_lr_against_its_gradient(rng):
    modules = make_modules("float32")
    fill_gradients(modules, rng)
    before = [module.state_dict() for module in modules]
    Adam(modules, lr=0.25).step()
    for module, old in zip(modules, before, strict=True):
        for name, array in module.params.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, old[name] - 0.25 * np.sign(module.grads[name]), atol=1e-4)


def test_adam_reads_gradients_and_leaves_them_unchanged(rng):
    modules = make_modules()
    fill_gradients(modules, rng)
    before = [module.flat_grads.copy() for module in modules]
    Adam(modules).step()
    for module, gradients in zip(modules, before, strict=True):
        np.testing.assert_array_equal(module.flat_grads, gradients)


def test_lr_can_be_assigned(rng):
    modules = make_modules()
    fill_gradients(modules, rng)
    adam = Adam(modules, lr=0.5, groups={"bias": {"lr": 0.1}})
    before = modules[0].state_dict()
    adam.lr = 0
    adam.step()
    np.testing.assert_array_equal(modules[0].params["weight"], before["weight"])
    assert not np.array_equal(modules[0].params["bias"], before["bias"])
    with pytest.raises(ValueError, match="lr"):
        adam.lr = -1
    assert adam.lr == 0


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (Adam, {"lr": -1e-3}, ValueError, "expected a finite lr >= 0, got -0.001"),
        (Adam, {"lr": math.nan}, ValueError, "lr"),
        (Adam, {"lr": "fast"}, TypeError, "expected lr to be a number, got 'fast'"),
        (Adam, {"betas": (0.9, 1.0)}, ValueError, "expected two betas"),
        (Adam, {"betas": (-0.1, 0.9)}, ValueError, "expected two betas"),
        (Adam, {"betas": (0.9,)}, ValueError, "expected two betas"),
        (Adam, {"eps": -1}, ValueError, "expected a finite eps"),
        (Adam, {"eps": 1e-60}, ValueError, "expected eps > 0 in float32, got 1e-60"),
        (AdamW, {"weight_decay": -1}, ValueError, "expected a finite weight_decay >= 0, got -1"),
        (SGD, {"momentum": "much"}, TypeError, "expected momentum to be a number, got 'much'"),
        (SGD, {"nesterov": True}, ValueError, "expected momentum > 0 and dampening = 0 with nesterov, got momentum=0"),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "dampening=0.1"),
        (SGD, {"nesterov": 1, "momentum": 0.9}, TypeError, "expected nesterov to be True or False, got 1"),
        (RMSprop, {"alpha": 1}, ValueError, r"expected alpha in \[0, 1\), got 1"),
        (RMSprop, {"centered": None}, TypeError, "expected centered to be True or False"),
    ],
)
def test_wrong_options_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(make_modules(), **options)


@pytest.mark.parametrize("use", [Adam, lambda modules: clip_grad_norm(modules, 1.0)])
def test_wrong_modules_are_refused(use):
    head = Linear(2, 2)
    for wrong, error in ((head, TypeError), ([head, 1], TypeError), ([], ValueError), ([head, head], ValueError)):
        with pytest.raises(error, match="expected a list of modules"):
            use(wrong)


@pytest.mark.parametrize(
    ("lr", "step", "message"),
    [
        (lambda step: math.inf, {}, "expected a finite lr >= 0, got inf"),
        (0.1, {"scale": -1}, "expected a finite scale >= 0, got -1"),
        (0.1, {"max_norm": 0}, "expected max_norm > 0, got 0"),
        (0.1, {"max_norm": math.nan}, "expected max_norm > 0, got nan"),
    ],
)
def test_wrong_step_is_refused_before_anything_changes(rng, lr, step, message):
    modules = make_modules()
    fill_gradients(modules, rng)
    before, adam = modules[0].flat_params.copy(), Adam(modules, lr=lr)
    with pytest.raises(ValueError, match=message):
        adam.step(**step)
    np.testing.assert_array_equal(modules[0].flat_params, before)
    assert adam.steps == 0


@pytest.mark.parametrize("max_norm", [0.1, 50.0, 1e6, math.inf])
def test_clipping_is_that_of_torch(rng, max_norm):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    modules = make_modules()
    fill_gradients(modules, rng)
    parameters = as_torch(torch, modules)
    norm = clip_grad_norm(modules, max_norm)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(parameters, max_norm)), rel=1e-12)
    ours = [array for module in modules for array in module.grads.values()]
    for mine, theirs in zip(ours, parameters, strict=True):
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_scales_all_modules_to_the_joint_norm(rng, dtype):
    modules = make_modules(dtype)
    fill_gradients(modules, rng)
    every = np.concatenate([array.ravel() for module in modules for array in module.grads.values()])
    norm = clip_grad_norm(modules, 2.0)
    assert type(norm) is float
    assert norm == pytest.approx(np.linalg.norm(every.astype(float)), rel=1e-6)
    clipped = np.concatenate([array.ravel() for module in modules for array in module.grads.values()])
    np.testing.assert_allclose(clipped, every * 2 / norm, rtol=1e-5)


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
def test_norm_that_is_not_finite_is_returned_and_leaves_the_gradients(rng, wild):
    modules = make_modules("float32")
    fill_gradients(modules, rng)
    modules[1].grads["bias"][1] = wild
    before = [module.flat_grads.copy() for module in modules]
    assert not math.isfinite(clip_grad_norm(modules, 1.0))
    for module, gradients in zip(modules, before, strict=True):
        np.testing.assert_array_equal(module.flat_grads, gradients)


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_wrong_max_norm_is_refused(max_norm):
    with pytest.raises(ValueError, match="expected max_norm > 0"):
        clip_grad_norm(make_modules(), max_norm)
