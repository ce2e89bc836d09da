"""ONNX: the operators RNN, GRU and LSTM, to and from.

The parameters of a node have an axis of directions, D, and then all gates one after the other, in ONNX's order:

    W (D, G*H, I)    R (D, G*H, H)    B (D, 2*G*H), Wb before Rb    P (D, 3*H), of LSTM
    RNN one          GRU z, r, h      LSTM i, o, f, c               P of i, o, f

Other differences: ONNX's Y is (T, D, B, H) where y is (T, B, D*H); with layout=1, Y is (B, T, D, H) and Y_h is
(B, D, H), where batch_first gives y (B, T, D*H) and h (D, B, H).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..nn.activations import ACTIVATIONS, Activation, activation_code
from ..nn.layers import GRU, LSTM
from ..nn.recurrent import Recurrent
from ..util.checks import checked_array
from ..util.storage import reason
from .common import ZONEOUT, activations_of, build, checked_layer, refuse_unless, reorder, same_activation, suffixes

__all__ = ["from_onnx", "to_onnx"]

if TYPE_CHECKING:
    import onnx

_CELLS = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
_GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 2, 3, 1)}  # which of ONNX's gates each of ours is
_PEEPHOLES = (0, 2, 1)
_DEFAULTS = {"rnn": ("tanh",), "gru": ("sigmoid", "tanh"), "lstm": ("sigmoid", "tanh", "tanh")}

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout")
_OWN_ATTRIBUTES = {"rnn": (), "gru": ("linear_before_reset",), "lstm": ("input_forget",)}

# ONNX's names in lower case, since onnxruntime compares them so; ONNX writes identity as an Affine.
_ACTIVATIONS = {name.replace("_", ""): name for name in ACTIVATIONS if name != "identity"}
_WITHOUT_DEFAULTS = ("affine", "scaled_tanh")  # ONNX gives no defaults, and those of runtimes differ


def from_onnx(model: onnx.ModelProto, node: str | None = None) -> Any:
    """The layer that computes what an RNN, GRU or LSTM node of an ONNX model does.

    >>> import fastrnn, numpy as np
    >>> from fastrnn.interchange import from_onnx, to_onnx
    >>> model = to_onnx(fastrnn.GRU(8, 16, rng=0))          # or onnx.load(path)
    >>> layer = from_onnx(model)
    >>> y, h = layer(np.ones((20, 4, 8), np.float32))
    >>> y.shape, h.shape
    ((20, 4, 16), (1, 4, 16))

    model: as onnx.load returns it. node: the name of the node, or of its first output; None if there is only one.
    W, R, B and P are copied; they must be initialisers or constants of the graph, float32 or float64.  The layer has
    batch_first=True for layout 1.  sequence_lens and the initial states are arguments of a call, ``layer(x, state,
    lengths=...)``.

    Raises TypeError if `model` is no ModelProto or a parameter has another dtype; ValueError if the node is not found,
    a parameter is no constant or has a wrong shape, an attribute is unknown, the two directions have different
    activations, or the lengths or initial states are constants (initial states of zeros are allowed).
    Source: https://onnx.ai/onnx/operators/ (RNN, GRU, LSTM).
    """
    import onnx

    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"expected an onnx.ModelProto, got {type(model).__name__}")
    found = _find(model.graph, node)
    names, constants = node_inputs(found), _constants(model.graph)
    arrays = {key: _array(key, constants[name]) for key, name in names.items() if name in constants and key != "X"}
    missing = [f"{key} ({names[key]!r})" for key in ("W", "R", "B", "P") if key in names and key not in arrays]
    if missing:
        raise ValueError(f"expected the parameters of {node_title(found)} to be constants, which {missing} are not")
    for key in ("sequence_lens", "initial_h", "initial_c"):
        if key in arrays and (key == "sequence_lens" or arrays[key].any()):
            raise ValueError(
                f"a layer cannot hold the constant {key} of {node_title(found)}; make it an input of the graph, and "
                "give it to each call of the layer"
            )
    return node_layer(found, arrays)


def to_onnx(layer: Recurrent, *, state: bool = False, lengths: bool = False) -> onnx.ModelProto:
    """An ONNX model that computes what the layer does in inference.

    >>> import fastrnn, numpy as np
    >>> from fastrnn.interchange import to_onnx
    >>> model = to_onnx(fastrnn.LSTM(8, 16, num_layers=2, rng=0), lengths=True)
    >>> [input.name for input in model.graph.input], [output.name for output in model.graph.output]
    (['x', 'lengths'], ['y', 'h', 'c'])

    state: whether the initial state is an input, ``h_0`` (and ``c_0``); otherwise it is zero.
    lengths: whether the lengths of the sequences are an input, ``lengths``, int32 (B,).
    Inputs and outputs have the same shapes as the layer's: x and y (T, B, ...), or (B, T, ...) with batch_first, states
    (L*D, B, H).  T and B are free.  Each layer of a stack becomes a node, followed by the merging of its directions.

    The operator set is 18.  onnxruntime runs float32 only: no release so far has these operators in float64.
    Raises TypeError if `layer` is not a recurrent layer of this package; ValueError for proj_size,
    layer_norm and zoneout, which ONNX does not have.
    """
    checked_layer(layer)
    refuse_unless(layer, "ONNX", proj_size=0, layer_norm=False, **ZONEOUT)
    graph = _Graph(layer)
    x = "x"
    if layer.batch_first:
        x = graph.add("Transpose", [x], "x_time_major", perm=[1, 0, 2])
    initials = [graph.split_state(name) if state else [""] * layer.num_layers for name in graph.states("_0")]
    finals = []
    for k in range(layer.num_layers):
        x, *final = graph.add_layer(k, x, "lengths" if lengths else "", [parts[k] for parts in initials])
        finals.append(final)
    if layer.batch_first:
        graph.add("Transpose", [x], "y", perm=[1, 0, 2])
    else:
        graph.add("Identity", [x], "y")
    for name, parts in zip(graph.states(), zip(*finals, strict=True), strict=True):
        graph.add("Concat", list(parts), name, axis=0)
    return graph.model(state, lengths)


# ------------------------------------------------------------ import


def _find(graph: onnx.GraphProto, name: str | None) -> onnx.NodeProto:
    nodes = [node for node in graph.node if node.op_type in _CELLS and node.domain in ("", "ai.onnx")]
    chosen = [node for node in nodes if name is None or name in (node.name, *node.output[:1])]
    if len(chosen) != 1:
        wanted = "one RNN, GRU or LSTM node in the graph" if name is None else f"one such node named {name!r}"
        there = ", ".join(map(node_title, nodes)) or "none"
        raise ValueError(f"expected {wanted}, got {len(chosen)}; the graph has {there}")
    return chosen[0]


def node_title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"


def node_inputs(node: onnx.NodeProto) -> dict[str, str]:
    """The name of each input that the node has, by ONNX's name for it."""
    if node.op_type not in _CELLS or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"expected a node RNN, GRU or LSTM of ONNX's own domain, got {node.domain}:{node.op_type}")
    known = _INPUTS if node.op_type == "LSTM" else _INPUTS[:6]
    if len(node.input) > len(known):
        raise ValueError(f"expected at most {len(known)} inputs of {node_title(node)}, got {len(node.input)}")
    names = {key: name for key, name in zip(known, node.input, strict=False) if name}
    if not {"X", "W", "R"} <= set(names):
        raise ValueError(f"expected the inputs X, W and R of {node_title(node)}, got {', '.join(names)}")
    return names


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """All constants: initialisers, the outputs of Constant nodes, and of Identity nodes applied to a constant."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:  # sorted: a node comes after those whose outputs it reads
        for output in node.output[:1]:
            if node.op_type == "Constant" and [attribute.name for attribute in node.attribute[:1]] == ["value"]:
                constants[output] = node.attribute[0].t
            elif node.op_type == "Identity" and node.input and node.input[0] in constants:
                constants[output] = constants[node.input[0]]
    return constants


def _array(key: str, tensor: onnx.TensorProto) -> np.ndarray:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"expected {key} with its data, got the name of another file, which onnx.load would have read")
    try:
        return numpy_helper.to_array(tensor)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"expected {key} as a whole tensor, got one that cannot be read: {reason(error)}") from None


def node_layer(node: onnx.NodeProto, arrays: Mapping[str, np.ndarray]) -> Any:
    """The layer of a node; arrays: W, R and, if the node has them, B and P."""
    from onnx import helper

    cell = _CELLS[node.op_type]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    unknown = set(attributes) - {*_ATTRIBUTES, *_OWN_ATTRIBUTES[cell]}
    if unknown:
        raise ValueError(f"unknown attributes of {node_title(node)}: {', '.join(sorted(unknown))}")
    direction = _text("direction", attributes.get("direction", b"forward"))
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"expected direction forward, reverse or bidirectional, got {direction!r}")
    D = 2 if direction == "bidirectional" else 1
    sizes = _checked_sizes(cell, arrays, D, attributes.get("hidden_size"))
    activations = _read_activations(cell, D, attributes)
    options = {
        **sizes,
        "bias": "B" in arrays,
        "batch_first": bool(attributes.get("layout", 0)),
        "bidirectional": direction == "bidirectional",
        "reverse": direction == "reverse",
        "clip": attributes.get("clip"),
        "dtype": arrays["W"].dtype,
        **({"nonlinearity": activations[0]} if cell == "rnn" else {"activations": activations}),
    }
    if cell == "gru":
        options["reset_after"] = bool(attributes.get("linear_before_reset", 0))
    if cell == "lstm":
        options |= {"peephole": "P" in arrays, "coupled": bool(attributes.get("input_forget", 0))}
    return build(cell, options, dict(_params(cell, arrays, D)))


def _checked_sizes(cell: str, arrays: Mapping[str, np.ndarray], D: int, hidden_size: int | None) -> dict[str, int]:
    """I and H; raises ValueError or TypeError unless W, R, B and P fit together."""
    W, R = arrays["W"], arrays["R"]
    if W.ndim != 3 or R.ndim != 3:
        raise ValueError(f"expected W and R of three axes, got shapes {W.shape} and {R.shape}")
    I, H = W.shape[2], R.shape[2]
    if hidden_size is not None and hidden_size != H:
        raise ValueError(f"expected R of shape (..., {hidden_size}) by the attribute hidden_size, got {R.shape}")
    rows = len(_GATES[cell]) * H
    shapes = {"W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows), "P": (D, 3 * H)}
    for key, shape in shapes.items():
        if key in arrays:
            checked_array(key, arrays[key], shape, W.dtype)
    return {"input_size": I, "hidden_size": H}


def _params(cell: str, arrays: Mapping[str, np.ndarray], D: int) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters with our names and order of gates."""
    gates = _GATES[cell]
    for d, suffix in enumerate(["_l0", "_l0_reverse"][:D]):
        yield f"weight_ih{suffix}", reorder(arrays["W"][d], gates)
        yield f"weight_hh{suffix}", reorder(arrays["R"][d], gates)
        if "B" in arrays:
            for name, bias in zip(("bias_ih", "bias_hh"), np.split(arrays["B"][d], 2), strict=True):
                yield f"{name}{suffix}", reorder(bias, gates)
        if "P" in arrays:
            yield f"weight_peephole{suffix}", reorder(arrays["P"][d], _PEEPHOLES).reshape(3, -1)


