"""Layers in safetensors files: all options and parameters come back, and files of other kinds are refused."""

import json
import re
import struct

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.interchange import load_safetensors, save_safetensors
from fastrnn.util.storage import save_arrays

LAYERS = [
    fastrnn.RNN(3, 4, rng=0),
    fastrnn.RNN(3, 4, 2, nonlinearity=("leaky_relu", 0.25), bias=False, batch_first=True, dropout=0.5, rng=1),
    fastrnn.GRU(3, 4, 2, bidirectional=True, merge="ave", dtype="float64", rng=2),
    fastrnn.GRU(3, 4, reset_after=False, reverse=True, activations=(("hard_sigmoid", 1 / 6, 0.5), "softsign"), rng=3),
    fastrnn.LSTM(3, 4, peephole=True, coupled=True, clip=np.float32(0.5), grad_clip=2.0, rng=4),
    fastrnn.LSTM(3, 4, 2, proj_size=2, bidirectional=True, rng=5),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.cell)
def test_saved_layer_comes_back_with_equal_options_parameters_and_outputs(layer, path):
    save_safetensors(path, layer)
    loaded = load_safetensors(path)
    assert type(loaded) is type(layer)
    assert loaded.spec == layer.spec
    assert repr(loaded) == repr(layer)
    assert all((loaded.params[name] == array).all() for name, array in layer.params.items())
    x = np.random.default_rng(6).standard_normal((5, 2, 3)).astype(layer.dtype)
    np.testing.assert_array_equal(loaded(x)[0], layer(x)[0])


def test_file_holds_the_parameters_under_torchs_names(path):
    from safetensors.numpy import load_file

    layer = LAYERS[2]
    save_safetensors(path, layer)
    arrays = load_file(path)
    assert arrays.keys() == layer.params.keys()
    other = fastrnn.GRU(3, 4, 2, bidirectional=True, merge="ave", dtype="float64", rng=7)
    other.load_state_dict(arrays)
    assert (other.params["weight_hh_l1_reverse"] == layer.params["weight_hh_l1_reverse"]).all()


def test_torch_reads_the_file(path):
    torch = pytest.importorskip("torch", reason="reads with torch")
    from safetensors.torch import load_file

    save_safetensors(path, LAYERS[5])
    module = torch.nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True)
    module.load_state_dict(load_file(path))
    assert (module.weight_hr_l1.detach().numpy() == LAYERS[5].params["weight_hr_l1"]).all()


