"""What a network is made of: modules, their parameters, and what they compute.

layers         RNN, GRU, LSTM: options, and the row of the kernel table that computes them
  |
recurrent      what they share: parameters, forward, backward, stream ------> engine: how a call runs
  |
module         Module: flat parameters and gradients, state dicts
  |
linear         Linear, with its loss                             losses          softmax_cross_entropy, mse_loss
embedding      Embedding: vectors by index                       sequences       pad_sequence, unpad_sequence
dropout        Dropout, between modules                          streaming       Stream: steps that come one by one

activations    the activations of ONNX by name                   options         the layers' arguments, each once
init           initialize: initial values by name                gradient_check  gradcheck: is a backward pass right?
"""

from .activations import ACTIVATIONS
from .dropout import Dropout
from .embedding import Embedding
from .gradient_check import GradientError, gradcheck
from .init import initialize
from .layers import GRU, LSTM, RNN
from .linear import Linear
from .losses import mse_loss, softmax, softmax_cross_entropy
from .module import Module
from .sequences import pad_sequence, unpad_sequence
from .streaming import Stream

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "Embedding",
    "GradientError",
    "Linear",
    "Module",
    "Stream",
    "gradcheck",
    "initialize",
    "mse_loss",
    "pad_sequence",
    "softmax",
    "softmax_cross_entropy",
    "unpad_sequence",
]