def _read_activations(cell: str, D: int, attributes: Mapping[str, Any]) -> tuple[Activation, ...]:
    """The activations f (g, h), from lists of names, alphas and betas; a value goes to the next one that takes it."""
    default = _DEFAULTS[cell]
    names = [_text("activations", name) for name in attributes.get("activations", [])]
    if not names:
        names = list(default) * D
    if len(names) != len(default) * D:
        raise ValueError(f"expected {len(default) * D} activations for {D} directions, got {names}")
    alphas, betas = (list(attributes.get(f"activation_{key}", [])) for key in ("alpha", "beta"))
    all_activations = [_read_activation(name, alphas, betas) for name in names]
    if alphas or betas:
        raise ValueError(f"activation_alpha {alphas} and activation_beta {betas} are left over behind {names}")
    forward, backward = all_activations[: len(default)], all_activations[len(default) :]
    if backward and not all(map(same_activation, forward, backward)):
        raise ValueError(
            f"a layer has the same activations in both directions, got {forward} and {backward}; "
            "make two nodes of it, one forward and one reverse"
        )
    return tuple(forward)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"expected text in the attribute {name}, got {value!r}")
    return value.decode()


def _read_activation(title: str, alphas: list[float], betas: list[float]) -> Activation:
    """One activation with its parameters, which are removed from the fronts of the lists."""
    name = _ACTIVATIONS.get(title.lower())
    if name is None:
        raise ValueError(f"expected an activation among {', '.join(map(_camel, _ACTIVATIONS.values()))}, got {title!r}")
    defaults = ACTIVATIONS[name]
    given = [values for values, _ in zip((alphas, betas), defaults, strict=False)]
    if name in _WITHOUT_DEFAULTS and not all(given):
        raise ValueError(f"expected alpha and beta for {title}, which has no defaults in ONNX")
    if not defaults:
        return name
    return (name, *(values.pop(0) if values else value for values, value in zip(given, defaults, strict=True)))


