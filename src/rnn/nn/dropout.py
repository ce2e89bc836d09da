"""Dropout between modules; that within recurrent layers is an option of theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..util.checks import checked_array, floats, probability
from .module import Module

__all__ = ["Dropout"]


class Dropout(Module):
    """Sets each number to zero with probability p in training, and scales the others by 1/(1-p).

    >>> import numpy as np
    >>> from fastrnn import Dropout
    >>> dropout = Dropout(0.5, rng=0)
    >>> x = np.ones((2, 4), np.float32)
    >>> y, tape = dropout.forward(x)
    >>> y.tolist()
    [[2.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]
    >>> bool((dropout.backward(tape, x) == y).all())  # the same zeros, the same scale
    True
    >>> dropout(x) is x  # in inference
    True

    p: from 0 to 1; it may be assigned, as in ``dropout.p = 0.2``, for the calls that come then.
    rng: None, an int or a numpy Generator: what is dropped.  Its state is part of a checkpoint.

    A module without parameters, for arrays of float32 or float64 and of any shape.  Between and within the layers of a
    stack, the options of the recurrent layers do the same, faster.
    Raises TypeError or ValueError for a p that is no probability.
    Source: N. Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15 (2014).
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        self.p = p
        self._rng = np.random.default_rng(rng)
        super().__init__()

    @property
    def p(self) -> float:
        """The probability of a zero."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        self._p = probability("p", p)

    @property
    def generators(self) -> list[np.random.Generator]:
        """The one that decides what is dropped."""
        return [self._rng]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x itself.  Raises TypeError for another dtype."""
        return floats("x", x)

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y, of the shape and dtype of x, and the tape that `backward` needs: the mask, of zeros and 1/(1-p).

        With p = 0 nothing is drawn.  Raises TypeError for another dtype.
        """
        x = floats("x", x)
        scale = x.dtype.type(0 if self.p == 1 else 1 / (1 - self.p))
        before = self._rng.bit_generator.state
        try:
            kept = self._rng.random(x.shape) >= self.p if self.p else np.ones(x.shape, bool)
            mask = kept * scale
            return x * mask, mask
        except BaseException:  # Ctrl-C, or no memory: as if it had not been called
            self._rng.bit_generator.state = before
            raise

    def backward(self, tape: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """dx for dy, the gradient of the loss by y: dy times the mask.

        Raises TypeError for another dtype, ValueError when dy has not the shape of y.
        """
        mask = floats("the tape", tape)
        dx: np.ndarray = checked_array("dy", dy, mask.shape, mask.dtype) * mask
        return dx

    def __repr__(self) -> str:
        return self._shown(p=self.p)
