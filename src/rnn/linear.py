"""The output layer of a network: o(t) = c + V h(t), for all time steps in one product."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from . import threads
from ._core import gemm_rows, sum_rows
from .checks import float_dtype, positive_int
from .module import Module


class Linear(Module):
    """Affine map of the last axis: ``o = h @ weight.T + bias``.

    >>> import numpy as np
    >>> from fastrnn import Linear
    >>> head = Linear(256, 10, rng=0)
    >>> h = np.ones((64, 32, 256), np.float32)
    >>> o, tape = head.forward(h)
    >>> o.shape
    (64, 32, 10)
    >>> dh = head.backward(tape, np.ones_like(o))
    >>> dh.shape
    (64, 32, 256)

    in_features (H), out_features (K): sizes of the last axis before and after.
    bias: whether there is a ``bias`` of shape (K,) beside ``weight`` of shape (K, H).
    dtype: float32 or float64, of the parameters and of every array that goes in or out.
    rng: None, an int or a numpy Generator, for the initial values: torch's, uniform in +-1/sqrt(H).

    Raises TypeError or ValueError for sizes that are not positive integers and for another dtype.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, dtype: Any = "float32", rng: Any = None
    ) -> None:
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.bias = bool(bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        super().__init__(shapes, float_dtype(dtype))
        bound = 1 / math.sqrt(self.in_features)
        generator = np.random.default_rng(rng)
        for array in self.params.values():
            array[...] = generator.uniform(-bound, bound, array.shape)

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """o (..., K) for h (..., H).  Raises TypeError for another dtype, ValueError for another last axis."""
        return self.forward(h)[0]

    def forward(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """o (..., K) for h (..., H), and the tape that `backward` needs.

        The tape refers to h: leave h unchanged until `backward`.
        Raises TypeError for another dtype, ValueError for another last axis.
        """
        h = self._checked("h", h, self.in_features)
        rows = walkable_rows(h)  # (N, H), N = all leading axes
        o = np.empty((len(rows), self.out_features), self.dtype)
        o[...] = self.params["bias"] if self.bias else 0
        blocks = _blocks(len(rows), rows.size * self.out_features)
        threads.run([partial(gemm_rows, False, True, rows[b], self.params["weight"], 1.0, o[b]) for b in blocks])
        return o.reshape(*h.shape[:-1], self.out_features), h

    def backward(self, tape: np.ndarray, do: np.ndarray) -> np.ndarray:
        """dh (..., H) for do (..., K), the gradient of the loss by o; adds into ``grads``.

            dh = do V        dV += do' h        dc += sum of do over all leading axes

        Raises TypeError for another dtype, ValueError when do has not the shape of o; ``grads`` is unchanged then.
        """
        h = self._checked("the tape", tape, self.in_features)
        do = self._checked("do", do, self.out_features)
        if do.shape[:-1] != h.shape[:-1]:
            raise ValueError(f"expected do of shape {(*h.shape[:-1], self.out_features)}, got {do.shape}")
        rows, do_rows = walkable_rows(h), walkable_rows(do)
        dh = np.empty(rows.shape, self.dtype)
        weight, dweight = self.params["weight"], self.grads["weight"]
        work = rows.size * self.out_features
        # dV by blocks of columns and dh by blocks of rows: no two tasks write to the same place
        columns, blocks = _blocks(self.in_features, work), _blocks(len(rows), work)
        threads.run(
            [partial(gemm_rows, True, False, do_rows, rows[:, c], 1.0, dweight[:, c]) for c in columns]
            + [partial(gemm_rows, False, False, do_rows[b], weight, 0.0, dh[b]) for b in blocks]
        )
        if self.bias:
            sum_rows(do_rows, self.grads["bias"])
        return dh.reshape(h.shape)

    def _checked(self, name: str, array: Any, features: int) -> np.ndarray:
        array = np.asarray(array)
        if array.dtype != self.dtype:
            raise TypeError(f"expected {name} of dtype {self.dtype}, got {array.dtype}")
        if array.ndim == 0 or array.shape[-1] != features:
            raise ValueError(f"expected {name} of shape (..., {features}), got {array.shape}")
        return array


def walkable_rows(array: np.ndarray) -> np.ndarray:
    """The array (..., N) as rows (R, N), contiguous and aligned; a copy only if it is not so already."""
    return np.require(array.reshape(math.prod(array.shape[:-1]), array.shape[-1]), requirements=["C", "A"])


def _blocks(n: int, work: int) -> list[slice]:
    """n rows or columns in four blocks if the work is worth it: cut by the problem, never by the threads."""
    size = max(1, -(-n // (4 if work >= threads.WORTH_CUTTING else 1)))
    return [slice(start, start + size) for start in range(0, n, size)]
