"""The output layer of a network: o(t) = c + V h(t), for all time steps in one product."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from .._core import gemm_rows, sum_rows
from ..engine import parallel, tuning
from ..util.checks import as_array, boolean, cast_hint, float_dtype, positive_int
from .losses import checked_targets
from .module import Module

__all__ = ["Linear"]


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

    _fixed = Module._fixed | {"in_features", "out_features", "bias"}

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, dtype: Any = "float32", rng: Any = None
    ) -> None:
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.bias = boolean("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        super().__init__(shapes.items(), float_dtype(dtype))
        bound = 1 / math.sqrt(self.in_features)
        generator = np.random.default_rng(rng)
        for array in self.params.values():
            array[...] = generator.uniform(-bound, bound, array.shape)

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """o (..., K) for h (..., H).  Raises TypeError for another dtype, ValueError for another last axis."""
        o = _core.few_rows_affine(h, self._params["weight"], self._params.get("bias"))
        return self.forward(h)[0] if o is None else o

    def forward(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """o (..., K) for h (..., H), and the tape that `backward` needs.

        The tape refers to h: leave h unchanged until `backward`.
        Raises TypeError for another dtype, ValueError for another last axis.
        """
        few = _core.few_rows_affine(h, self._params["weight"], self._params.get("bias"))
        if few is not None:
            return few, h
        h = self._checked("h", h, self.in_features)
        rows = contiguous_rows(h)  # (N, H), N = all leading axes
        o = _core.few_rows_affine(rows, self._params["weight"], self._params.get("bias"))
        if o is None:
            o = _core.new_array((len(rows), self.out_features), self.dtype)
            blocks = parallel.blocks(len(rows), rows.size * self.out_features)
            parallel.run([partial(self._affine, rows[b], o[b]) for b in blocks])
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
        rows, do_rows = contiguous_rows(h), contiguous_rows(do)
        dh = _core.new_array(rows.shape, self.dtype)
        # dV by blocks of its longer side and dh by blocks of rows: no two tasks write to the same place
        blocks = parallel.blocks(len(rows), rows.size * self.out_features)
        parallel.run(
            self._parameter_gradients(rows, do_rows)
            + [partial(gemm_rows, False, False, do_rows[b], self.params["weight"], 0.0, dh[b]) for b in blocks]
        )
        return dh.reshape(h.shape)

    def cross_entropy(
        self, h: np.ndarray, targets: Any, *, mask: Any = None, gradients: bool = True
    ) -> tuple[float, np.ndarray | None]:
        """Mean cross-entropy, in nats, of softmax(o) against the classes `targets`, and dh; adds into ``grads``.

        >>> import numpy as np
        >>> from fastrnn import Linear
        >>> head = Linear(256, 10_000, rng=0)
        >>> h, targets = np.zeros((64, 32, 256), np.float32), np.ones((64, 32), int)
        >>> loss, dh = head.cross_entropy(h, targets)
        >>> dh.shape
        (64, 32, 256)

        The same as `forward`, `softmax_cross_entropy` and `backward` one after the other, without their arrays of
        logits and dlogits (..., K): the logits of a block of rows become its dlogits in place, and these give dh, dV
        and dc before the next block takes their place.

        h (..., H) of the dtype of the parameters, targets and mask (...) as for `softmax_cross_entropy`.
        gradients: whether they are wanted; if not, dh is None, ``grads`` unchanged, and the time a third.

        Raises TypeError or ValueError as `forward` and `softmax_cross_entropy` do; ``grads`` is unchanged then.
        """
        h = self._checked("h", h, self.in_features)
        targets, counted = checked_targets(targets, mask, h.shape[:-1], self.out_features)
        rows = contiguous_rows(h)
        dh = _core.new_array(rows.shape, self.dtype) if gradients else None
        at_once = max(tuning.LEAST_ROWS_AT_ONCE, tuning.LOGITS_AT_ONCE // self.out_features)
        scratch = _core.new_array((min(at_once, len(rows)), self.out_features), self.dtype)
        total = 0.0
        for start in range(0, len(rows), at_once):
            block = slice(start, start + at_once)
            dh_block = None if dh is None else dh[block]
            total += self._block_cross_entropy(rows[block], targets[block], 1 / counted, scratch, dh_block)
        return total / counted, None if dh is None else dh.reshape(h.shape)

    def _block_cross_entropy(
        self, h: np.ndarray, targets: np.ndarray, scale: float, scratch: np.ndarray, dh: np.ndarray | None
    ) -> float:
        """The sum of the losses of rows h (R, H); unless dh is None, writes dh and adds into ``grads``."""
        o = scratch[: len(h)]  # (R, K): the logits, then dlogits

        def loss(b: slice) -> float:
            self._affine(h[b], o[b])
            total = _core.softmax_cross_entropy(o[b], targets[b], scale, o[b])
            if dh is not None:
                gemm_rows(False, False, o[b], self.params["weight"], 0.0, dh[b])
            return total

        losses = parallel.run([partial(loss, b) for b in parallel.blocks(len(h), 2 * h.size * self.out_features)])
        if dh is not None:
            parallel.run(self._parameter_gradients(h, o))
        return sum(losses)

    def _affine(self, h: np.ndarray, o: np.ndarray) -> None:
        """o (R, K) = c + h V', as one task."""
        o[...] = self.params["bias"] if self.bias else 0
        gemm_rows(False, True, h, self.params["weight"], 1.0, o)

    def _parameter_gradients(self, h: np.ndarray, do: np.ndarray) -> list[Callable[[], None]]:
        """Tasks that add dV += do' h and dc += sum of do into ``grads``: h (R, H), do (R, K)."""
        dweight, work = self.grads["weight"], h.size * self.out_features
        tasks: list[Callable[[], None]]
        if self.out_features > self.in_features:  # blocks of the longer side make the faster products
            cuts = parallel.blocks(self.out_features, work)
            tasks = [partial(gemm_rows, True, False, do[:, k], h, 1.0, dweight[k]) for k in cuts]
        else:
            cuts = parallel.blocks(self.in_features, work)
            tasks = [partial(gemm_rows, True, False, do, h[:, c], 1.0, dweight[:, c]) for c in cuts]
        if self.bias:
            tasks.append(partial(sum_rows, do, self.grads["bias"]))
        return tasks

    def _checked(self, name: str, array: Any, features: int) -> np.ndarray:
        given, array = array, as_array(name, array)
        if array.dtype != self.dtype:
            raise TypeError(f"expected {name} of dtype {self.dtype}, got {array.dtype}{cast_hint(given, self.dtype)}")
        if array.ndim == 0 or array.shape[-1] != features:
            raise ValueError(f"expected {name} of shape (..., {features}), got {array.shape}")
        return array

    def __repr__(self) -> str:
        return self._shown(in_features=self.in_features, out_features=self.out_features, bias=self.bias)


def contiguous_rows(array: np.ndarray) -> np.ndarray:
    """The array (..., N) as rows (R, N), contiguous and aligned; a copy only if it is not so already."""
    return np.require(array.reshape(math.prod(array.shape[:-1]), array.shape[-1]), requirements=["C", "A"])
