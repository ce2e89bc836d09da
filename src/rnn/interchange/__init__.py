"""Layers from and to torch, ONNX, Keras and safetensors files, with the same outputs.

    from_torch(module)                 to_torch(layer)                 modules and cells of torch.nn
    from_onnx(model)                   to_onnx(layer)                  RNN, GRU and LSTM nodes
    run_onnx_node(node, tensors)                                       one node with ONNX's inputs and outputs
    from_keras(layer)                  to_keras(layer)                 SimpleRNN, GRU, LSTM, Bidirectional
    load_safetensors(path)             save_safetensors(path, layer)   a layer with all its options

Every `from_` and `load_` function returns a `fastrnn.RNN`, `fastrnn.GRU` or `fastrnn.LSTM`, to be run or trained.  What
the other side cannot express raises a ValueError that gives the reason.  Another package is imported only when a
function that needs it is called.
"""

from .keras import from_keras as from_keras
from .keras import to_keras as to_keras
from .onnx import from_onnx as from_onnx
from .onnx import run_onnx_node as run_onnx_node
from .onnx import to_onnx as to_onnx
from .safetensors import load_safetensors as load_safetensors
from .safetensors import save_safetensors as save_safetensors
from .torch import from_torch as from_torch
from .torch import to_torch as to_torch
