"""Recurrent modules of torch that run here: torch's parameters, state dicts and autograd, fastrnn's kernels.

recurrent_ppo: accelerate_recurrent_ppo           policies of sb3-contrib
  |
swap: accelerate, restore, report                 whole models
  |
modules: RNN, GRU, LSTM and their cells           layers: from_layer, any layer of fastrnn as a module
  |       torch's, but for `forward`, which            |
  |       looks whether it can run here                |
compiled: under torch.compile            autograd: Recurrence, in eager mode;  double_backward: its second derivatives
  |                                                    |
call: Call, what a module is asked, as the engine takes it      weights: Weights, those of a module as arrays
  |
plain: tensors as arrays; why torch has to run a call

engine: infer, forward, backward, on the memory of torch's tensors

>>> import torch, fastrnn.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GRU(8, 16, batch_first=True))
>>> model = fastrnn.torch.accelerate(model)
>>> y, h = model(torch.ones(4, 20, 3))
>>> y.shape, h.shape
(torch.Size([4, 20, 16]), torch.Size([1, 4, 16]))
>>> print(fastrnn.torch.report(model))
1: GRU(8, 16, batch_first=True) runs here
"""

from .layers import Layer, from_layer
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .recurrent_ppo import accelerate_recurrent_ppo
from .swap import Report, accelerate, report, restore

__all__ = [
    "GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "Layer", "RNNCell", "Report", "accelerate",
    "accelerate_recurrent_ppo", "from_layer", "report", "restore",
]  # fmt: skip
