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

from .activations import FORMULAS as FORMULAS
from .activations import Activation as Activation
from .activations import sigmoid as sigmoid
from .dropout import DropoutMasks as DropoutMasks
from .gru import gru_backward as gru_backward
from .gru import gru_forward as gru_forward
from .lstm import lstm_backward as lstm_backward
from .lstm import lstm_forward as lstm_forward
from .output import linear_backward as linear_backward
from .output import linear_forward as linear_forward
from .output import softmax as softmax
from .output import softmax_cross_entropy as softmax_cross_entropy
from .rnn import rnn_backward as rnn_backward
from .rnn import rnn_forward as rnn_forward
from .stack import backward as backward
from .stack import forward as forward
