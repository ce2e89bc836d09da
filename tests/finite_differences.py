"""The oracle of last resort for a gradient: the definition of the derivative."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def numeric_gradient(f: Callable[[], float], array: np.ndarray, *, step: float = 1e-5) -> np.ndarray:
    """df/darray by central differences; f takes no argument and reads `array`, which is changed and put back.

    >>> a = np.array([1.0, 3.0])
    >>> numeric_gradient(lambda: float((a**2).sum()), a).round(6)
    array([2., 6.])

    The error is about step^2 + 1e-16 / step times the scale of f, so 1e-10 in float64, the only dtype taken.
    """
    if array.dtype != np.float64:
        raise TypeError(f"expected an array of dtype float64, got {array.dtype}")
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = f()
        array[index] = value - step
        below = f()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient
