"""Adam and gradient clipping: against torch and against the formulas."""

import math

import numpy as np
import pytest
from fastrnn.linear import Linear
from fastrnn.optim import Adam, clip_grad_norm


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


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0)}])
def test_adam_takes_the_steps_of_torch(rng, options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    modules = make_modules()
    parameters = as_torch(torch, modules)
    ours, theirs = Adam(modules, **options), torch.optim.Adam(parameters, **options)
    for step in range(7):
        fill_gradients(modules, rng, scale=10.0 ** -(2 * step))
        for parameter, fresh in zip(parameters, as_torch(torch, modules), strict=True):
            parameter.grad = fresh.grad
        ours.step()
        theirs.step()
        assert_equal_parameters(modules, parameters, rtol=1e-12)


def test_adam_takes_the_steps_of_torch_under_a_schedule(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    modules = make_modules()
    parameters = as_torch(torch, modules)
    ours, theirs = Adam(modules, lr=0.1), torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=5)
    for step in range(5):
        fill_gradients(modules, rng)
        for parameter, fresh in zip(parameters, as_torch(torch, modules), strict=True):
            parameter.grad = fresh.grad
        ours.step(0.1 * 0.5 * (1 + math.cos(math.pi * step / 5)))
        theirs.step()
        schedule.step()
    assert_equal_parameters(modules, parameters, rtol=1e-12)


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
    before = [module._flat_grads.copy() for module in modules]
    Adam(modules).step()
    for module, gradients in zip(modules, before, strict=True):
        np.testing.assert_array_equal(module._flat_grads, gradients)


def test_lr_of_one_step_does_not_stay(rng):
    modules = make_modules()
    fill_gradients(modules, rng)
    adam = Adam(modules, lr=0.5)
    before = modules[0].state_dict()
    adam.step(0.0)
    np.testing.assert_array_equal(modules[0].params["weight"], before["weight"])
    assert adam.lr == 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1e-3}, ValueError, "expected a finite lr >= 0, got -0.001"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "expected lr to be a number, got 'fast'"),
        ({"betas": (0.9, 1.0)}, ValueError, "expected two betas"),
        ({"betas": (-0.1, 0.9)}, ValueError, "expected two betas"),
        ({"betas": (0.9,)}, ValueError, "expected two betas"),
        ({"eps": -1}, ValueError, "expected a finite eps"),
    ],
)
def test_adam_refuses_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        Adam(make_modules(), **options)


@pytest.mark.parametrize("use", [Adam, lambda modules: clip_grad_norm(modules, 1.0)])
def test_wrong_modules_are_refused(use):
    head = Linear(2, 2)
    for wrong, error in ((head, TypeError), ([head, 1], TypeError), ([], ValueError), ([head, head], ValueError)):
        with pytest.raises(error, match="expected a list of modules"):
            use(wrong)


def test_wrong_lr_of_a_step_is_refused_before_anything_changes(rng):
    modules = make_modules()
    fill_gradients(modules, rng)
    before, adam = modules[0]._flat_params.copy(), Adam(modules)
    with pytest.raises(ValueError, match="lr"):
        adam.step(math.inf)
    np.testing.assert_array_equal(modules[0]._flat_params, before)
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
    before = [module._flat_grads.copy() for module in modules]
    assert not math.isfinite(clip_grad_norm(modules, 1.0))
    for module, gradients in zip(modules, before, strict=True):
        np.testing.assert_array_equal(module._flat_grads, gradients)


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_wrong_max_norm_is_refused(max_norm):
    with pytest.raises(ValueError, match="expected max_norm > 0"):
        clip_grad_norm(make_modules(), max_norm)
