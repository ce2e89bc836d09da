"""Every sample of torch's own database of modules, for the modules of fastrnn.torch."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

import fastrnn.torch as ft  # noqa: E402

from torch_modules import as_tuple, assert_close, both, why  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

KINDS = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]
COUNTS = {"RNN": 32, "GRU": 16, "LSTM": 32, "RNNCell": 3, "GRUCell": 2, "LSTMCell": 2}


@pytest.fixture(autouse=True)
def cells_of_all_sizes_run_here(monkeypatch):
    monkeypatch.setattr("fastrnn.torch.call._SOONER_CELLS", {})


@pytest.fixture(scope="module")
def database():
    pytest.importorskip("expecttest", reason="torch's database of modules imports it")
    with warnings.catch_warnings():
        # hypothesis would only seed other tests of theirs
        warnings.filterwarnings("ignore", "Fail to import hypothesis", ImportWarning)
        from torch.testing._internal.common_modules import module_db

    return {info.module_cls.__name__: info for info in module_db if info.module_cls.__module__.startswith("torch.nn")}


def inputs(info, dtype, training=True):
    torch.manual_seed(17)
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)


def outputs_and_gradients(module, args):
    given = [arg for arg in args if arg is not None]
    leaves = [leaf for arg in given for leaf in as_tuple(arg)]
    results = module(*args)
    flat = [result for each in as_tuple(results) for result in as_tuple(each)]
    gradients = torch.autograd.grad(
        [result.sin().sum() for result in flat], [*leaves, *module.parameters()], allow_unused=True
    )
    return [*flat, *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_gives_what_torch_gives_and_runs_here(database, kind, dtype):
    info = database[kind]
    samples = inputs(info, dtype)
    assert len(samples) == COUNTS[kind]
    for sample in samples:
        made = sample.constructor_input
        theirs, ours = both(info.module_cls(*made.args, **made.kwargs, dtype=dtype))
        args = sample.forward_input.args
        assert not sample.forward_input.kwargs
        for found, expected in zip(
            outputs_and_gradients(ours, args), outputs_and_gradients(theirs, args), strict=True
        ):  # fmt: skip
            assert_close(found, expected, f"{theirs} {sample.desc}")
        assert why(ours) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_made_here_has_the_arguments_and_parameters_of_torchs(database, kind):
    for sample in inputs(database[kind], torch.float64):
        made = sample.constructor_input
        torch.manual_seed(5)
        theirs = getattr(torch.nn, kind)(*made.args, **made.kwargs)
        torch.manual_seed(5)
        ours = getattr(ft, kind)(*made.args, **made.kwargs)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_an_error_for_torch_is_the_same_error_here(database, kind):
    info = database[kind]
    if info.module_error_inputs_func is None:
        pytest.skip("torch lists no errors of it")
    samples = info.module_error_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    assert len(samples) >= 1
    for sample in samples:
        made, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            getattr(ft, kind)(*made.args, **made.kwargs)(*call.args, **call.kwargs)
