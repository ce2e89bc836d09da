"""The functions of the compiled layers in plain NumPy, equation by equation: to learn from, and to test against.

    activations.py   y = f(a) and f'(a), by name
    rnn.py           the vanilla RNN     }
    gru.py           the GRU             }  one layer, one direction: forward right above backward
    lstm.py          the LSTM            }
    layer_norm.py    layer normalisation within them
    dropout.py       masks of dropout and zoneout within a layer
    steps.py         what the cells share: the input product; rows that end early or start afresh
    stack.py         forward and backward of a whole layer object: layers, directions, dropout
    output.py        o = c + V h, softmax, cross-entropy

Begin with rnn.py.  The code is written to be read, and is as fast as plain NumPy allows: one matrix product for the
input of all steps, one for the state at each step, one after the loop for each weight gradient.
"""

from .activations import FORMULAS, Activation, sigmoid
from .dropout import DropoutMasks
from .gru import gru_backward, gru_forward
from .lstm import lstm_backward, lstm_forward
from .output import linear_backward, linear_forward, softmax, softmax_cross_entropy
from .rnn import rnn_backward, rnn_forward
from .stack import backward, forward

__all__ = [
    "FORMULAS",
    "Activation",
    "DropoutMasks",
    "backward",
    "forward",
    "gru_backward",
    "gru_forward",
    "linear_backward",
    "linear_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
]
