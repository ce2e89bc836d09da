"""`from_layer`: any recurrent layer of fastrnn as a module of torch, with what torch's have not."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import engine
from ..engine import LayerSpec
from ..nn.recurrent import Recurrent
from .autograd import evaluated, one_or_pair
from .call import Call, Layout
from .plain import NotHere, check_plain, check_surroundings
from .weights import KNOWN, known_weights, numpy_dtype

__all__ = ["Layer", "from_layer"]


def from_layer(layer: Recurrent) -> Layer:
    """A module of torch that computes what a fastrnn RNN, GRU or LSTM does, with all its options, and its gradients.

    >>> import torch, fastrnn, fastrnn.torch
    >>> gru = fastrnn.torch.from_layer(fastrnn.GRU(8, 16, layer_norm=True, zoneout=0.1, rng=0))
    >>> y, h = gru(torch.ones(5, 2, 8))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 16]), torch.Size([1, 2, 16]))
    >>> y.sum().backward()
    >>> gru.weight_hh_l0.grad.shape
    torch.Size([48, 16])

    The module's parameters have the names and the memory of the layer's: what trains one trains the other.  Options
    are those that the layer has now.  Raises TypeError for anything else.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"expected an RNN, GRU or LSTM of fastrnn, got {type(layer).__name__}")
    return Layer(layer)


@lru_cache(maxsize=1024)
def _typed(spec: LayerSpec, dtype: np.dtype[Any]) -> LayerSpec:
    return replace(spec, dtype=dtype)


def _copied(given: Any) -> np.ndarray | None:
    """lengths or reset, which the caller may use again before backward."""
    return None if given is None else np.asarray(given).copy()


class Layer(torch.nn.Module):
    """A recurrent layer of fastrnn as a module of torch, see `from_layer`."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.spec, self._shown = layer.spec, repr(layer)
        for name, array in layer.params.items():
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(array)))
        self._names, self._shapes = list(layer.params), [array.shape for array in layer.params.values()]
        places = {name: place for place, name in enumerate(self._names)}
        suffixes = [
            self.spec.suffix(k, d) for k in range(self.spec.num_layers) for d in range(self.spec.num_directions)
        ]
        self._layout: Layout = tuple(
            tuple(places.get(name + suffix) for name in engine.ARRAYS) for suffix in suffixes
        )  # fmt: skip

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """(y, final states) of padded or packed input; what the options drop at random is dropped in training mode.

        input: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched; integers without I are one-hot.
        hx: the initial states, (L*D, B, width); None: zeros.   lengths: (B,) integers, the true lengths of padded
        sequences.   reset: bool, input's shape without I: where True, the states are set to zero before that step.
        Raises TypeError or ValueError for a wrong dtype, shape or value; NotImplementedError where torch traces,
        compiles or transforms the call.
        """
        try:
            check_surroundings()
        except NotHere as why:
            raise NotImplementedError(f"expected a call that can run here, but {why}") from None
        states = () if hx is None else tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        x, batch_sizes, order, back = input if isinstance(input, PackedSequence) else (input, None, None, None)
        try:
            check_plain((x, *states))
            states = states if order is None else tuple([state.index_select(1, order) for state in states])
            weights = [getattr(self, name) for name in self._names]
            dtype = numpy_dtype(weights[0].dtype)
            spec = self.spec if dtype == self.spec.dtype else _typed(self.spec, dtype)
            known = known_weights(self, spec, self._layout, weights, self._shapes)
            drops = self.training and (spec.dropout > 0 or spec.has_dropout)
            call = Call(
                spec, self._layout, "engine", None, True, len(states), batch_sizes,
                _copied(lengths), _copied(reset),
                int(torch.randint(1 << 62, (), device="cpu")) if drops else None,
            )  # fmt: skip
            y, *finals = evaluated(call, known, (x, *states), weights)
        except NotHere as why:
            raise TypeError(f"expected plain tensors on the CPU, of one dtype, float32 or float64, but {why}") from None
        if back is not None:
            finals = [final.index_select(1, back) for final in finals]
        y = y if batch_sizes is None else PackedSequence(y, batch_sizes, order, back)
        return y, one_or_pair(finals)

    def extra_repr(self) -> str:
        """The layer."""
        return self._shown

    def _apply(self, *args: Any, **options: Any) -> Layer:
        """As torch's; arrays of the old parameters are not kept."""
        self.__dict__.pop(KNOWN, None)
        return super()._apply(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != KNOWN}
