"""Softmax and cross-entropy, fused: the loss of the output layer and its gradient in one pass over the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core


def softmax_cross_entropy(logits: np.ndarray, targets: Any, *, mask: Any = None) -> tuple[float, np.ndarray]:
    """Mean cross-entropy, in nats, of softmax(logits) against the classes `targets`, and its gradient by the logits.

    >>> import numpy as np
    >>> from fastrnn import softmax_cross_entropy
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((2, 4), np.float32), np.array([0, 3]))
    >>> round(loss, 4)  # ln 4
    1.3863
    >>> dlogits[0].tolist()
    [-0.375, 0.125, 0.125, 0.125]

    With yhat = softmax(o) and N counted positions:

        loss = -1/N sum ln yhat[target]        dlogits = (yhat - onehot(target)) / N

    logits (..., K): float32 or float64, of any size: the maximum of each row is subtracted first.
    targets (...): integers in [0, K).
    mask (...): bool, True where a position counts; elsewhere the target is not looked at and the gradient is zero.

    Returns the loss as a float and dlogits, of the shape and dtype of the logits.  Where a counted logit is not
    finite, neither is the loss (a logit of -inf is fine: that class has probability zero).
    `Linear.cross_entropy` makes the logits as well, and never holds all of many.

    Raises TypeError for other dtypes, ValueError for shapes that do not fit, for a counted target outside [0, K) and
    when no position counts.
    """
    logits = np.asarray(logits)
    if logits.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"expected logits of dtype float32 or float64, got {logits.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"expected logits of shape (..., K) with K >= 1 classes, got {logits.shape}")
    classes = logits.shape[-1]
    targets, counted = checked_targets(targets, mask, logits.shape[:-1], classes)
    dlogits = _core.new_array(logits.shape, logits.dtype)
    total = _core.softmax_cross_entropy(
        np.require(logits.reshape(-1, classes), requirements=["C", "A"]),
        targets,
        1 / counted,
        dlogits.reshape(-1, classes),
    )
    return total / counted, dlogits


def checked_targets(targets: Any, mask: Any, positions: tuple[int, ...], classes: int) -> tuple[np.ndarray, int]:
    """The targets of all positions as the kernels take them, (N,) int64 with -1 where none counts; how many count.

    Raises TypeError or ValueError, see `softmax_cross_entropy`.
    """
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"expected targets of an integer dtype, got {targets.dtype}")
    if targets.shape != positions:
        raise ValueError(f"expected targets of shape {positions}, got {targets.shape}")
    counted = targets
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"expected a mask of dtype bool, got {mask.dtype}")
        if mask.shape != positions:
            raise ValueError(f"expected a mask of shape {positions}, got {mask.shape}")
        counted = targets[mask]
    if counted.size == 0:
        raise ValueError(f"expected at least one counted position, got none in the shape {positions}")
    if counted.min() < 0 or counted.max() >= classes:
        wrong = counted[(counted < 0) | (counted >= classes)]
        raise ValueError(f"expected targets in [0, {classes}), got {wrong.flat[0]}")
    return np.where(True if mask is None else mask, targets.astype(np.int64), -1).reshape(-1), counted.size