def state_layout(layer: Recurrent, array: np.ndarray) -> np.ndarray:
    """Convert a state between (D, B, H) and the (B, D, H) of layout 1."""
    return array.swapaxes(0, 1) if layer.batch_first and array.ndim == 3 else array


# ------------------------------------------------------------ export


class _Graph:
    """The graph of one layer under construction: nodes, and the initialisers that they refer to."""

    def __init__(self, layer: Recurrent) -> None:
        self.layer = layer
        self.D = 2 if layer.bidirectional else 1
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Append a node; return the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes))
        return outputs[0]

    def constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def states(self, suffix: str = "") -> list[str]:
        return [name + suffix for name in ("hc" if self.layer.cell == "lstm" else "h")]

    def split_state(self, name: str) -> list[str]:
        """Split the state (L*D, B, H) of all layers into one of (D, B, H) for each layer; return their names."""
        parts = [f"{name}_l{k}" for k in range(self.layer.num_layers)]
        self.add("Split", [name], *parts, axis=0, num_outputs=len(parts))
        return parts

    def add_layer(self, k: int, x: str, lengths: str, initial: list[str]) -> list[str]:
        """Append layer k on x (T, B, I); return the names of its y (T, B, D*H or H) and final states (D, B, H)."""
        layer, cell = self.layer, self.layer.cell
        W, R, B, P = self._weights(k)
        inputs = [x, W, R, B, lengths, *initial, P]
        while not inputs[-1]:
            inputs.pop()
        states = [f"{name}_l{k}" for name in self.states()]
        op = {value: key for key, value in _CELLS.items()}[cell]
        y = self.add(op, inputs, f"Y_l{k}", *states, **_attributes(layer))
        return [self._merge(k, y), *states]

    def _weights(self, k: int) -> tuple[str, str, str, str]:
        """The names of W, R, B and P of layer k; an empty name for an input that it does not have."""
        params, ends = self.layer.params, suffixes(self.layer)[k]
        gates = np.argsort(_GATES[self.layer.cell])

        def stack(letter: str, *names: str, order: Any = gates) -> str:
            if names[0] + ends[0] not in params:
                return ""
            rows = [np.concatenate([reorder(params[name + end], order) for name in names]) for end in ends]
            return self.constant(f"{letter}_l{k}", np.stack(rows))

        peepholes = [params[f"weight_peephole{end}"].reshape(-1) for end in ends if f"weight_peephole{end}" in params]
        return (
            stack("W", "weight_ih"),
            stack("R", "weight_hh"),
            stack("B", "bias_ih", "bias_hh"),
            self.constant(f"P_l{k}", np.stack([reorder(p, _PEEPHOLES) for p in peepholes])) if peepholes else "",
        )

    def _merge(self, k: int, Y: str) -> str:
        """Append the merging of Y (T, D, B, H) into y; return the name of y."""
        merge, y = self.layer.merge, f"y_l{k}"
        if self.D == 1 or merge != "concat":
            # With a single direction, each of these operators just removes the axis.
            op = {"sum": "ReduceSum", "mul": "ReduceProd", "ave": "ReduceMean"}.get(merge, "Squeeze")
            axes = self.constant(f"axes_l{k}", np.array([1]))
            return self.add(op, [Y, axes], y, **({} if op == "Squeeze" else {"keepdims": 0}))
        by_row = self.add("Transpose", [Y], f"Y_by_row_l{k}", perm=[0, 2, 1, 3])
        return self.add("Reshape", [by_row, self.constant(f"shape_l{k}", np.array([0, 0, -1]))], y)

    def model(self, state: bool, lengths: bool) -> Any:
        from onnx import TensorProto, checker, helper

        layer = self.layer
        dtype = helper.np_dtype_to_tensor_dtype(layer.dtype)
        axes = ["B", "T"] if layer.batch_first else ["T", "B"]
        width = layer.hidden_size * (self.D if layer.merge == "concat" else 1)

        def info(name: str, *shape: Any, kind: int = dtype) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        state_shape = (layer.num_layers * self.D, "B", layer.hidden_size)
        inputs = [info("x", *axes, layer.input_size)]
        inputs += [info(name, *state_shape) for name in self.states("_0")] if state else []
        inputs += [info("lengths", "B", kind=TensorProto.INT32)] if lengths else []
        outputs = [info("y", *axes, width), *(info(name, *state_shape) for name in self.states())]
        graph = helper.make_graph(self.nodes, type(layer).__name__, inputs, outputs, self.initializers)
        model = helper.make_model(
            graph, producer_name="fastrnn", ir_version=8, opset_imports=[helper.make_opsetid("", 18)]
        )
        checker.check_model(model)
        return model


