"""torch.nn: RNN, GRU and LSTM and their cells.  Names, shapes and gate order are the same, so nothing is rearranged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..nn.layers import LSTM, RNN
from ..nn.recurrent import Recurrent
from .common import DROPOUT, activations_of, build, checked_layer, refuse_unless, same_activation, suffixes

__all__ = ["from_torch", "to_torch"]

if TYPE_CHECKING:
    import torch

_DEFAULT_ACTIVATIONS = {"gru": ("sigmoid", "tanh"), "lstm": ("sigmoid", "tanh", "tanh")}


def from_torch(module: torch.nn.Module) -> Any:
    """The layer that computes what a torch module does: torch.nn.RNN, GRU, LSTM, RNNCell, GRUCell or LSTMCell.

    >>> import torch
    >>> from fastrnn.interchange import from_torch
    >>> module = torch.nn.LSTM(8, 16, num_layers=2, bidirectional=True)
    >>> layer = from_torch(module)
    >>> x = torch.randn(20, 4, 8)
    >>> torch.allclose(torch.from_numpy(layer(x.numpy())[0]), module(x)[0], atol=1e-5)
    True

    The parameters are copied; dtype (float32 or float64), batch_first and dropout are the module's.  A torch cell
    becomes a single layer, whose x has an axis of time: (T, B, I).  A state dict of torch needs no conversion:
    ``layer.load_state_dict(module.state_dict())``.

    Raises TypeError for another module, also for one of a class derived from these, and for another dtype; ValueError
    for parameters that the class does not have, such as those of weight_norm, or that hold no data.
    """
    import torch

    cells = {torch.nn.RNN: "rnn", torch.nn.GRU: "gru", torch.nn.LSTM: "lstm"}
    single = {torch.nn.RNNCell: "rnn", torch.nn.GRUCell: "gru", torch.nn.LSTMCell: "lstm"}
    cell = (cells | single).get(type(module))
    if cell is None:
        known = ", ".join(kind.__name__ for kind in cells | single)
        raise TypeError(f"expected a module of torch.nn among {known}, got {type(module).__name__}")
    is_single = type(module) in single
    params = {name + "_l0" * is_single: _array(name, value) for name, value in module.state_dict().items()}
    names = ["input_size", "hidden_size", "bias"]
    names += [] if is_single else ["num_layers", "batch_first", "dropout", "bidirectional"]
    names += ["nonlinearity"] if cell == "rnn" else ["proj_size"] if cell == "lstm" and not is_single else []
    options = {name: getattr(module, name) for name in names}
    dtypes = {array.dtype for array in params.values()}
    if len(dtypes) != 1:
        raise TypeError(f"expected parameters of one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    try:
        return build(cell, {**options, "dtype": dtypes.pop()}, params)
    except KeyError as error:
        raise ValueError(f"the parameters are not those of a {type(module).__name__}: {error.args[0]}") from None


def to_torch(layer: Recurrent, *, cell: bool = False) -> torch.nn.Module:
    """The torch module that computes what the layer does. It uses the same memory: training one changes the other.

    >>> import fastrnn, torch
    >>> from fastrnn.interchange import to_torch
    >>> layer = fastrnn.GRU(8, 16, rng=0)
    >>> module = to_torch(layer)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> module(torch.ones(20, 4, 8))[0].sum().backward()
    >>> optimizer.step()                                    # trains the layer
    >>> bool((layer.params["weight_hh_l0"] == module.weight_hh_l0.detach().numpy()).all())
    True

    cell: whether to return an RNNCell, GRUCell or LSTMCell instead of an RNN, GRU or LSTM; the layer must then have
    num_layers=1 and one direction.  ``copy.deepcopy(to_torch(layer))`` has memory of its own.

    Raises TypeError if `layer` is not a recurrent layer of this package; ValueError for what torch does not have: clip,
    grad_clip, reverse, a merge of directions other than concat, other activations, reset_after=False, peephole,
    coupled, layer_norm, weight_dropout, input_dropout, recurrent_dropout, zoneout.
    """
    import torch

    checked_layer(layer)
    _check_expressible(layer)
    name = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}[layer.cell] + "Cell" * cell
    options = {"bias": layer.bias, "device": "meta", "dtype": getattr(torch, layer.dtype.name)}
    if isinstance(layer, RNN):
        options["nonlinearity"] = "tanh" if same_activation(layer.nonlinearity, "tanh") else "relu"
    if cell:
        refuse_unless(layer, f"torch.nn.{name}", num_layers=1, bidirectional=False, proj_size=0)
    else:
        options |= {key: getattr(layer, key) for key in ("num_layers", "batch_first", "dropout", "bidirectional")}
        options |= {"proj_size": layer.proj_size} if isinstance(layer, LSTM) else {}
    module: torch.nn.Module = getattr(torch.nn, name)(layer.input_size, layer.hidden_size, **options)
    end = suffixes(layer)[0][0] if cell else ""
    shared = {key.removesuffix(end): torch.from_numpy(array) for key, array in layer.params.items()}
    module.load_state_dict(shared, assign=True)
    return module


def _array(name: str, value: torch.Tensor) -> np.ndarray:
    import torch

    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected {name} of dtype torch.float32 or torch.float64, got {value.dtype}")
    if value.is_meta:
        raise ValueError(f"expected {name} with data, got one on the meta device")
    return value.detach().cpu().numpy()


def _check_expressible(layer: Recurrent) -> None:
    no_flags = {"reverse": False, "reset_after": True, "peephole": False, "coupled": False}
    refuse_unless(layer, "torch", clip=None, grad_clip=None, layer_norm=False, **no_flags, **DROPOUT)
    if layer.bidirectional:
        refuse_unless(layer, "torch", merge="concat")
    activations = activations_of(layer)
    if isinstance(layer, RNN):
        expressible = any(same_activation(layer.nonlinearity, name) for name in ("tanh", "relu"))
    else:
        expressible = all(map(same_activation, activations, _DEFAULT_ACTIVATIONS[layer.cell]))
    if not expressible:
        raise ValueError(f"torch cannot express the activations {activations!r} of a {type(layer).__name__}")
