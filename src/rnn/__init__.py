"""Recurrent neural networks on the CPU: NumPy arrays in, NumPy arrays out.

RNN, GRU, LSTM            recurrent layers: forward, inference, back-propagation through time
pad_sequence, unpad_sequence   lists of arrays to and from a ragged batch
initialize                initial values by name
Linear                    the output layer
softmax_cross_entropy     the loss
LanguageModel             a character model that trains on text and writes some
set_num_threads           how many threads a call may use (get_num_threads)
optim                     Adam, clipping of the gradient
interchange               from and to torch, ONNX, Keras and safetensors
reference                 the same layers in plain NumPy, equation by equation
"""

from . import interchange as interchange
from . import optim as optim
from . import reference as reference
from .init import initialize as initialize
from .language_model import LanguageModel as LanguageModel
from .layers import GRU as GRU
from .layers import LSTM as LSTM
from .layers import RNN as RNN
from .linear import Linear as Linear
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .sequences import pad_sequence as pad_sequence
from .sequences import unpad_sequence as unpad_sequence
from .threads import get_num_threads as get_num_threads
from .threads import set_num_threads as set_num_threads

__version__ = "0.1.0"
