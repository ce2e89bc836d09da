"""`OnnxNode`: one RNN, GRU or LSTM node of an ONNX graph, run on arrays in ONNX's own shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .onnx import node_inputs, node_layer, node_title, state_layout

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxNode", "run_onnx_node"]

_PARAMETERS = ("W", "R", "B", "P")


class OnnxNode:
    """An RNN, GRU or LSTM node with parameters that stay, packed once, for many calls.

    >>> import numpy as np, onnx
    >>> from fastrnn.interchange import OnnxNode
    >>> node = onnx.helper.make_node("GRU", ["x", "w", "r"], ["y", "h"], hidden_size=16)
    >>> gru = OnnxNode(node, {"w": np.zeros((1, 48, 8), np.float32), "r": np.zeros((1, 48, 16), np.float32)})
    >>> outputs = gru({"x": np.ones((20, 4, 8), np.float32)})
    >>> outputs["y"].shape, outputs["h"].shape
    ((20, 1, 4, 16), (1, 4, 16))

    node: as onnx has it. parameters: W, R and, if the node has them, B and P by the names that they have in the node,
    float32 or float64; others are ignored. They are copied.
    A call takes the other inputs by name, sequence_lens of integers, and returns the outputs by name in ONNX's shapes.
    Several threads may call it at the same time. `layer` is the layer that computes it.

    Raises ValueError for a parameter, or an input of a call, that is missing, otherwise TypeError and ValueError as
    `from_onnx` and a call of the layer do.
    """

    def __init__(self, node: onnx.NodeProto, parameters: Mapping[str, np.ndarray]) -> None:
        names = node_inputs(node)
        self._title = node_title(node)
        self._names = {key: name for key, name in names.items() if key not in _PARAMETERS}
        self._outputs = tuple(node.output)
        own = {key: name for key, name in names.items() if key in _PARAMETERS}
        self._check(own, parameters)
        self.layer = node_layer(node, {key: np.asarray(parameters[name]) for key, name in own.items()})
        self._frozen = self.layer.frozen()
        self._directions = 2 if self.layer.bidirectional else 1

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of the node by name, for its inputs by name."""
        layer = self.layer
        self._check(self._names, tensors)
        arrays = {key: np.asarray(tensors[name]) for key, name in self._names.items()}
        y, state = self._frozen(arrays["X"], self._state(arrays), lengths=arrays.get("sequence_lens"))
        y = y.reshape(*y.shape[:2], self._directions, layer.hidden_size)
        if not layer.batch_first:
            y = y.swapaxes(1, 2)
        outputs = [y, *(state_layout(layer, part) for part in (state if layer.cell == "lstm" else (state,)))]
        return {name: array for name, array in zip(self._outputs, outputs, strict=False) if name}

    def _check(self, names: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
        missing = [f"{key} ({name!r})" for key, name in names.items() if name not in tensors]
        if missing:
            raise ValueError(f"expected tensors for all inputs of {self._title}, got none for {missing}")

    def _state(self, arrays: Mapping[str, np.ndarray]) -> object:
        """The initial state for a call of the layer; None, that is zeros, for an input that the node does not have."""
        keys = ("initial_h", "initial_c") if self.layer.cell == "lstm" else ("initial_h",)
        state = tuple([state_layout(self.layer, arrays[key]) if key in arrays else None for key in keys])
        return state if self.layer.cell == "lstm" else state[0]

    def __repr__(self) -> str:
        return f"OnnxNode({self._title}: {self.layer!r})"


def run_onnx_node(node: onnx.NodeProto, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run one RNN, GRU or LSTM node once; returns its outputs by name, in ONNX's shapes.

    >>> import numpy as np, onnx
    >>> from fastrnn.interchange import run_onnx_node
    >>> node = onnx.helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=16)
    >>> tensors = {"x": np.ones((20, 4, 8)), "w": np.zeros((1, 16, 8)), "r": np.zeros((1, 16, 16))}
    >>> run_onnx_node(node, tensors)["y"].shape
    (20, 1, 4, 16)

    tensors: all inputs by the names that they have in the node: float32 or float64, sequence_lens of integers.
    It builds the layer each time: `OnnxNode` keeps it. Raises what that raises.
    """
    return OnnxNode(node, tensors)(tensors)
