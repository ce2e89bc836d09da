"""Recurrent neural networks on the CPU: NumPy arrays in, NumPy arrays out.

RNN, GRU, LSTM            recurrent layers: forward, inference, back-propagation through time
Stream                    the state of a layer between steps that come in one by one: `layer.stream()`
pad_sequence, unpad_sequence   lists of arrays to and from a ragged batch
initialize                initial values by name
Linear                    the output layer, by itself or with its loss
softmax_cross_entropy     the loss
LanguageModel             a character model that trains on text and writes some
set_num_threads           how many threads a call may use (get_num_threads)
optim                     SGD, Adam, AdamW, RMSprop; schedules of the learning rate; clipping of the gradient
training                  checkpoints that go on to the same bits; what `LanguageModel.fit` does
interchange               from and to torch, ONNX, Keras and safetensors
reference                 the same layers in plain NumPy, equation by equation
"""

from typing import TYPE_CHECKING, Any

from . import optim as optim
from . import training as training
from .engine.parallel import get_num_threads as get_num_threads
from .engine.parallel import set_num_threads as set_num_threads
from .nn.init import initialize as initialize
from .nn.layers import GRU as GRU
from .nn.layers import LSTM as LSTM
from .nn.layers import RNN as RNN
from .nn.linear import Linear as Linear
from .nn.losses import softmax_cross_entropy as softmax_cross_entropy
from .nn.sequences import pad_sequence as pad_sequence
from .nn.sequences import unpad_sequence as unpad_sequence
from .nn.streaming import Stream as Stream
from .text.language_model import LanguageModel as LanguageModel

if TYPE_CHECKING:
    from . import interchange as interchange
    from . import reference as reference

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the parts that most programs do not use when they are first named: a third of the time of the import."""
    if name in ("interchange", "reference"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
