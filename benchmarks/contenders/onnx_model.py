"""The ONNX model that onnxruntime and OpenVINO run: one RNN, GRU or LSTM node."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shapes import GATES, Problem

# Rows of the gates, from torch's order to ONNX's: GRU r,z,n to z,r,h; LSTM i,f,g,o to i,o,f,c.
_ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def make_model(problem: Problem) -> bytes:
    """x (T,B,I) and, for a step, h0 and c0 (1,B,H) in; y (T,D,B,H), h and c (D,B,H) out."""
    _, T, B, I, H, _ = problem.shape
    D, suffixes = problem.directions, ("_l0", "_l0_reverse")[: problem.directions]
    weights = {
        "W": np.stack([_rows(problem, f"weight_ih{suffix}") for suffix in suffixes]),
        "R": np.stack([_rows(problem, f"weight_hh{suffix}") for suffix in suffixes]),
        "bias": np.stack([np.concatenate([_rows(problem, f"bias_{of}{s}") for of in ("ih", "hh")]) for s in suffixes]),
    }
    inputs, outputs = ["x", *weights], ["y", *problem.states]
    declared = [_value("x", (T, B, I))]
    if problem.state is not None:
        inputs += ["", *(f"{name}0" for name in problem.states)]
        declared += [_value(f"{name}0", (1, B, H)) for name in problem.states]
    attributes = {"linear_before_reset": 1} if problem.cell == "gru" else {}
    if D == 2:
        attributes["direction"] = "bidirectional"
    node = helper.make_node(problem.cell.upper(), inputs, outputs, hidden_size=H, **attributes)
    graph = helper.make_graph(
        [node],
        problem.cell,
        declared,
        [_value("y", (T, D, B, H)), *(_value(name, (D, B, H)) for name in problem.states)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _rows(problem: Problem, name: str) -> np.ndarray:
    array = problem.params[name]
    blocks = array.reshape(GATES[problem.cell], problem.shape.H, *array.shape[1:])
    return blocks[_ORDER[problem.cell]].reshape(array.shape)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def make_inputs(problem: Problem) -> dict[str, np.ndarray]:
    """The arrays of a call by the model's input names."""
    return {"x": problem.x, **{f"{name}0": array for name, array in (problem.state or {}).items()}}


def make_outputs(problem: Problem) -> dict[str, np.ndarray]:
    """Empty arrays for the results, by the model's output names."""
    _, T, B, _, H, _ = problem.shape
    D = problem.directions
    states = {name: np.empty((D, B, H), problem.dtype) for name in problem.states}
    return {"y": np.empty((T, D, B, H), problem.dtype), **states}


def named(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs in the layout of the other contenders: y (T,B,D*H)."""
    return {
        name: array.swapaxes(1, 2).reshape(array.shape[0], array.shape[2], -1) if name == "y" else array.copy()
        for name, array in outputs.items()
    }
