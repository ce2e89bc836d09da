"""The public face: names and help, signatures, how objects show themselves, and errors that a newcomer meets."""

import enum
import importlib.util
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys

import fastrnn
import numpy as np
import pytest
from fastrnn.nn import options
from fastrnn.optim import SGD, Adam, AdamW, Cosine, clip_grad_norm

ROOT = {
    "Dropout", "Embedding", "Frozen", "GRU", "GradientError", "LSTM", "LanguageModel", "Linear", "Module", "RNN",
    "Stream", "get_num_threads", "gradcheck", "initialize", "interchange", "mse_loss", "nn", "optim", "pad_sequence",
    "reference", "set_num_threads", "softmax", "softmax_cross_entropy", "text", "training", "unpad_sequence",
}  # fmt: skip
PACKAGES = [f"fastrnn.{name}" for name in ("interchange", "nn", "optim", "reference", "text", "training")]
PACKAGES += ["fastrnn.torch"] * (importlib.util.find_spec("torch") is not None)
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
]
CELLS = [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM]


def helped(thing):
    return pydoc.render_doc(thing, renderer=pydoc.plaintext)


# ---------------------------------------------------------------- names


def test_dir_is_the_public_names_and_nothing_else():
    assert set(dir(fastrnn)) == set(fastrnn.__all__) == ROOT
    assert all(getattr(fastrnn, name) is not None for name in dir(fastrnn))


@pytest.mark.parametrize("name", ["fastrnn", *PACKAGES, *MODULES])
def test_what_all_lists_is_there_once_and_in_order(name):
    module = importlib.import_module(name)
    listed = module.__all__
    assert len(set(listed)) == len(listed) > 0
    assert not any(public.startswith("_") for public in listed)
    for public in listed:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            assert thing.__doc__, f"{public} of {name} has no docstring"


@pytest.mark.parametrize("name", ["fastrnn", *PACKAGES])
def test_a_star_brings_what_all_lists(name):
    names = {}
    exec(f"from {name} import *", names)
    del names["__builtins__"]
    assert set(names) == set(importlib.import_module(name).__all__)


