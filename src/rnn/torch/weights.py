"""`Weights`: those of a module as arrays, made anew only when the tensors have moved; and its `LayerSpec`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _core, engine
from ..engine import LayerSpec
from ..engine.dropout import NO_MASKS
from .call import Layout, arranged, torch_layout
from .plain import NotHere, check_plain, lie_at, plain_arrays

__all__ = ["KNOWN", "Weights", "known_weights", "numpy_dtype", "torch_shapes", "torch_spec"]

KNOWN = "_fastrnn_weights"  # the attribute of a module that has its `Weights`; not copied with it

_KERNELS = {"RNN_TANH": "rnn tanh", "RNN_RELU": "rnn relu", "GRU": "gru", "LSTM": "lstm"}


@lru_cache(maxsize=1024)
def torch_spec(
    mode: str, input_size: int, hidden_size: int, layers: int, directions: int, proj_size: int, bias: bool,
    dtype: torch.dtype, dropout: float,
) -> tuple[LayerSpec, Layout]:  # fmt: skip
    """The spec of one of torch's modules, and how its weights lie."""
    if mode not in _KERNELS:
        raise NotHere(f"its mode is {mode}")
    states = (("h", proj_size or hidden_size), ("c", hidden_size))
    spec = LayerSpec(
        kernel=_KERNELS[mode], input_size=input_size, hidden_size=hidden_size,
        states=states if mode == "LSTM" else states[:1], num_layers=layers, num_directions=directions,
        dtype=numpy_dtype(dtype), dropout=dropout,
    )  # fmt: skip
    return spec, torch_layout(layers * directions, bias, proj_size > 0)


def torch_shapes(spec: LayerSpec, has_bias: bool) -> Iterator[tuple[int, ...]]:
    """The shapes of a module's weights, in torch's order."""
    rows, P, H = spec.gates * spec.hidden_size, spec.output_size, spec.hidden_size
    for k in range(spec.num_layers):
        one = [(rows, spec.layer_input_size(k)), (rows, P), *[(rows,)] * (2 * has_bias), *[(P, H)] * (P != H)]
        yield from one * spec.num_directions


class Weights:
    """The weights of a module as arrays, which keep the memory alive but not a graph that made it.

    Raises NotHere if they have no plain memory, or not the shapes and the dtype of the spec.
    """

    def __init__(
        self, spec: LayerSpec, layout: Layout, tensors: list[Tensor], shapes: Iterable[tuple[int, ...]]
    ) -> None:
        check_plain(tensors)
        self.found = plain_arrays([tensor.detach() for tensor in tensors])
        for array, shape in zip_longest(self.found, shapes):
            if array is None or array.shape != shape or array.dtype != spec.dtype:
                came = "none" if array is None else f"{array.shape} and {array.dtype}"
                raise NotHere(f"expected a weight of shape {shape} and dtype {spec.dtype}, got {came}")
        self.spec, self.layout = spec, layout
        self.arrays = arranged(layout, [np.ascontiguousarray(array) for array in self.found])
        self._small: _core.SmallInference | None = None
        self._small_training: _core.SmallTraining | None = None

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the module makes its own

    def small_inference(self) -> _core.SmallInference | None:
        """What makes small calls, if something does."""
        if self._small is None:
            self._small = engine.small_inference(self.spec, engine.stack_weights(self.spec, self.arrays))
        return self._small

    def small_training(self) -> _core.SmallTraining | None:
        """What runs small training passes without dropout, if something does."""
        spec = self.spec
        if self._small_training is None and self._runs_forwards and not spec.batch_first:
            self._small_training = _core.SmallTraining(
                spec.cell.number, spec.is_double, self.arrays, spec.kernel_options,
                tuple([width for _, width in spec.states]), spec.step_work, NO_MASKS,
            )  # fmt: skip
        return self._small_training

    @property
    def _runs_forwards(self) -> bool:
        return self.spec.num_directions == 1 and not self.spec.reverse


def known_weights(
    module: Any, spec: LayerSpec, layout: Layout, tensors: list[Tensor], shapes: list[tuple[int, ...]] | None = None
) -> Weights:
    """The weights of a module as arrays, which it keeps as long as they are for this spec and in the same memory.

    shapes: which they have to have; None: those of torch's modules.
    """
    known: Weights | None = module.__dict__.get(KNOWN)
    if known is None or known.spec is not spec or known.layout is not layout or not lie_at(tensors, known.found):
        has_bias = layout[0][engine.ARRAYS.index("bias_ih")] is not None
        known = Weights(spec, layout, tensors, torch_shapes(spec, has_bias) if shapes is None else shapes)
        module.__dict__[KNOWN] = known
    return known


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """NumPy's float64, or float32 for all others."""
    return np.dtype(np.float64 if dtype is torch.float64 else np.float32)
