"""The output layer of a network: o(t) = c + V h(t), for all time steps in one product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

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
        o = h.reshape(-1, self.in_features) @ self.params["weight"].T  # (N, K), N = all leading axes
        if self.bias:
            o += self.params["bias"]
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
        do_rows = do.reshape(-1, self.out_features)
        self.grads["weight"] += do_rows.T @ h.reshape(-1, self.in_features)
        if self.bias:
            self.grads["bias"] += do_rows.sum(axis=0)
        return (do_rows @ self.params["weight"]).reshape(h.shape)

    def _checked(self, name: str, array: Any, features: int) -> np.ndarray:
        array = np.asarray(array)
        if array.dtype != self.dtype:
            raise TypeError(f"expected {name} of dtype {self.dtype}, got {array.dtype}")
        if array.ndim == 0 or array.shape[-1] != features:
            raise ValueError(f"expected {name} of shape (..., {features}), got {array.shape}")
        return array