def _attributes(layer: Recurrent) -> dict[str, Any]:
    """The attributes of a layer's node; alpha and beta are always written, since runtimes have different defaults."""
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    attributes["direction"] = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    attributes |= _written_activations(activations_of(layer) * (2 if layer.bidirectional else 1))
    if layer.clip is not None:
        attributes["clip"] = float(layer.clip)
    if isinstance(layer, GRU):
        attributes["linear_before_reset"] = int(layer.reset_after)
    if isinstance(layer, LSTM):
        attributes["input_forget"] = int(layer.coupled)
    return attributes


def _written_activations(activations: Sequence[Activation]) -> dict[str, list[Any]]:
    """The lists activations, activation_alpha and activation_beta; an empty list is left out."""
    names, alphas, betas = [], [], []
    for activation in activations:
        kind, alpha, beta = activation_code(activation)
        name = list(ACTIVATIONS)[kind]
        if name == "identity":
            name, alpha, beta = "affine", 1.0, 0.0
        names.append(_camel(name))
        alphas += [alpha] * (len(ACTIVATIONS[name]) > 0)
        betas += [beta] * (len(ACTIVATIONS[name]) > 1)
    lists: dict[str, list[Any]] = {"activations": names, "activation_alpha": alphas, "activation_beta": betas}
    return {key: values for key, values in lists.items() if values}


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
