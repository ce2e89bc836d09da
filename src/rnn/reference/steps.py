"""What all cells share: the input product, and rows of a batch that end early or start afresh.

Letters: T time steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "Steps",
    "bias_gradient",
    "by_rows",
    "clipped",
    "input_gradients",
    "input_product",
    "is_one_hot",
    "plus",
    "reverse_time",
    "rows",
    "unzoned",
    "weight_gradient",
    "zoned",
]


class Steps(NamedTuple):
    """Which rows of the batch are still running at each step, and which start afresh there.

    running: (T, B, 1) bool or None for all.  fresh: (T, B, 1) bool or None for none.
    All three functions of a step apply masks, and so are their own transposes: the backward pass uses the same ones.
    """

    running: np.ndarray | None
    fresh: np.ndarray | None

    @classmethod
    def of(cls, n_steps: int, lengths: np.ndarray | None, reset: np.ndarray | None) -> Steps:
        """lengths (B,): row b runs for its first lengths[b] steps.  reset (T, B): its state is zeroed before a step."""
        running = None if lengths is None else (np.arange(n_steps)[:, None] < lengths)[:, :, None]
        fresh = None if reset is None else np.asarray(reset)[:, :, None]
        if running is not None and fresh is not None:
            fresh = fresh & running  # the state of a row that has ended is not zeroed
        return cls(running, fresh)

    def restart(self, t: int, state: np.ndarray) -> np.ndarray:
        """Zero the state (B, H) of the rows that start afresh at step t."""
        return state if self.fresh is None else np.where(self.fresh[t], 0, state)

    def advance(self, t: int, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        """The new state for rows that run at step t, the old one for rows that have ended."""
        return new if self.running is None else np.where(self.running[t], new, old)

    def only_running(self, t: int, array: np.ndarray) -> np.ndarray:
        """The array (B, H) with zeros in the rows that have ended before step t."""
        return array if self.running is None else np.where(self.running[t], array, 0)

    def without_padding(self, array: np.ndarray) -> np.ndarray:
        """A copy of the array (T, B, H) or (T, B) with zeros in every step beyond a row's end."""
        if self.running is None:
            return array.copy()
        return np.where(self.running if array.ndim == 3 else self.running[:, :, 0], array, 0)


def zoned(keeps: np.ndarray | None, t: int, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Zoneout (Krueger et al. 2017): old where keeps (T, B, H) is 1 at step t, new where it is 0."""
    return new if keeps is None else keeps[t] * old + (1 - keeps[t]) * new


def unzoned(keeps: np.ndarray | None, t: int, d: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
    """The gradients of `new` and `old` from that of `zoned`."""
    return (d, 0) if keeps is None else ((1 - keeps[t]) * d, keeps[t] * d)


def reverse_time(array: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Each row of (T, B, ...) from its true end to its start; padding stays where it is.  Twice is the identity.

    >>> reverse_time(np.array([[1, 4], [2, 5], [3, 0]]), np.array([3, 2])).T
    array([[3, 2, 1],
           [5, 4, 0]])
    """
    if lengths is None:
        return array[::-1]
    n_steps, n_rows = array.shape[:2]
    t = np.arange(n_steps)[:, None]
    return array[np.where(t < lengths, lengths - 1 - t, t), np.arange(n_rows)]


def input_product(x: np.ndarray, weight: np.ndarray, *biases: np.ndarray | None) -> np.ndarray:
    """U x(t) + b for all steps at once: x (T, B, I), weight (GH, I), biases (GH,) -> (T, B, GH).

    An integer x (T, B) stands for one-hot vectors: U x(t) is then column x(t) of U.
    """
    return plus(weight.T[x] if is_one_hot(x) else by_rows(x, weight.T), *biases)


def plus(product: np.ndarray, *biases: np.ndarray | None) -> np.ndarray:
    """Add the biases that are not None in place to a product (T, B, GH)."""
    for bias in biases:
        if bias is not None:
            product += bias
    return product


def input_gradients(x: np.ndarray, weight: np.ndarray, da: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """dL/dx(t) = U^T da(t) and dL/dU = sum over t of da(t) x(t)^T; there is no dL/dx where x is an index."""
    if not is_one_hot(x):
        return by_rows(da, weight), weight_gradient(da, x)
    dweight = np.zeros(weight.shape[::-1], weight.dtype)  # (I, GH): da(t) is added to row x(t)
    np.add.at(dweight, x, da)
    return None, dweight.T


def clipped(da: np.ndarray, grad_clip: float | None) -> np.ndarray:
    """The gradient of a step's pre-activations, limited to +-grad_clip so that it cannot grow without bound on its way
    back (A. Graves, Generating sequences with recurrent neural networks, 2013, section 2.1); None: unchanged.
    """
    return da if grad_clip is None else np.clip(da, -grad_clip, grad_clip)


def weight_gradient(da: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Sum over t and the batch of da h^T for a product a = W h: (T, B, N), (T, B, M) -> (N, M), in one product."""
    gradient: np.ndarray = rows(da).T @ rows(h)
    return gradient


def bias_gradient(da: np.ndarray) -> np.ndarray:
    """Sum over t and the batch of da: (T, B, N) -> (N,)."""
    gradient: np.ndarray = rows(da).sum(axis=0)
    return gradient


def by_rows(array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., N) @ (N, M) -> (..., M) as one product of two matrices; NumPy would make one product for each t."""
    product: np.ndarray = rows(array) @ matrix
    return product.reshape(*array.shape[:-1], matrix.shape[1])


def rows(array: np.ndarray) -> np.ndarray:
    """(..., N) -> (number of rows, N), also where that number is zero."""
    return array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])


def is_one_hot(x: np.ndarray) -> bool:
    """Whether x holds indices of one-hot vectors rather than the vectors."""
    return x.dtype.kind in "iu"
