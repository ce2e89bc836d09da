"""How the outputs of two directions become one, and how its gradient becomes theirs.

    concat    y = [a, b]          da = the first half of dy    db = the second
    sum       y = a + b           da = dy                      db = dy
    mul       y = a b             da = dy b                    db = dy a
    ave       y = (a + b) / 2     da = dy / 2                  db = dy / 2

The output of a single direction is left as it is.
"""

from __future__ import annotations

import numpy as np

MERGES = ("concat", "sum", "mul", "ave")


def views(y: np.ndarray, directions: int) -> list[np.ndarray]:
    """For each direction, the view (T, B, P) of y (T, B, D*P) that it writes; or of packed y, (N, D*P)."""
    if directions == 1:
        return [y]
    P = y.shape[-1] // 2
    return [y[..., :P], y[..., P:]]


def merged(y: np.ndarray, outputs: list[np.ndarray], merge: str) -> np.ndarray:
    """The output of the layer, from y (T, B, D*P) and the `views` of it that the directions wrote."""
    if merge == "concat" or len(outputs) == 1:
        return y
    a, b = outputs
    if merge == "mul":
        return a * b
    return a + b if merge == "sum" else (a + b) / 2


def unmerged(dy: np.ndarray, outputs: list[np.ndarray], merge: str, directions: int) -> list[np.ndarray]:
    """The gradients of the directions' outputs from dy of the merged one; only "mul" needs the outputs."""
    if directions == 1:
        return [dy]
    if merge == "concat":
        return views(dy, 2)
    if merge == "mul":
        a, b = outputs
        return [dy * b, dy * a]
    return [dy, dy] if merge == "sum" else [dy / 2] * 2