def test_a_star_of_interchange_brings_no_other_package():
    assert not {"onnx", "torch", "keras", "safetensors"} & set(fastrnn.interchange.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_public_below_a_package_is_listed_by_it_or_is_for_its_modules(name):
    """What the packages offer are the very objects of their modules."""
    package = importlib.import_module(name)
    below = {
        public: getattr(importlib.import_module(module), public)
        for module in MODULES
        if module.startswith(name)
        for public in importlib.import_module(module).__all__
    }
    for public in package.__all__:
        if package.__name__ != "fastrnn.training" or public not in ("NonFinite", "first_nonfinite"):  # of the engine
            assert getattr(package, public) is below[public]


@pytest.mark.parametrize("name", ["fastrnn", *PACKAGES])
def test_help_lists_what_can_be_used(name):
    module = importlib.import_module(name)
    text = helped(module)
    for public in module.__all__:
        assert re.search(rf"\b{public}\b", text), f"help({name}) does not show {public}"


def test_the_root_says_what_each_public_name_is():
    lines = fastrnn.__doc__.split("How it is built")[0].splitlines()
    first = " ".join(re.split(r" {2,}", line)[0] if not line.startswith(" ") else "" for line in lines)
    assert set(re.findall(r"\w+", first)) >= ROOT - {"get_num_threads"}
    for part in ("cli", "text", "training", "optim", "nn", "engine", "_core", "kernels", "interchange", "reference"):
        assert re.search(rf"^ .*\b{part}\b", fastrnn.__doc__, re.MULTILINE)


def test_interchange_and_reference_are_imported_when_they_are_named():
    code = """
import sys, fastrnn
lazy = ["fastrnn.interchange", "fastrnn.reference"]
assert not any(name in sys.modules for name in lazy)
assert {"interchange", "reference"} <= set(dir(fastrnn))
assert fastrnn.interchange.from_torch and fastrnn.reference.forward
assert all(name in sys.modules for name in lazy)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastrnn' has no attribute 'Transformer'"):
        fastrnn.Transformer  # noqa: B018


# ---------------------------------------------------------------- signatures


@pytest.mark.parametrize("cell", CELLS)
def test_signatures_are_what_the_options_declare(cell):
    declared = {o.name: o.default for o in (*options.SIZES, *cell._own_options, *options.SHARED)}
    parameters = inspect.signature(cell).parameters
    assert {
        name: options.REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in parameters.items()
    } == declared
    positional = [name for name, parameter in parameters.items() if parameter.kind != inspect.Parameter.KEYWORD_ONLY]
    assert positional == [option.name for option in options.SIZES]


@pytest.mark.parametrize("cell", CELLS)
def test_every_option_is_explained(cell):
    documented = {*cell._own_options, *(options.SHARED if cell is fastrnn.RNN else ())}
    for option in documented:
        assert re.search(rf"^ *{option.name}\b.*: ", cell.__doc__, re.MULTILINE), option.name
    assert "{own}" not in cell.__doc__
    assert "{shared}" not in cell.__doc__
    assert cell is fastrnn.RNN or "The other arguments are those of `RNN`" in cell.__doc__


# ---------------------------------------------------------------- how objects show themselves


class Scale(fastrnn.Module):
    def __init__(self):
        super().__init__({"gain": (3,), "offset": ()}, "float64")


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (fastrnn.Linear(256, 10), "Linear(in_features=256, out_features=10, bias=True)"),
        (fastrnn.Linear(2, 3, dtype="float64"), "Linear(in_features=2, out_features=3, bias=True, dtype=float64)"),
        (fastrnn.Embedding(10, 3), "Embedding(10, 3)"),
        (fastrnn.Embedding(10, 3, dtype="float64"), "Embedding(10, 3, dtype=float64)"),
        (fastrnn.Dropout(), "Dropout(p=0.5)"),
        (fastrnn.GRU(3, 4, 2, zoneout=0.1), "GRU(3, 4, num_layers=2, zoneout=0.1)"),
        (Scale(), "Scale(gain=(3,), offset=(), dtype=float64)"),
        (fastrnn.Module(), "Module()"),
    ],
)  # fmt: skip
def test_a_module_shows_its_arguments(module, shown):
    assert repr(module) == shown


def test_an_optimiser_shows_its_modules_and_what_is_not_usual():
    layer, head = fastrnn.GRU(3, 4), fastrnn.Embedding(4, 2)
    assert repr(Adam([layer])) == "Adam([GRU(3, 4)], lr=0.001)"
    assert repr(SGD([layer, head], 0.1, nesterov=True, momentum=0.9)) == (
        "SGD([GRU(3, 4), Embedding(4, 2)], lr=0.1, momentum=0.9, nesterov=True)"
    )
    assert repr(AdamW([head], lr=Cosine(0.1, 9), groups={"weight": {"lr": 1}})) == (
        "AdamW([Embedding(4, 2)], lr=Cosine(lr=0.1, steps=9, end=0.0), groups={'weight': {'lr': 1}})"
    )


# ---------------------------------------------------------------- what newcomers try

X = np.random.default_rng(0).standard_normal((5, 2, 3), dtype=np.float32)
INTO_FLOAT32 = r"of dtype float32.*, got float64; .*astype\('float32'\) converts it$"


def layer_and_tape(kind="LSTM"):
    layer = getattr(fastrnn, kind)(3, 4, rng=0)
    return layer, layer.forward(X)


def test_backward_takes_no_gradient_of_y_as_zero():
    layer, (y, (h, c), tape) = layer_and_tape()
    one, other = layer.backward(tape, dstate=(h, c)), layer.backward(tape, np.zeros_like(y), (h, c))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[0]).max() > 0
    assert not layer.backward(tape)[0].any()


def test_backward_takes_none_in_the_place_of_one_of_a_pair_as_zero():
    layer, (y, (h, _), tape) = layer_and_tape()
    one, other = layer.backward(tape, y, (h, None)), layer.backward(tape, y, (h, np.zeros_like(h)))
    np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("modules", "came"),
    [
        ([np.zeros((100, 100)), np.ones(3)], "a list of ndarray"),
        ((fastrnn.GRU(3, 4), np.zeros(9)), "a tuple of GRU, ndarray"),
        (fastrnn.GRU(3, 4).params, "a ParameterDict"),
        (fastrnn.GRU(3, 4).params.values(), "a dict_values"),
        (fastrnn.GRU(3, 4), r"GRU\(3, 4\) by itself"),
    ],
)
@pytest.mark.parametrize("use", [Adam, lambda modules: clip_grad_norm(modules, 1.0)], ids=["Adam", "clip_grad_norm"])
def test_what_is_no_list_of_modules_is_said_in_a_few_words(use, modules, came):
    with pytest.raises(TypeError, match=rf"^expected a list of modules, such as \[layer, head\], got {came}$"):
        use(modules)


def test_options_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match=r"expected betas as a pair of numbers, got 0\.9"):
        Adam([fastrnn.Linear(2, 3)], betas=0.9)
    with pytest.raises(TypeError, match="expected max_norm to be a number, got '1'"):
        clip_grad_norm([fastrnn.Linear(2, 3)], "1")


@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_ragged_lists_lead_to_pad_sequence(call):
    with pytest.raises(TypeError, match=r"got a list of arrays of different shapes; fastrnn\.pad_sequence makes one"):
        getattr(fastrnn.GRU(3, 4), call)([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)])


def test_a_packed_sequence_leads_to_lengths():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises(
        TypeError, match=r"got a PackedSequence; give a padded array and lengths=.*fastrnn\.pad_sequence"
    ):
        fastrnn.GRU(3, 4)(packed)


def test_ragged_lists_elsewhere_are_refused_by_name():
    ragged = [[1.0, 2.0], [3.0]]
    with pytest.raises(TypeError, match="expected h as one array, got a list of arrays of different shapes"):
        fastrnn.Linear(3, 4)(ragged)
    with pytest.raises(TypeError, match="expected state as one array"):
        fastrnn.GRU(3, 4)(X, ragged)
    with pytest.raises(TypeError, match="expected targets as one array"):
        fastrnn.softmax_cross_entropy(X, ragged)


def float64_calls():
    layer, (y, state, tape) = layer_and_tape()
    head = fastrnn.Linear(4, 2)
    o, head_tape = head.forward(y)
    double = tuple(array.astype(float) for array in state)
    return {
        "x": lambda: layer(X.astype(float)),
        "x in training": lambda: layer.forward(X.astype(float)),
        "state": lambda: layer(X, double),
        "state as lists": lambda: layer(X, [array.tolist() for array in state]),
        "dy": lambda: layer.backward(tape, y.astype(float)),
        "dstate": lambda: layer.backward(tape, y, double),
        "state of a stream": lambda: setattr(layer.stream(2), "state", double),
        "parameter": lambda: layer.params.__setitem__("bias_hh_l0", np.zeros(16)),
        "h": lambda: head(y.astype(float)),
        "h as a list": lambda: head([[1.0, 2.0, 3.0, 4.0]]),
        "do": lambda: head.backward(head_tape, o.astype(float)),
        "targets": lambda: fastrnn.mse_loss(y, y.astype(float)),
    }


@pytest.mark.parametrize("name", float64_calls())
def test_float64_for_float32_says_how_it_is_converted(name):
    with pytest.raises(TypeError, match=INTO_FLOAT32.replace("astype", "(astype|asarray)").replace(r"\('", r"\(.*'")):
        float64_calls()[name]()


def test_the_hint_works_as_it_is_written():
    head, h = fastrnn.Linear(3, 4), np.ones((2, 3))
    with pytest.raises(TypeError) as error:
        head(h)
    assert eval("h" + re.search(r"; (.*) converts it", str(error.value))[1]).dtype == np.float32


def test_float_targets_of_a_classification_say_how_they_are_converted():
    for call in (fastrnn.softmax_cross_entropy, fastrnn.Linear(3, 3).cross_entropy):
        with pytest.raises(TypeError, match=r"targets of an integer dtype, got float64; \.astype\(int\) converts it"):
            call(X, np.zeros((5, 2)))
    with pytest.raises(TypeError, match=r"logits of dtype float32 or float64, got int64; \.astype\('float32'\)"):
        fastrnn.softmax_cross_entropy(np.ones((2, 3), int), np.zeros(2, int))


def test_where_a_file_does_not_fit_nothing_is_said_of_converting():
    with pytest.raises(TypeError, match=r"expected weight of dtype float32, got float64$"):
        fastrnn.Linear(2, 3).load_state_dict(fastrnn.Linear(2, 3, dtype="float64").state_dict())


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("how", ["arrays", "a list", "strided", "numbers"])
@pytest.mark.parametrize("unbatched", [False, True])
def test_a_stream_takes_the_state_of_any_call(kind, how, unbatched):
    layer = getattr(fastrnn, kind)(3, 4, 2, dtype="float64", rng=0)
    x = X.astype(float)
    state = layer(x[:3, 0] if unbatched else x[:3, :1])[1]
    given = state if isinstance(state, tuple) else (state,)
    wide = [np.repeat(np.repeat(array, 2, axis=-1), 2, axis=0) for array in given]
    given = {
        "arrays": given,
        "a list": list(given),
        "strided": tuple(array[::2, ..., ::2] for array in wide),
        "numbers": [array.tolist() for array in given],
    }[how]
    stream = layer.stream()
    stream.state = given if kind == "LSTM" else given[0]
    np.testing.assert_allclose(stream.run(x[3:, :1])[:, 0], layer(x[:, 0])[0][3:], rtol=1e-12)


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("place", [0, 1])
def test_a_stream_takes_none_in_the_place_of_one_of_a_pair(place, unbatched):
    layer = fastrnn.LSTM(3, 4, rng=0)
    pair = list(layer(X[:, 0] if unbatched else X[:, :1])[1])
    pair[place] = None
    stream = layer.stream()
    stream.state = pair
    assert not stream.state[place].any()
    np.testing.assert_array_equal(stream.state[1 - place].reshape(-1), pair[1 - place].reshape(-1))


def test_strided_and_listed_states_are_those_of_their_copies():
    layer, (_, state, _) = layer_and_tape()
    wide = [np.repeat(array, 3, axis=-1) for array in state]
    expected = layer(X, state)[0]
    np.testing.assert_array_equal(layer(X, [array[..., ::3] for array in wide])[0], expected)
    np.testing.assert_array_equal(layer(X, list(state))[0], expected)


class Name(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum is the value, of these it is not
    SUM = "sum"
    RELU = "relu"
    SIGMOID = "sigmoid"


def test_names_may_come_from_a_str_enum():
    x = X[:, :1]
    ours = fastrnn.GRU(3, 4, bidirectional=True, merge=Name.SUM, rng=0)
    plain = fastrnn.GRU(3, 4, bidirectional=True, merge="sum", rng=0)
    assert type(ours.merge) is str
    np.testing.assert_array_equal(ours(x)[0], plain(x)[0])
    assert repr(fastrnn.RNN(3, 4, nonlinearity=Name.RELU)) == "RNN(3, 4, nonlinearity='relu')"
    gru = fastrnn.GRU(3, 4, activations=(Name.SIGMOID, (Name.RELU,)))
    assert gru.activations == ("sigmoid", ("relu",))
    assert type(gru.activations[0]) is type(gru.activations[1][0]) is str
    with pytest.raises(ValueError, match="expected merge among concat, sum, mul, ave, got 3"):
        fastrnn.GRU(3, 4, bidirectional=True, merge=3)


@pytest.mark.filterwarnings("error")
def test_softmax_underflows_in_silence():
    with np.errstate(all="raise"):
        p = fastrnn.softmax(np.array([[0.0, -95.0, -1e30], [-3e38, 3e38, 0.0]], np.float32))
    np.testing.assert_allclose(p, [[1, 0, 0], [0, 1, 0]], atol=1e-30)
