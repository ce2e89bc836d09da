"""fastrnn.interchange with ONNX: nodes of every kind against the specification and onnxruntime, models of any layer."""

import importlib
import io
import itertools

import fastrnn
import numpy as np
import pytest
from fastrnn.interchange import OnnxNode, from_onnx, run_onnx_node, to_onnx

from layer_cases import BY_NAME
from onnx_oracle import DEFAULTS, FORMULAS, GATES, PARAMETERS, evaluate

onnx = pytest.importorskip("onnx", reason="reads and writes with onnx")
from onnx import helper, numpy_helper  # noqa: E402

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")


@pytest.fixture(scope="module")
def ort_run():
    """Run a model in onnxruntime on one thread."""
    runtime = pytest.importorskip("onnxruntime", reason="compares with onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def run(model, tensors):
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, tensors)

    return run


def make_node(op, attributes, tensors):
    names = [name if name in tensors else "" for name in INPUTS[: len(INPUTS) if op == "LSTM" else 6]]
    return helper.make_node(op, names, OUTPUTS[: 3 if op == "LSTM" else 2], name="it", **attributes)


def make_model(node, tensors, constants=()):
    """A model of one node whose inputs are the graph's, but for those that are constants."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in tensors.items()}
    inputs = [
        helper.make_tensor_value_info(name, kinds[name], array.shape)
        for name, array in tensors.items()
        if name not in constants
    ]
    outputs = [helper.make_tensor_value_info(name, kinds["X"], None) for name in node.output]
    initializers = [numpy_helper.from_array(tensors[name], name) for name in constants]
    graph = helper.make_graph([node], "graph", inputs, outputs, initializers)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def random_activations(rng, op, D):
    names = [str(name) for name in rng.choice(list(FORMULAS), len(DEFAULTS[op]))]
    if "ThresholdedRelu" in names and rng.random() < 0.5:  # it jumps, so rounding may change everything: not too often
        names = ["Softsign" if name == "ThresholdedRelu" else name for name in names]
    values = [rng.uniform(0.2, 0.6, PARAMETERS.get(name, 0)).astype(np.float32).tolist() for name in names]
    attributes = {
        "activations": names * D,
        "activation_alpha": [value[0] for value in values if value] * D,
        "activation_beta": [value[1] for value in values if len(value) > 1] * D,
    }
    if not {"Affine", "ScaledTanh", "ThresholdedRelu"} & set(names) and rng.random() < 0.5:
        del attributes["activation_alpha"], attributes["activation_beta"]  # defaults on which all agree
    return {key: value for key, value in attributes.items() if value}


def random_node(seed, dtype=None, layout=None):
    """A node anywhere in the space of attributes and optional inputs, and its tensors; none whose state explodes."""
    rng = np.random.default_rng(seed)
    while True:
        node = any_random_node(rng, ("RNN", "GRU", "LSTM")[seed % 3], dtype, layout)
        with np.errstate(over="ignore", invalid="ignore"):
            if all(np.abs(output).max() < 5 for output in evaluate(*node)):
                return node


def any_random_node(rng, op, dtype, layout):
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 2 if direction == "bidirectional" else 1
    T, batch, I, H = rng.integers(1, 6, 4)
    layout = int(rng.integers(2)) if layout is None else layout
    dtype = rng.choice(["float32", "float64"]) if dtype is None else dtype
    attributes = {"hidden_size": int(H), "direction": direction, "layout": layout}
    if rng.random() < 0.6:
        attributes |= random_activations(rng, op, D)
    if rng.random() < 0.4:
        attributes["clip"] = float(np.float32(rng.uniform(0.2, 1.0)))
    if op == "GRU" and rng.random() < 0.7:
        attributes["linear_before_reset"] = int(rng.integers(2))
    if op == "LSTM" and rng.random() < 0.7:
        attributes["input_forget"] = int(rng.integers(2))
    rows = GATES[op] * H
    state = (batch, D, H) if layout else (D, batch, H)
    shapes = {
        "X": (batch, T, I) if layout else (T, batch, I),
        "W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows),
        "initial_h": state, "initial_c": state, "P": (D, 3 * H),
    }  # fmt: skip
    present = {key for key in INPUTS if key in ("X", "W", "R") or rng.random() < 0.6}
    present -= set() if op == "LSTM" else {"initial_c", "P"}
    tensors = {key: (0.6 * rng.standard_normal(shapes[key])).astype(dtype) for key in shapes if key in present}
    if "sequence_lens" in present:
        tensors["sequence_lens"] = rng.integers(1, T + 1, batch).astype(np.int32)
    return op, attributes, tensors


def assert_close(ours, theirs, dtype):
    tolerance = 3e-5 if dtype == np.float32 else 1e-12
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(240))
def test_random_node_gives_what_the_specification_says(seed):
    op, attributes, tensors = random_node(seed)
    outputs = run_onnx_node(make_node(op, attributes, tensors), tensors)
    assert_close(outputs.values(), evaluate(op, attributes, tensors), tensors["X"].dtype)


@pytest.mark.parametrize("seed", range(240))
def test_random_float_node_gives_what_onnxruntime_gives(seed, ort_run):
    op, attributes, tensors = random_node(seed, "float32", layout=0)
    node = make_node(op, attributes, tensors)
    assert_close(run_onnx_node(node, tensors).values(), ort_run(make_model(node, tensors), tensors), np.float32)


def test_random_nodes_cover_the_whole_space():
    nodes = [random_node(seed) for seed in range(240)]
    values = {(op, key, str(value)) for op, attributes, _ in nodes for key, value in attributes.items()}
    for op in BY_NAME:
        assert {(op, "direction", key) for key in ("forward", "reverse", "bidirectional")} <= values
        assert {(op, "layout", key) for key in "01"} <= values
        assert {"B", "sequence_lens", "initial_h"} <= {key for o, _, tensors in nodes if o == op for key in tensors}
        used = {name for o, attributes, _ in nodes if o == op for name in attributes.get("activations", [])}
        assert used == set(FORMULAS), op
    assert {("GRU", "linear_before_reset", key) for key in "01"} <= values
    assert {("LSTM", "input_forget", key) for key in "01"} <= values
    assert {"initial_c", "P"} <= {key for _, _, tensors in nodes for key in tensors}


@pytest.mark.parametrize("op", BY_NAME)
def test_node_cases_of_the_onnx_package_pass(op):
    cases = importlib.import_module("onnx.backend.test.case.node")
    importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
    found = [case for case in cases._NodeTestCases if case.model.graph.node[0].op_type == op]
    assert len(found) >= 5
    for case in found:
        [node] = case.model.graph.node
        (inputs, outputs), names = case.data_sets[0], [name for name in node.input if name]
        ours = run_onnx_node(node, dict(zip(names, inputs, strict=True)))
        assert list(ours) == [name for name in node.output if name]
        for array, expected in zip(ours.values(), outputs, strict=True):
            np.testing.assert_allclose(array, expected, rtol=case.rtol, atol=1e-6, err_msg=case.name)


# ------------------------------------------------------------ models in


@pytest.mark.parametrize("seed", range(60))
def test_layer_of_a_model_is_the_function_of_its_node(seed):
    op, attributes, tensors = random_node(seed)
    constants = [key for key in ("W", "R", "B", "P") if key in tensors]
    layer = from_onnx(make_model(make_node(op, attributes, tensors), tensors, constants))
    assert type(layer) is BY_NAME[op]
    tensors = {key: tensors[key] for key in ("X", "sequence_lens", *constants) if key in tensors}
    y, _ = layer(tensors["X"], lengths=tensors.get("sequence_lens"))
    Y = evaluate(op, attributes, tensors)[0]
    Y = Y if attributes["layout"] else Y.swapaxes(1, 2)
    assert_close([y], [Y.reshape(y.shape)], tensors["X"].dtype)


def simple(op="GRU", **attributes):
    """A small float32 node with every input, and its tensors."""
    rng = np.random.default_rng(0)
    rows = GATES[op] * 4
    shapes = {"X": (5, 2, 3), "W": (1, rows, 3), "R": (1, rows, 4), "B": (1, 2 * rows), "initial_h": (1, 2, 4)}
    tensors = {key: rng.standard_normal(shape).astype("f") for key, shape in shapes.items()}
    tensors["sequence_lens"] = np.array([5, 3], np.int32)
    if op == "LSTM":
        tensors |= {"initial_c": tensors["initial_h"] / 2, "P": rng.standard_normal((1, 12)).astype("f")}
    return make_node(op, {"hidden_size": 4} | attributes, tensors), tensors


WEIGHTS = ["W", "R", "B"]


def test_constant_nodes_and_identities_of_constants_count_as_constants():
    node, tensors = simple()
    model = make_model(node, tensors, WEIGHTS)
    model.graph.initializer[0].name = "W_before"
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "R"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    nodes = [
        helper.make_node("Constant", [], ["R"], value=numpy_helper.from_array(tensors["R"])),
        helper.make_node("Identity", ["W_before"], ["W"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    expected = from_onnx(make_model(node, tensors, WEIGHTS)).params
    assert all((array == expected[name]).all() for name, array in from_onnx(model).params.items())


def test_zero_initial_states_in_the_model_are_those_that_a_layer_starts_from():
    node, tensors = simple("LSTM")
    tensors["initial_h"][...] = tensors["initial_c"][...] = 0
    layer = from_onnx(make_model(node, tensors, [*WEIGHTS, "P", "initial_h", "initial_c"]))
    y, _ = layer(tensors["X"], lengths=tensors["sequence_lens"])
    np.testing.assert_allclose(y[:, None], run_onnx_node(node, tensors)["Y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["initial_h", "sequence_lens"])
def test_other_constant_states_and_lengths_are_refused(key):
    node, tensors = simple()
    with pytest.raises(ValueError, match=f"cannot hold the constant {key} of GRU 'it'"):
        from_onnx(make_model(node, tensors, [*WEIGHTS, key]))


@pytest.mark.parametrize("key", WEIGHTS)
def test_parameters_that_are_no_constants_are_refused(key):
    node, tensors = simple()
    with pytest.raises(ValueError, match=rf"GRU 'it' to be constants, which \[\"{key} \('{key}'\)\"\] are not"):
        from_onnx(make_model(node, tensors, [name for name in WEIGHTS if name != key]))


def test_node_is_chosen_by_name_or_output():
    model = to_onnx(fastrnn.GRU(3, 4, 2, rng=0))
    with pytest.raises(ValueError, match=r"expected one RNN, GRU or LSTM node in the graph, got 2.*GRU 'GRU_Y_l0'"):
        from_onnx(model)
    with pytest.raises(ValueError, match="one such node named 'third', got 0"):
        from_onnx(model, "third")
    assert from_onnx(model, "GRU_Y_l0").input_size == 3
    assert from_onnx(model, "Y_l1").input_size == 4


def test_model_without_a_recurrent_node_is_refused():
    model = to_onnx(fastrnn.GRU(3, 4, rng=0))
    for node in model.graph.node:
        node.domain = "elsewhere"
    with pytest.raises(ValueError, match="got 0; the graph has none"):
        from_onnx(model)
    with pytest.raises(TypeError, match=r"onnx.ModelProto, got str"):
        from_onnx("model.onnx")


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("RNN", {"output_sequence": 1}, "unknown attributes of RNN 'it': output_sequence"),
        ("RNN", {"linear_before_reset": 1}, "unknown attributes"),
        ("GRU", {"input_forget": 1}, "unknown attributes"),
        ("GRU", {"direction": "backward"}, "forward, reverse or bidirectional, got 'backward'"),
        ("GRU", {"hidden_size": 5}, "R of shape .*5.* by the attribute hidden_size"),
        ("GRU", {"direction": "bidirectional"}, r"W of shape \(2, 12, 3\), got \(1, 12, 3\)"),
        ("GRU", {"activations": ["Sigmoid"]}, "expected 2 activations for 1 directions"),
        ("GRU", {"activations": ["Sigmoid", "Gelu"]}, "Tanh, Relu, .*HardSigmoid.*, got 'Gelu'"),
        ("GRU", {"activations": ["Sigmoid", "Identity"]}, "got 'Identity'"),
        ("GRU", {"activations": ["Sigmoid", "ScaledTanh"]}, "alpha and beta for ScaledTanh"),
        ("GRU", {"activations": ["Sigmoid", "Affine"], "activation_alpha": [2.0]}, "alpha and beta for Affine"),
        ("GRU", {"activations": ["Sigmoid", "Elu"], "activation_alpha": [0.5, 0.5]}, r"\[0.5\].*left over"),
        ("GRU", {"activation_beta": [0.5]}, r"activation_beta \[0.5\] are left over"),
        ("GRU", {"clip": -1.0}, "clip .*got -1.0"),
    ],
)
def test_nodes_outside_the_specification_are_refused_with_the_reason(op, attributes, message):
    node, tensors = simple(op, **attributes)
    with pytest.raises(ValueError, match=message):
        run_onnx_node(node, tensors)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": 3}, "text in the attribute direction, got 3"),
        ({"activations": [1.0, 2.0]}, "text in the attribute activations, got 1.0"),
        ({"activation_alpha": 0.5}, "iterable"),
        ({"clip": "high"}, "clip to be a number"),
    ],
)
def test_attributes_of_another_type_are_refused(attributes, message):
    node, tensors = simple("GRU", **attributes)
    with pytest.raises(TypeError, match=message):
        run_onnx_node(node, tensors)


def cut_data(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def unknown_dtype(model):
    model.graph.initializer[0].data_type = 1000


def in_another_file(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")


def nodes_without_anything(model):
    model.graph.node.extend(onnx.NodeProto(op_type=op) for op in ("Constant", "Identity", "GRU"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_data, "W as a whole tensor"),
        (unknown_dtype, "W as a whole tensor"),
        (in_another_file, "W with its data, got the name of another file"),
        (nodes_without_anything, "one RNN, GRU or LSTM node in the graph, got 2; the graph has GRU 'it', GRU ''"),
    ],
)
def test_damaged_models_are_refused(damage, message):
    node, tensors = simple()
    model = make_model(node, tensors, WEIGHTS)
    assert from_onnx(model, "it").hidden_size == 4
    damage(model)
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_nodes_without_inputs_and_outputs_are_passed_over():
    model = make_model(*simple(), WEIGHTS)
    nodes_without_anything(model)
    assert from_onnx(model, "it").hidden_size == 4


def test_directions_with_different_activations_are_refused():
    op, attributes, tensors = "RNN", {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, simple("RNN")[1]
    tensors = {"X": tensors["X"], "W": np.repeat(tensors["W"], 2, axis=0), "R": np.repeat(tensors["R"], 2, axis=0)}
    with pytest.raises(ValueError, match=r"same activations in both directions, got \['tanh'\] and \['relu'\]"):
        run_onnx_node(make_node(op, attributes, tensors), tensors)


def test_names_of_activations_are_compared_as_onnxruntime_does():
    node, tensors = simple("RNN", activations=["leakyRELU"], activation_alpha=[0.25])
    named, _ = simple("RNN", activations=["LeakyRelu"], activation_alpha=[0.25])
    np.testing.assert_array_equal(run_onnx_node(node, tensors)["Y"], run_onnx_node(named, tensors)["Y"])


def test_default_parameters_are_those_of_the_operators_of_the_same_names():
    for name in ("ThresholdedRelu", "HardSigmoid", "LeakyRelu", "Elu"):
        node, tensors = simple("RNN", activations=[name])
        expected = evaluate("RNN", {"activations": [name]}, tensors)
        assert_close(run_onnx_node(node, tensors).values(), expected, np.float32)


def test_missing_and_misshapen_tensors_are_refused():
    node, tensors = simple("LSTM")
    with pytest.raises(ValueError, match=r"tensors for all inputs of LSTM 'it', got none for \[\"P \('P'\)\"\]"):
        run_onnx_node(node, {key: tensors[key] for key in tensors if key != "P"})
    with pytest.raises(ValueError, match=r"P of shape \(1, 12\), got \(1, 4\)"):
        run_onnx_node(node, tensors | {"P": np.zeros((1, 4), "f")})
    with pytest.raises(ValueError, match="three axes"):
        run_onnx_node(node, tensors | {"W": tensors["W"][0]})
    with pytest.raises(TypeError, match="R of dtype float32, got float64"):
        run_onnx_node(node, tensors | {"R": tensors["R"].astype(float)})
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        run_onnx_node(node, {key: tensor.astype("e") for key, tensor in tensors.items()})
    with pytest.raises(ValueError, match="inputs X, W and R"):
        run_onnx_node(helper.make_node("GRU", ["X", "W"], ["Y"]), tensors)
    with pytest.raises(ValueError, match="at most 6 inputs"):
        run_onnx_node(helper.make_node("GRU", list(tensors), ["Y"]), tensors)
    with pytest.raises(ValueError, match="node RNN, GRU or LSTM of ONNX's own domain, got :Relu"):
        run_onnx_node(helper.make_node("Relu", ["X"], ["Y"]), tensors)


def test_lstm_with_one_of_its_initial_states_starts_the_other_at_zero():
    _, tensors = simple("LSTM")
    for absent in ("initial_h", "initial_c"):
        given = {key: value for key, value in tensors.items() if key != absent}
        outputs = run_onnx_node(make_node("LSTM", {"hidden_size": 4}, given), given)
        assert_close(outputs.values(), evaluate("LSTM", {}, given), np.float32)


def test_outputs_that_the_node_does_not_name_are_left_out():
    node, tensors = simple("LSTM")
    node.output[1] = ""
    assert list(run_onnx_node(node, tensors)) == ["Y", "Y_c"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", BY_NAME)
def test_stack_that_torch_exported_gives_its_outputs(op):
    torch = pytest.importorskip("torch", reason="exports with torch")
    torch.manual_seed(0)
    module, file = getattr(torch.nn, op)(3, 4, 2, bidirectional=True).eval(), io.BytesIO()
    x = torch.randn(5, 2, 3)
    torch.onnx.export(module, (x,), file, dynamo=False)
    model = onnx.load_from_string(file.getvalue())
    first, second = (from_onnx(model, name) for name in (f"/{op}", f"/{op}_1"))
    y = second(first(x.numpy())[0])[0]
    np.testing.assert_allclose(y, module(x)[0].detach().numpy(), rtol=0, atol=1e-6)


# ------------------------------------------------------------ models out

PLAIN = {
    "plain": {},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 3, "dropout": 0.5},
    "reverse": {"num_layers": 2, "reverse": True, "batch_first": True},
    "bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "sum": {"num_layers": 2, "bidirectional": True, "merge": "sum"},
    "mul": {"num_layers": 2, "bidirectional": True, "merge": "mul"},
    "ave": {"num_layers": 2, "bidirectional": True, "merge": "ave"},
    "single_ave": {"merge": "ave"},
    "clip": {"clip": 0.5, "bidirectional": True},
}
OWN = [
    *(("RNN", {"nonlinearity": name}) for name in fastrnn.reference.FORMULAS),
    ("RNN", {"nonlinearity": ("leaky_relu", 0.3), "bidirectional": True}),
    ("GRU", {"reset_after": False, "num_layers": 2}),
    ("GRU", {"activations": (("hard_sigmoid", 1 / 6, 0.5), ("scaled_tanh", 0.8, 0.9)), "bidirectional": True}),
    ("LSTM", {"peephole": True, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"peephole": True, "coupled": True}),
    ("LSTM", {"activations": ("hard_sigmoid", ("elu", 0.5), ("affine", 0.5, 0.1)), "bidirectional": True}),
]
EXPORTS = [(op, options) for op, options in itertools.product(BY_NAME, PLAIN.values())] + OWN


def arguments(layer, rng, state, lengths):
    """Of a call to the layer, and of the model: x, state and lengths as they are wanted."""
    T, B = 5, 3
    x = rng.standard_normal((B, T, 3) if layer.batch_first else (T, B, 3)).astype(layer.dtype)
    call, feed = {"state": None}, {"x": x}
    if state:
        shape = (layer.num_layers * (2 if layer.bidirectional else 1), B, 4)
        parts = tuple(rng.standard_normal(shape).astype(layer.dtype) for _ in range(2 if layer.cell == "lstm" else 1))
        call["state"] = parts if len(parts) == 2 else parts[0]
        feed |= dict(zip(("h_0", "c_0"), parts, strict=False))
    if lengths:
        call["lengths"] = feed["lengths"] = np.array([5, 2, 4], np.int32)
    return x, call, feed


@pytest.mark.parametrize(("state", "lengths"), [(False, False), (True, True)], ids=["bare", "state-lengths"])
@pytest.mark.parametrize(("op", "options"), EXPORTS, ids=lambda value: str(value))
def test_onnxruntime_gives_equal_outputs_from_the_model_of_a_layer(op, options, state, lengths, ort_run):
    rng = np.random.default_rng(1)
    layer = BY_NAME[op](3, 4, **options, rng=rng)
    x, call, feed = arguments(layer, rng, state, lengths)
    y, final = layer(x, **call)
    theirs = ort_run(to_onnx(layer, state=state, lengths=lengths), feed)
    assert_close([y, *(final if op == "LSTM" else [final])], theirs, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("op", "options"), EXPORTS, ids=lambda value: str(value))
def test_layer_of_the_model_of_a_layer_is_the_same(op, options, dtype):
    layer = BY_NAME[op](3, 4, **options, dtype=dtype, rng=2)
    model = to_onnx(layer)
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(3)
    for k in range(layer.num_layers):
        one = from_onnx(model, f"Y_l{k}")
        assert one.dtype == layer.dtype
        for name, array in one.params.items():
            np.testing.assert_array_equal(array, layer.params[name.replace("_l0", f"_l{k}")])
    if layer.num_layers == 1 and layer.merge == "concat":
        x = rng.standard_normal((5, 3, 3)).astype(dtype)
        np.testing.assert_allclose(one(x)[0], layer(x)[0], rtol=0, atol=1e-6)  # attributes are float32


def test_alpha_and_beta_are_always_written():
    layer = fastrnn.LSTM(3, 4, activations=("hard_sigmoid", "elu", "thresholded_relu"))
    [node] = [node for node in to_onnx(layer).graph.node if node.op_type == "LSTM"]
    written = {attribute.name: list(attribute.floats) for attribute in node.attribute}
    np.testing.assert_allclose(written["activation_alpha"], [0.2, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(written["activation_beta"], [0.5], rtol=1e-6)


def test_projection_is_refused():
    with pytest.raises(ValueError, match="ONNX cannot express proj_size=2 of a LSTM"):
        to_onnx(fastrnn.LSTM(3, 4, proj_size=2))
    with pytest.raises(TypeError, match="RNN, GRU or LSTM, got Linear"):
        to_onnx(fastrnn.Linear(3, 4))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_a_node_that_is_kept_gives_what_it_gives_once(op, direction, layout):
    rng, D, G = np.random.default_rng(0), 1 + (direction == "bidirectional"), {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    parameters = {"w": rng.standard_normal((D, G * 5, 3)), "r": rng.standard_normal((D, G * 5, 5))}
    parameters = {name: array.astype("f") for name, array in parameters.items()}
    names = ["x", "w", "r", "", "lengths", "h", *["c"] * (op == "LSTM")]
    node = helper.make_node(
        op, names, ["Y", "", *["Y_c"] * (op == "LSTM")], hidden_size=5, direction=direction, layout=layout
    )
    kept = OnnxNode(node, {**parameters, "unused": 0})
    given = {name: array.copy() for name, array in parameters.items()}
    parameters["w"][...] = 0  # it has its own copies
    for T, B in ((1, 1), (6, 4)):
        x = rng.standard_normal((B, T, 3) if layout else (T, B, 3)).astype("f")
        state = {name: rng.standard_normal((B, D, 5) if layout else (D, B, 5)).astype("f") for name in ("h", "c")}
        tensors = {"x": x, "lengths": np.full(B, T, np.int32), **state}
        ours, once = kept(tensors), run_onnx_node(node, {**given, **tensors})
        assert list(ours) == list(once)
        for name in ours:
            np.testing.assert_array_equal(ours[name], once[name])
    with pytest.raises(ValueError, match='none for \\["initial_h'):
        kept({"x": x, "lengths": tensors["lengths"]})
    with pytest.raises(ValueError, match='none for \\["R'):
        OnnxNode(node, {"w": parameters["w"]})
    assert repr(kept).startswith(f"OnnxNode({op} 'Y': {op}(3, 5")
