"""What a training pass draws at random: before any walk, so that threads and passes over a tape do not change it.

dropout                behind a layer, a mask for each step        N. Srivastava et al., JMLR 15 (2014)
weight_dropout         of W_hh, one mask for a call                L. Wan et al., ICML 2013 (DropConnect);
                                                                   S. Merity et al., ICLR 2018 (AWD-LSTM)
input_dropout          of x(t), one mask for all steps             Y. Gal and Z. Ghahramani, NIPS 2016
recurrent_dropout      of h(t-1), one mask for all steps           the same
zoneout, zoneout_cell  which units of h, c stay as they were,      D. Krueger et al., ICLR 2017
                       for each step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Noise(NamedTuple):
    """The masks of one layer and direction, in the order of time and of the caller's batch; None: nothing is dropped.

    A dropout mask holds 0 or 1 / (1 - p); of zoneout, what is 1 keeps its old value.
    """

    x: np.ndarray | None = None  # (B, I)      onto x(t), the same for both directions
    weight_hh: np.ndarray | None = None  # (G*H, P)    onto W_hh
    h: np.ndarray | None = None  # (B, P)      onto h(t-1) where it enters a product
    keeps_h: np.ndarray | None = None  # (T, B, P)   uint8
    keeps_c: np.ndarray | None = None  # (T, B, H)   uint8


NO_NOISE = Noise()


def draw(layer: Any, k: int, T: int, B: int) -> list[Noise]:
    """The noise of one training pass through layer k, for each direction, from the layer's generator."""
    H, P, I = layer.hidden_size, layer._output_size, layer._input_size(k)
    p_h, p_c = layer._zoneout
    x = dropout_mask(layer, layer.input_dropout, (B, I))
    return [
        Noise(
            x=x,
            weight_hh=dropout_mask(layer, layer.weight_dropout, (layer._gates * H, P)),
            h=dropout_mask(layer, layer.recurrent_dropout, (B, P)),
            keeps_h=_happens(layer, p_h, (T, B, P)),
            keeps_c=_happens(layer, p_c, (T, B, H)),
        )
        for _ in range(layer._directions)
    ]


def dropout_mask(layer: Any, p: float, shape: tuple[int, ...]) -> np.ndarray | None:
    """Zero with probability p, else 1 / (1 - p); None if p is zero."""
    if p == 0:
        return None
    if p == 1:
        return np.zeros(shape, layer.dtype)
    keep = layer._rng.random(shape, dtype=np.float32) >= p
    mask: np.ndarray = keep * layer.dtype.type(1 / (1 - p))
    return mask


def _happens(layer: Any, p: float, shape: tuple[int, ...]) -> np.ndarray | None:
    """1 with probability p, rounded to a multiple of 2^-16, else 0; None if p is zero.

    Sixteen random bits each: there is one of these for every unit at every step, and floats take three times as long.
    """
    if p == 0:
        return None
    size = math.prod(shape)
    words = layer._rng.integers(0, 1 << 64, -(-size // 4), np.uint64)
    happens: np.ndarray = words.view(np.uint16)[:size] < round(p * (1 << 16))
    return happens.view(np.uint8).reshape(shape)


def masked(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """array * mask; without a mask, the array itself."""
    return array if mask is None else array * mask
