"""Recurrent neural networks on the CPU: NumPy arrays in, NumPy arrays out.

RNN, GRU, LSTM            recurrent layers: forward, inference, back-propagation through time
Frozen                    inference on weights that are packed once, for many short calls: `layer.frozen()`
Stream                    the state of a layer between steps that come in one by one: `layer.stream()`
pad_sequence, unpad_sequence   lists of arrays to and from a ragged batch
initialize                initial values by name
Linear                    the output layer, by itself or with its loss
Embedding                 vectors that are learned, looked up by index
Dropout                   zeros at random between modules; recurrent layers have options for it
softmax                   probabilities of the classes
softmax_cross_entropy     the loss of a classification, and its gradient
mse_loss                  the mean squared error, and its gradient
Module                    the base of all these, and of modules of your own
gradcheck, GradientError  whether a module's backward pass gives the gradients of its forward pass
LanguageModel             a character model that trains on text and writes some
set_num_threads           how many threads a call may use (get_num_threads)
optim                     SGD, Adam, AdamW, RMSprop; schedules of the learning rate; clipping of the gradient
training                  checkpoints that go on to the same bits; what `LanguageModel.fit` does
interchange               from and to torch, ONNX, Keras and safetensors
reference                 the same layers in plain NumPy, equation by equation
nn, text                  where the layers and the language model are defined

How it is built; each part uses those below it:

    cli      text                  the command; a model of characters
      training                     loops, checkpoints, history               interchange   layers from and to others
      optim   nn                   updates; modules and their parameters     reference     the same in plain NumPy
         engine                    how a call runs: layers, directions, shards, segments
         _core                     layer passes, streams, threads: arrays to kernels (Cython)
         kernels                   a step of a cell for each instruction set (C++)

`util` has what several parts need: checks of arguments, files that are written whole.
"""

from typing import TYPE_CHECKING, Any

from . import nn, optim, text, training
from .engine.parallel import get_num_threads, set_num_threads
from .nn import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    Frozen,
    GradientError,
    Linear,
    Module,
    Stream,
    gradcheck,
    initialize,
    mse_loss,
    pad_sequence,
    softmax,
    softmax_cross_entropy,
    unpad_sequence,
)
from .text import LanguageModel

if TYPE_CHECKING:
    from . import interchange, reference

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "Embedding",
    "Frozen",
    "GradientError",
    "LanguageModel",
    "Linear",
    "Module",
    "Stream",
    "get_num_threads",
    "gradcheck",
    "initialize",
    "interchange",
    "mse_loss",
    "nn",
    "optim",
    "pad_sequence",
    "reference",
    "set_num_threads",
    "softmax",
    "softmax_cross_entropy",
    "text",
    "training",
    "unpad_sequence",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the parts that most programs do not use when they are first named: a third of the time of the import."""
    if name in ("interchange", "reference"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also of what is imported when it is first named."""
    return __all__
