"""What a network is made of: modules, their parameters, and what they compute.

layers         RNN, GRU, LSTM: options, and the row of the kernel table that computes them
  |     |
  |   options  each option of a layer: its check, its default, its line of documentation
  |     |
  |   activations   the activations of ONNX by name
  |
recurrent      what they share: parameters, forward, backward ------> engine: how a call runs
  |     |
  |   streaming     Stream: the state of a layer between steps that come in one by one
  |
module         Module: flat parameters and gradients, state dicts
  |
linear         Linear, with its loss ------ losses: softmax_cross_entropy

init           initialize: initial values by name, of the layers above
sequences      pad_sequence, unpad_sequence: lists of arrays to and from a ragged batch
"""