def test_state_dict_of_torch_without_options_is_refused_with_the_way_out(path):
    layer = LAYERS[0]
    save_arrays(path, layer.params, {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no fastrnn layer.*load_state_dict"):
        load_safetensors(path)


def header(**changes):
    options = {"input_size": 3, "hidden_size": 4}
    return json.dumps({"version": 1, "cell": "rnn", "options": options} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata cannot be read"),
        ("[]", "metadata cannot be read"),
        ("{}", "metadata cannot be read.*version"),
        (header(options=3), "metadata cannot be read"),
        (header(version=2), "version 1.*got 2"),
        (header(cell="mlp"), "rnn, gru, lstm, got 'mlp'"),
        (header(cell=["rnn"]), "rnn, gru, lstm, got"),
        (header(options={"input_size": 3}), "hidden_size"),
        (header(options={"input_size": 3, "hidden_size": 4, "attention": 0.1}), "attention"),
        (header(options={"input_size": 3, "hidden_size": 4, "rng": 1}), "rng"),
        (header(options={"input_size": 3, "hidden_size": -4}), "hidden_size >= 1, got -4"),
        (header(options={"input_size": 3, "hidden_size": 5}), "weight_ih_l0 of shape"),
        (header(options={"input_size": 3, "hidden_size": 4, "bias": False}), "unknown.*bias_hh_l0"),
        (header(options={"input_size": 3, "hidden_size": 4, "dtype": "float64"}), "dtype float64, got float32"),
        (header(options={"input_size": 3, "hidden_size": 4, "dtype": "float16"}), "float32 or float64"),
    ],
)
def test_files_with_a_damaged_header_are_refused_with_the_reason(path, text, message):
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": text})
    with pytest.raises(ValueError, match=message):
        load_safetensors(path)


def refuse_memory(monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail(f"memory was taken for {arguments}")

    monkeypatch.setattr(_core, "new_array", refuse)


@pytest.mark.parametrize(
    "claim", [{"num_layers": 2**63}, {"num_layers": 2**200}, {"hidden_size": 2**40}, {"input_size": 2**70}], ids=str
)
def test_sizes_that_the_arrays_do_not_have_take_no_memory(path, monkeypatch, claim):
    options = {"input_size": 3, "hidden_size": 4} | claim
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": header(options=options)})
    refuse_memory(monkeypatch)
    message = r"expected (num_layers|input_size) <|expected weight_ih_l0 of shape|missing \['weight_ih_l1'\]"
    with pytest.raises(ValueError, match=message):
        load_safetensors(path)


def test_many_tiny_arrays_beside_a_large_one_take_no_memory(path, monkeypatch):
    large = fastrnn.RNN(1, 256, rng=0).params
    arrays = {name.replace("l0", f"l{k}"): np.zeros(1, np.float32) for name in large for k in range(1, 500)}
    options = {"input_size": 1, "hidden_size": 256, "num_layers": 500}
    save_arrays(path, arrays | large, {"fastrnn.layer": header(options=options)})
    refuse_memory(monkeypatch)
    with pytest.raises(ValueError, match=r"expected weight_ih_l1 of shape \(256, 256\), got \(1,\)"):
        load_safetensors(path)


@pytest.mark.parametrize("depth", [99, 101, 900, 2000, 30_000])
def test_json_too_deep_is_refused(path, depth):
    options = {"input_size": 3, "hidden_size": 4, "nonlinearity": "deep"}
    text = header(options=options).replace('"deep"', "[" * depth + "]" * depth)
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": text})
    with pytest.raises(ValueError, match="expected JSON at most 100 levels deep, got more"):
        load_safetensors(path)


def test_metadata_far_longer_than_options_can_be_is_not_parsed(path):
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": header() + " " * 2**16})
    with pytest.raises(ValueError, match="expected options in 65536 characters"):
        load_safetensors(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 10**400}, "expected a finite clip >= 0, got 1000"),
        ({"nonlinearity": ["elu", 10**400]}, "expected finite parameters of elu"),
        ({"dtype": "(2,f4"}, "float32 or float64"),
        ({"dtype": ["float32"]}, "float32 or float64"),
        ({"merge": {}}, "merge"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_of_other_types_and_sizes_are_refused(path, options, message):
    text = header(options={"input_size": 3, "hidden_size": 4} | options)
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": text})
    with pytest.raises(ValueError, match=message):
        load_safetensors(path)


@pytest.mark.parametrize("changes", [{"cell": "x" * 50_000}, {"version": [0] * 20_000}, {"options": {"x" * 50_000: 1}}])
def test_errors_repeat_no_more_than_the_start_of_what_a_file_holds(path, changes):
    save_arrays(path, LAYERS[0].params, {"fastrnn.layer": header(**changes)})
    with pytest.raises(ValueError, match=re.escape("...")) as caught:
        load_safetensors(path)
    assert len(str(caught.value)) < 1000


def test_truncated_and_foreign_files_are_refused(path):
    save_safetensors(path, LAYERS[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2) + b"[]")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_safetensors(path)
    with pytest.raises(FileNotFoundError):
        load_safetensors(path.with_name("absent"))


def test_only_a_layer_is_saved(path):
    with pytest.raises(TypeError, match="RNN, GRU or LSTM, got Linear"):
        save_safetensors(path, fastrnn.Linear(3, 4))
    assert not path.exists()
