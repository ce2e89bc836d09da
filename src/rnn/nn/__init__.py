"""What a network is made of: modules, their parameters, and what they compute.

layers         RNN, GRU, LSTM: options, and the row of the kernel table that computes them
  |
recurrent      what they share: parameters, forward, backward, stream ------> engine: how a call runs
  |
module         Module: flat parameters and gradients, state dicts
  |
linear         Linear, with its loss                                   losses       softmax_cross_entropy
activations    the activations of ONNX by name                         sequences    pad_sequence, unpad_sequence
init           initialize: initial values by name
"""
