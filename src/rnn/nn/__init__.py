"""What a network is made of: modules, their parameters, and what they compute.

layers         RNN, GRU, LSTM: options, and the row of the kernel table that computes them
  |     |
  |   options  each option of a layer: its check, its default, its line of documentation
  |     |
  |   activations   the activations of ONNX by name
  |
recurrent      what they share: parameters, forward, backward ------> engine: how a call runs
  |     |
  |   frozen        Frozen: inference on weights that are packed once
  |     |
  |   streaming     Stream: the state of a layer between steps that come in one by one
  |
module         Module: flat parameters and gradients, state dicts
  |
linear         Linear, with its loss ------ losses: softmax, softmax_cross_entropy, mse_loss
embedding      Embedding: vectors by index
dropout        Dropout, between modules

init           initialize: initial values by name, of recurrent layers
sequences      pad_sequence, unpad_sequence: lists of arrays to and from a ragged batch
gradient_check gradcheck: is a backward pass right?
"""

from .activations import ACTIVATIONS
from .dropout import Dropout
from .embedding import Embedding
from .frozen import Frozen
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
    "Frozen",
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
