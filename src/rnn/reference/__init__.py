"""The same functions as the compiled layers, in plain NumPy, equation by equation: a lesson and an oracle.

    activations.py   y = f(a) and f'(a), by name
    rnn.py           the vanilla RNN     }
    gru.py           the GRU             }  one layer, one direction: forward right above backward
    lstm.py          the LSTM            }
    layer_norm.py    layer normalisation within them
    dropout.py       what they drop: masks of weights, inputs and states
    steps.py         what they share: the input product; rows that end early or start afresh
    stack.py         forward and backward of a whole layer object: layers, directions, dropout
    output.py        o = c + V h, softmax, cross-entropy

Begin with rnn.py.  Speed is not the aim beyond what NumPy gives to whoever writes it plainly: one matrix product for
the input of all steps, one a step for the state, one after the loop for each weight gradient.
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
