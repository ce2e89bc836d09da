"""`Weights`: those of a module as arrays, made anew only when the tensors have moved; and its `LayerSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from .. import _core
from ..engine import LayerSpec
from ..engine.dropout import NO_MASKS
from .call import Layout, arranged
from .plain import NotHere, check_plain, lie_at, plain_arrays

__all__ = ["KNOWN", "Weights", "known_weights", "torch_spec"]

KNOWN = "_fastrnn_weights"  # the attribute of a module that has its `Weights`; not copied with it

_KERNELS = {"RNN_TANH": "rnn tanh", "RNN_RELU": "rnn relu", "GRU": "gru", "LSTM": "lstm"}


@lru_cache(maxsize=1024)
def torch_spec(
    mode: str, input_size: int, hidden_size: int, layers: int, directions: int, proj_size: int, dtype: np.dtype[Any],
    dropout: float,
) -> LayerSpec:  # fmt: skip
    """The spec of one of torch's modules."""
    states = (("h", proj_size or hidden_size), ("c", hidden_size))
    return LayerSpec(
        kernel=_KERNELS[mode], input_size=input_size, hidden_size=hidden_size,
        states=states if mode == "LSTM" else states[:1], num_layers=layers, num_directions=directions, dtype=dtype,
        dropout=dropout,
    )  # fmt: skip


class Weights:
    """The weights of a module as arrays, which keep the memory alive but not a graph that made it.

    Raises NotHere if they have no plain memory or are not all of one dtype.
    """

    def __init__(self, layout: Layout, tensors: Sequence[Tensor]) -> None:
        check_plain(tensors)
        self._found = plain_arrays([tensor.detach() for tensor in tensors])
        arrays = [np.ascontiguousarray(array) for array in self._found]
        self.dtype = arrays[0].dtype
        if any(array.dtype != self.dtype for array in arrays):
            raise NotHere("the weights are of several dtypes")
        self.layout, self.arrays = layout, arranged(layout, arrays)
        self._small_batch: _core.SmallBatchInference | None = None
        self._small_training: _core.SmallBatchTraining | None = None

    def small_batch(self, spec: LayerSpec) -> _core.SmallBatchInference | None:
        """What runs inference of few rows, if something does."""
        takes = _runs_forwards(spec) and _core.SmallBatchInference.takes(spec.num_layers, len(spec.states))
        if self._small_batch is None and takes:
            self._small_batch = _core.SmallBatchInference(
                spec.cell.number, spec.is_double, spec.batch_first, self.arrays, spec.kernel_options
            )
        return self._small_batch

    def small_training(self, spec: LayerSpec) -> _core.SmallBatchTraining | None:
        """What runs small training passes without dropout, if something does."""
        if self._small_training is None and _runs_forwards(spec) and not spec.batch_first:
            self._small_training = _core.SmallBatchTraining(
                spec.cell.number, spec.is_double, self.arrays, spec.kernel_options,
                tuple([width for _, width in spec.states]), spec.step_work, NO_MASKS,
            )  # fmt: skip
        return self._small_training

    def are(self, tensors: list[Tensor]) -> bool:
        """Whether these are the same weights in the same memory."""
        return lie_at(tensors, self._found)


def known_weights(module: Any, layout: Layout, tensors: list[Tensor]) -> Weights:
    """The weights of a module as arrays, which it keeps from call to call; raises NotHere."""
    known: Weights | None = module.__dict__.get(KNOWN)
    if known is None or not known.are(tensors):
        known = module.__dict__[KNOWN] = Weights(layout, tensors)
    return known


def _runs_forwards(spec: LayerSpec) -> bool:
    return spec.num_directions == 1 and not spec.reverse
