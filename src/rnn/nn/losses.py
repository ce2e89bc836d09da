"""Losses with their gradients, each in one pass: softmax with cross-entropy, and the mean squared error; softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _core
from ..util.checks import as_array, checked_array, floats, integers

__all__ = ["mse_loss", "softmax", "softmax_cross_entropy"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, yhat_k = e^{o_k} / sum over j of e^{o_j}.

    >>> import numpy as np
    >>> from fastrnn import softmax
    >>> softmax(np.array([[0.0, 0.0], [1e4, -1e4]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]

    logits (..., K): float32 or float64, of any size: the maximum of each row is subtracted first.

    Returns an array of the shape and dtype of the logits.  A logit of -inf is a class of probability zero; a row with
    NaN or inf, or with nothing but -inf, gives NaN.  In training, `softmax_cross_entropy` takes the logits themselves.
    Raises TypeError for another dtype, ValueError unless there is a last axis of one class at least.
    Source: J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.
    """
    done = _core.plain_softmax(logits)
    if done is None:
        logits = np.require(_checked_logits(logits), requirements=["C", "A"])
        done = _core.plain_softmax(logits)
    return np.empty_like(logits) if done is None else done  # without any rows


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
    `Linear.cross_entropy` makes the logits as well, a block of rows at a time.

    Raises TypeError for other dtypes, ValueError for shapes that do not fit, for a counted target outside [0, K) and
    when no position counts.
    """
    if mask is None:
        done = _core.plain_cross_entropy(logits, targets)
        if done is not None:
            return done
    logits = _checked_logits(logits)
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


def mse_loss(y: np.ndarray, targets: Any, *, mask: Any = None) -> tuple[float, np.ndarray]:
    """Mean squared error of y against `targets`, and its gradient by y.

    >>> import numpy as np
    >>> from fastrnn import mse_loss
    >>> loss, dy = mse_loss(np.array([[1.0, 2.0], [5.0, 5.0]]), np.zeros((2, 2)), mask=np.array([True, False]))
    >>> loss, dy.tolist()
    (2.5, [[1.0, 2.0], [0.0, 0.0]])

    With N counted elements:

        loss = 1/N sum (y - target)^2        dy = 2 (y - target) / N

    y: float32 or float64, of any shape.  targets: of the shape and dtype of y.
    mask: bool, over the leading axes of y, as (T, B) for y (T, B, K): True where a position counts; elsewhere neither y
    nor the target is looked at and the gradient is zero.

    Returns the loss as a float, summed in double, and dy, of the shape and dtype of y.  Where a counted element is not
    finite, neither is the loss.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and when no element counts.
    Source: torch.nn.functional.mse_loss, whose mean it is.
    """
    if mask is None:
        done = _core.plain_mse(y, targets)
        if done is not None:
            return done
    y = floats("y", y)
    targets = checked_array("targets", targets, y.shape, y.dtype)
    counts: Any = True
    counted = y.size
    if mask is not None:
        mask = _checked_mask(mask, y.shape, leading=True)
        counts = mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim))
        counted = int(np.count_nonzero(mask)) * math.prod(y.shape[mask.ndim :])
    if counted == 0:
        raise ValueError(f"expected at least one counted element, got none in the shape {y.shape}")
    dy = _core.new_array(y.shape, y.dtype, zero=True)
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        np.subtract(y, targets, out=dy, where=counts)
        loss = _core.sum_of_squares(dy.reshape(-1)) / counted
        dy *= 2 / counted
    return loss, dy


def checked_targets(targets: Any, mask: Any, positions: tuple[int, ...], classes: int) -> tuple[np.ndarray, int]:
    """The targets of all positions as the kernels take them, (N,) int64 with -1 where none counts; how many count.

    Raises TypeError or ValueError, see `softmax_cross_entropy`.
    """
    targets = integers("targets", targets)
    if targets.shape != positions:
        raise ValueError(f"expected targets of shape {positions}, got {targets.shape}")
    counted = targets
    if mask is not None:
        mask = _checked_mask(mask, positions)
        counted = targets[mask]
    if counted.size == 0:
        raise ValueError(f"expected at least one counted position, got none in the shape {positions}")
    if counted.min() < 0 or counted.max() >= classes:
        wrong = counted[(counted < 0) | (counted >= classes)]
        raise ValueError(f"expected targets in [0, {classes}), got {wrong.flat[0]}")
    return np.where(True if mask is None else mask, targets.astype(np.int64), -1).reshape(-1), counted.size


def _checked_logits(logits: Any) -> np.ndarray:
    logits = floats("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"expected logits of shape (..., K) with K >= 1 classes, got {logits.shape}")
    return logits


def _checked_mask(mask: Any, shape: tuple[int, ...], *, leading: bool = False) -> np.ndarray:
    """The mask, if it is of this shape or, with `leading`, of the leading axes of it."""
    mask = as_array("a mask", mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"expected a mask of dtype bool, got {mask.dtype}")
    if mask.shape != (shape[: mask.ndim] if leading else shape):
        of = "over leading axes of" if leading else "of shape"
        raise ValueError(f"expected a mask {of} {shape}, got {mask.shape}")
    return mask
