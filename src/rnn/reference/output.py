"""The output layer: scores, probabilities, loss.

Goodfellow, Bengio and Courville, Deep Learning (2016), equations 10.10 and 10.11:

    o(t) = c + V h(t)                       scores (logits)     V is weight (K, H), c is bias (K,)
    p(t) = softmax(o(t))                    p_k = e^{o_k} / sum over j of e^{o_j}
    L(t) = -log p_{y(t)}(t)                 cross-entropy against the true class y(t)
"""

from __future__ import annotations

import numpy as np

from .steps import bias_gradient, weight_gradient

__all__ = ["linear_backward", "linear_forward", "softmax", "softmax_cross_entropy"]


def linear_forward(h: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """o = c + V h: h (..., H), weight (K, H), bias (K,) -> (..., K).

    >>> linear_forward(np.array([1.0, 2.0]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.5, 0.0]))
    array([3.5, 6. ])
    """
    o: np.ndarray = h @ weight.T
    return o if bias is None else o + bias


def linear_backward(
    h: np.ndarray, weight: np.ndarray, do: np.ndarray, *, bias: bool = True
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """dh = V^T do, dV = sum of do h^T, dc = sum of do: do (..., K) -> dh (..., H), grads by parameter name."""
    grads = {"weight": weight_gradient(do, h)}
    if bias:
        grads["bias"] = bias_gradient(do)
    return do @ weight, grads


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis.

    A constant added to all logits changes nothing, so the largest is moved to 0: e^{o - max o} never overflows.

    >>> softmax(np.array([1e4, 1e4]))
    array([0.5, 0.5])
    """
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return p


def softmax_cross_entropy(
    logits: np.ndarray, targets: np.ndarray, *, mask: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Softmax and cross-entropy together: the mean loss over the counted positions, and its gradient.

    >>> loss, dlogits = softmax_cross_entropy(np.zeros((3, 4)), np.array([0, 1, 2]))
    >>> round(loss, 6), dlogits[0].round(3).tolist()     # log 4, and (1/4 - y) / 3
    (1.386294, [-0.25, 0.083, 0.083, 0.083])

    logits (..., K) float32 or float64; targets (...) integers in [0, K); mask (...) bool, False where a position does
    not count: its logits and target may be anything, its gradient is zero.  Returns a float and dlogits (..., K).
    Raises TypeError for other dtypes, ValueError for other shapes, for a counted target out of range, and if no
    position is counted.

    Derivation.  With p = softmax(o) and y the one-hot vector of the target,

        L = -log p_y = -o_y + log sum_j e^{o_j},   so   dL/do_k = -[k = y] + e^{o_k} / sum_j e^{o_j} = p_k - y_k;

    the mean over N counted positions divides both by N.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    counted = _counted(logits, targets, mask)
    n_counted = int(counted.sum())
    o, y = logits[counted], targets[counted]  # (N, K), (N,)
    positions = np.arange(n_counted)

    o = o - o.max(axis=1, keepdims=True)
    log_p = o - np.log(np.exp(o).sum(axis=1, keepdims=True))
    loss = -float(log_p[positions, y].mean(dtype=np.float64))

    do = np.exp(log_p)
    do[positions, y] -= 1
    dlogits = np.zeros_like(logits)
    dlogits[counted] = do / n_counted
    return loss, dlogits


def _counted(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Check all arguments; return the mask (...) as bool."""
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"expected logits of dtype float32 or float64, got {logits.dtype}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"expected targets of an integer dtype, got {targets.dtype}")
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"expected targets of shape {logits.shape[:-1]}, got {targets.shape}")
    counted = np.ones(targets.shape, bool) if mask is None else np.asarray(mask)
    if counted.dtype != np.bool_:
        raise TypeError(f"expected mask of dtype bool, got {counted.dtype}")
    if counted.shape != targets.shape:
        raise ValueError(f"expected mask of shape {targets.shape}, got {counted.shape}")
    if not counted.any():
        raise ValueError("expected at least one counted position, got none")
    y = targets[counted]
    if (y < 0).any() or (y >= logits.shape[-1]).any():
        raise ValueError(f"expected targets in [0, {logits.shape[-1]}), got {y.min()} to {y.max()}")
    return counted
