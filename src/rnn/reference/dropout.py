"""The masks of dropout and zoneout inside a layer; the caller draws them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["NO_MASKS", "DropoutMasks", "masked"]


class DropoutMasks(NamedTuple):
    """The masks of one layer and direction, in the order of time and of the caller's batch; None: nothing is dropped.

    A dropout mask holds 0 or 1 / (1 - p). A zoneout mask holds 1 where a unit keeps its old value.
    """

    x: np.ndarray | None = None  # (B, I)      for x(t), the same for both directions
    weight_hh: np.ndarray | None = None  # (G*H, P)    for W_hh
    h: np.ndarray | None = None  # (B, P)      for h(t-1) where it enters a product
    zoneout_h: np.ndarray | None = None  # (T, B, P)   zoneout of h
    zoneout_c: np.ndarray | None = None  # (T, B, H)   zoneout of c


NO_MASKS = DropoutMasks()


def masked(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """array * mask; without a mask, the array itself."""
    return array if mask is None else array * mask
