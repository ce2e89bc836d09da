"""Layers from and to torch, ONNX, Keras and safetensors files, with the same outputs.

    torch         from_torch(module)             to_torch(layer)                 modules and cells of torch.nn
    onnx          from_onnx(model)               to_onnx(layer)                  RNN, GRU and LSTM nodes
    onnx_node     OnnxNode(node, parameters)   run_onnx_node(node, tensors)      one node, arrays as ONNX has them
    keras         from_keras(layer)              to_keras(layer)                 SimpleRNN, GRU, LSTM, Bidirectional
    safetensors   load_safetensors(path)         save_safetensors(path, layer)   a layer with all its options
      |
    common        what the four share: a layer taken apart, put together, and refused with a reason

Every `from_` and `load_` function returns a `fastrnn.RNN`, `fastrnn.GRU` or `fastrnn.LSTM`, to be run or trained.  What
the other side cannot express raises a ValueError that gives the reason.  Another package is imported only when a
function that needs it is called.
"""

from .keras import from_keras, to_keras
from .onnx import from_onnx, to_onnx
from .onnx_node import OnnxNode, run_onnx_node
from .safetensors import load_safetensors, save_safetensors
from .torch import from_torch, to_torch

__all__ = [
    "OnnxNode",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load_safetensors",
    "run_onnx_node",
    "save_safetensors",
    "to_keras",
    "to_onnx",
    "to_torch",
]
